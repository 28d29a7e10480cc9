"""`compare`: the quality and the cost of each estimator on a user's own loss."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from fwdgrad.diagnostics.compared_loss import ComparedLoss
from fwdgrad.diagnostics.comparison import EstimatorComparison, EstimatorRow
from fwdgrad.diagnostics.estimate_quality import FEWEST_GROUPS, PILOT, Precision
from fwdgrad.estimators.backprop import backprop_value_and_grad
from fwdgrad.estimators.forward import forward_value_and_grad
from fwdgrad.estimators.value_and_grad import ValueAndGrad
from fwdgrad.estimators.zeroth_order import spsa_value_and_grad
from fwdgrad.perturbation.activities import Activities
from fwdgrad.tangents.independent import Normal, Rademacher
from fwdgrad.tangents.joint import BlockSparse
from fwdgrad.tangents.low_rank import LowRank
from fwdgrad.util import validation
from fwdgrad.util.timing import interleaved_seconds
from fwdgrad.util.trees import Array, PyTree

_TURNS = 50  # of timing, at most
_TIMING = 0.25  # of the seconds; the others are for drawing estimates
_LOSS = object()  # the name of the loss alone among the programs that are timed

Estimators = Mapping[str, Callable[[Callable[..., Any]], Any]]
# The estimators that `compare` takes by default: name -> a function from a loss to its estimator.
USUAL_ESTIMATORS: Estimators = MappingProxyType(
    {
        "backprop": backprop_value_and_grad,
        "backprop, checkpointed": partial(backprop_value_and_grad, checkpoint=True),
        "dense normal": partial(forward_value_and_grad, tangents=Normal()),
        "low rank": partial(forward_value_and_grad, tangents=LowRank()),
        "low rank, K = 8": partial(forward_value_and_grad, tangents=LowRank(), num_tangents=8),
        "activities": partial(forward_value_and_grad, tangents=Rademacher(), space=Activities()),
        "activities, layer-wise, exact last, 8 blocks": partial(
            forward_value_and_grad,
            tangents=BlockSparse(),
            num_tangents=8,
            space=Activities(layerwise=True, exact_last=True),
        ),
        "SPSA": spsa_value_and_grad,
    }
)


def compare(
    fun: Callable[..., Any],
    params: PyTree,
    *args: Any,
    estimators: Estimators | None = None,
    key: Array | None = None,
    half_width: float = 0.1,
    max_keys: int = 2000,
    max_seconds: float = 60.0,
    compiler_options: Mapping[str, Any] | None = None,
    show_progress: bool | None = None,
) -> EstimatorComparison:
    """Compare the quality and the cost of estimators on a loss of your own.

    For estimates g of the exact gradient ∇f at `params`, by backprop, with E over keys:

        cosine     E ⟨g, ∇f⟩ / ‖g‖ ‖∇f‖
        slope      E ⟨g, ∇f⟩ / ‖∇f‖², 1 without bias
        bias       ‖E g − ∇f‖² / ‖∇f‖²
        variance   E‖g − E g‖² / ‖∇f‖²
        R          the time of a step over the time of the loss alone

    and total memory, operations and compile time of a step, the estimate and the update p − η g.
    Each quality has a 95 % interval over 16 groups of keys. Rounds of new keys grow until the
    intervals of cosine and variance are as narrow as `half_width` says, or a limit is reached.

    Where reverse mode is not defined (a `while_loop`) there is no ∇f: `gradient_note` says why, the
    variance is not divided by ‖∇f‖², and there is nothing else of the quality. An estimator that
    fails has a row with the reason as its note. One with `space=Activities()` is compared only if
    `check_examples_independent` allows it.

    Times are of one step a call, in turns in this process. Very short steps are mostly the call.

    Args:
      fun: `fun(params, *args)` returns a real scalar loss.
      params, args: arrays, at which the loss is compared.
      estimators: name -> a function from a loss to its estimator, such as
        `functools.partial(fwdgrad.forward_value_and_grad, num_tangents=4)`. None:
        `fwdgrad.USUAL_ESTIMATORS`, which are backprop, also checkpointed; dense normal tangents;
        low-rank tangents, also K = 8; activity perturbation, also layer-wise with 8 blocks and the
        exact last layer; SPSA. Join yours to them by `{**fwdgrad.USUAL_ESTIMATORS, "mine": …}`.
      key: the PRNG key of all draws; None: `jax.random.key(0)`.
      half_width: the half-widths wanted of the intervals of cosine and variance, over their values.
      max_keys: the most keys of an interval, at least 6.
      max_seconds: of drawing and timing together; compiling is not counted. Where it is too short
        for the precision there are fewer keys, so numbers then depend on the machine.
      compiler_options: XLA's options by name, for all programs; those of other platforms are left
        out.
      show_progress: a progress bar, if tqdm is installed; None: on a terminal alone.

    Returns:
      An `EstimatorComparison`: print it, or read `rows`, `result[name]`, `recommendation`.

    Raises:
      TypeError, ValueError: an argument is wrong, or the loss is not a real scalar.

    >>> import jax.numpy as jnp
    >>> def loss(w, x):
    ...     return jnp.mean((x @ w) ** 2)
    >>> one = {"backprop": backprop_value_and_grad, "normal": forward_value_and_grad}
    >>> result = compare(loss, jnp.ones(30), jnp.eye(30), estimators=one, max_keys=200)
    >>> round(result["backprop"].cosine.value, 3), result["normal"].num_keys
    (1.0, 192)
    >>> result["normal"].variance.low < 31 < result["normal"].variance.high  # d + 1
    True
    >>> result.recommendation.partition(":")[0]
    'Use backprop'
    """
    validation.check_callable(fun)
    key = jax.random.key(0) if key is None else key
    validation.check_key(key)
    validation.check_positive_integer("max_keys", max_keys)
    if max_keys < PILOT * FEWEST_GROUPS:
        raise ValueError(
            f"max_keys must be at least {PILOT * FEWEST_GROUPS}, {FEWEST_GROUPS} groups of {PILOT} "
            f"keys, or there is no interval; found {max_keys}."
        )
    half_width = validation.checked_positive("half_width", half_width)
    max_seconds = validation.checked_positive("max_seconds", max_seconds)
    if not isinstance(compiler_options, (Mapping, type(None))):
        raise TypeError(
            "compiler_options must be a mapping from names of XLA's options to values, or None; "
            f"found {compiler_options!r}."
        )
    chosen = _made(fun, USUAL_ESTIMATORS if estimators is None else estimators)
    subject = ComparedLoss(fun, params, args, compiler_options)
    programs: dict[Any, Callable[[], Any]] = {_LOSS: subject.loss_alone()}
    target, gradient_note = subject.exact_gradient()
    precision = Precision(half_width, max_keys, (1 - _TIMING) * max_seconds / len(chosen))
    rows = []
    for name in _progress(chosen, show_progress):
        row, step = subject.measured(name, chosen[name], key, target, precision)
        rows.append(row)
        if step is not None:
            programs[name] = step
    seconds = interleaved_seconds(
        programs, rounds=_TURNS, seed=0, max_seconds=_TIMING * max_seconds
    )
    of_loss = seconds[_LOSS]
    return EstimatorComparison(
        tuple(
            _timed(row, seconds[row.name], of_loss) if row.name in seconds else row for row in rows
        ),
        float(np.median(of_loss)),
        len(of_loss),
        gradient_note,
    )


def _timed(row: EstimatorRow, seconds: np.ndarray, of_loss: np.ndarray) -> EstimatorRow:
    return replace(
        row,
        seconds=float(np.median(seconds)),
        relative_time=float(np.median(seconds / of_loss)),
    )


def _made(fun: Callable[..., Any], estimators: Estimators) -> dict[str, Callable[..., Any]]:
    """Return the estimators of `fun` by name; raise TypeError unless all are made so."""
    if not isinstance(estimators, Mapping) or not estimators:
        raise TypeError(
            "estimators must be a mapping from names to functions from a loss to its estimator, "
            f"with one at least; found {estimators!r}. For the usual ones leave it out."
        )
    made = {}
    for name, make in estimators.items():
        is_constructor = callable(make) and not isinstance(make, ValueAndGrad)
        value_and_grad = make(fun) if is_constructor else None
        if not callable(value_and_grad):
            raise TypeError(
                f"estimators[{name!r}] must be a function from a loss to its estimator; found "
                f"{make!r}. Give the constructor without the loss: "
                "functools.partial(fwdgrad.forward_value_and_grad, num_tangents=4)."
            )
        if any(getattr(value_and_grad, option, False) for option in ("has_aux", "has_report")):
            raise TypeError(
                f"estimators[{name!r}] must return (value, gradient) alone. Leave has_aux and "
                "has_report out."
            )
        made[name] = value_and_grad
    return made


def _progress(names: Iterable[str], show: bool | None) -> Iterable[str]:
    """Return the names with a progress bar around them, if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return names
    hidden = None if show is None else not show  # None: on a terminal alone
    return tqdm(names, desc="compare", unit="estimator", leave=False, disable=hidden)
