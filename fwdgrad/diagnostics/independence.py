"""Check that a loss is made of losses of single examples, as `Activities` asks.

With space=Activities() the loss is evaluated for each example by itself. A loss in which examples
change each other's (batch normalisation, one dropout key for all) then has another value, and its
gradient is that of another function, which no tracer can tell. Comparing values can: of some
examples together, and of each of them alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.perturbation.loss import Loss
from fwdgrad.perturbation.minibatch import noting_minibatches_of_one, number_of_examples
from fwdgrad.util import validation
from fwdgrad.util.jax_internals import inner_jaxprs
from fwdgrad.util.trees import Array, PyTree

# How many examples are compared, and by which share of its size a value may differ from rounding:
# by the fewest bits of any floating-point value in the loss.
NUM_EXAMPLES = 8
_ROUNDING = {16: 3e-2, 32: 1e-3, 64: 1e-6}


class Comparison(NamedTuple):
    """The loss of some examples together and of each alone.

    Attributes:
      number: of the examples.
      together: the loss of a minibatch of all of them.
      mean, total: of their losses, each in a minibatch of one.
      rounding: by how much two values that are equal may differ.
    """

    number: int
    together: float
    mean: float
    total: float
    rounding: float

    @property
    def is_mean(self) -> bool:
        """Whether the loss is the mean of the examples' losses."""
        return self._same(self.mean)

    @property
    def is_sum(self) -> bool:
        """Whether the loss is the sum of the examples' losses."""
        return self._same(self.total)

    def _same(self, value: float) -> bool:
        if not math.isfinite(self.together) or not math.isfinite(value):
            return math.isnan(self.together) == math.isnan(value)
        return abs(self.together - value) <= self.rounding

    def __str__(self) -> str:
        values = f"{self.together:.6g} of {self.number} examples together"
        if self.is_mean:
            return f"each example has a loss of its own: {values}, {self.mean:.6g} alone"
        if self.is_sum:
            return (
                f"each example has a loss of its own, and fun is their sum: {values}, "
                f"{self.mean:.6g} alone; value and gradient at activities are the mean"
            )
        return self.complaint

    @property
    def complaint(self) -> str:
        """What is wrong, and what the usual reasons and remedies are."""
        return (
            "fun mixes the examples of a minibatch, and space=Activities() evaluates each by "
            f"itself: the loss of {self.number} examples together is {self.together:.6g}, but the "
            f"mean of their losses alone is {self.mean:.6g} (the sum {self.total:.6g}). Usual "
            "reasons: batch normalisation in training mode (use its running averages, or layer or "
            "group norm); one key of dropout or noise for all examples (pass one for each, by "
            "position: jax.random.split(key, N)); losses that rank, pair, weigh or normalise over "
            "the minibatch; a prior or penalty that is added to a sum over examples (take the "
            "mean, and divide the penalty by the size of the data set); graphs that are batched "
            "into one. space=Weights() asks nothing of fun."
        )


def check_examples_independent(
    fun: Callable[..., Any],
    params: PyTree,
    *args: Any,
    has_aux: bool = False,
    **kwargs: Any,
) -> None:
    """Raise ValueError if the examples of a minibatch change each other's loss.

    That is what `space=Activities()` asks of a loss, and cannot see by itself. The loss of up to 8
    examples together is compared with the mean of their losses in minibatches of one. A loss that
    is their sum passes, too; the value and the gradient of `Activities` are the mean then, 1/N of
    those of `fun`. A sum to which a penalty is added once does not pass. Nor does one that would be
    right but for randomness that depends on the shape of the minibatch, since then all examples
    get the same numbers. Of a minibatch of one nothing can be told.

    Call it once before training, outside of `jit`: it costs two evaluations of the loss. Values
    that differ by rounding alone are the same: by 1e-3 of their size, in half precision 3e-2.

    Args:
      fun, params, args, has_aux, kwargs: as `forward_value_and_grad(fun)(key, params, *args)`
        takes them.

    Raises:
      TypeError: an argument has no value, as inside of `jax.jit`.
      ValueError: the examples are not independent, or there is no number of examples.

    >>> x = jnp.arange(6.0).reshape(3, 2)
    >>> check_examples_independent(lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones(2), x)
    >>> check_examples_independent(lambda w, x: jnp.var(x @ w), jnp.ones(2), x)
    Traceback (most recent call last):
    ...
    ValueError: fun mixes the examples of a minibatch, ...
    """
    validation.check_callable(fun)
    comparison = compare_examples(Loss(fun, params, args, kwargs, has_aux))
    if not comparison.is_mean and not comparison.is_sum:
        raise ValueError(comparison.complaint)


def compare_examples(loss: Loss) -> Comparison:
    """Return the loss of some examples together and alone."""
    number = number_of_examples(loss.args, loss.kwargs)
    leaves, structure = jax.tree.flatten(loss.args)
    if any(isinstance(x, jax.core.Tracer) for x in (*loss.theta, *leaves)):
        raise TypeError(
            "check_examples_independent compares values, and inside of jax.jit or another "
            "transformation there are none; call it before, outside of it."
        )
    count = min(number, NUM_EXAMPLES)
    chosen = np.arange(count) * number // count  # spread, since examples may be sorted by class
    examples = [jnp.asarray(x)[chosen] for x in leaves]

    def values(theta: list[Array], examples: list[Array]) -> tuple[Array, Array]:
        together = loss.of(theta, jax.tree.unflatten(structure, examples))[0]
        return together, losses_alone(loss, theta, examples, structure)

    with noting_minibatches_of_one(), jax.default_matmul_precision("highest"):
        traced = jax.jit(values).trace(loss.theta, examples)
        together, alone = traced.lower().compile()(loss.theta, examples)
    found = np.asarray(alone, np.float64)
    share = _ROUNDING[min(_bits(traced.jaxpr.jaxpr), 64)]
    with np.errstate(invalid="ignore"):  # of losses that are not finite
        size = max(abs(float(together)), float(np.abs(found).mean()))
    rounding = share * size if math.isfinite(size) else 0.0
    return Comparison(count, float(together), float(found.mean()), float(found.sum()), rounding)


def losses_alone(
    loss: Loss, theta: Sequence[Array], examples: Sequence[Array], structure: Any
) -> Array:
    """Return the loss of each example in a minibatch of one.

    Args:
      loss: at any arguments.
      theta: the leaves of the parameters.
      examples: the leaves of the arguments, with examples in front.
      structure: of the arguments, a treedef.
    """

    def alone(one: list[Array]) -> Array:
        return loss.of(theta, jax.tree.unflatten(structure, [x[None] for x in one]))[0]

    return jax.vmap(alone)([jnp.asarray(x) for x in examples])


def _bits(jaxpr: Any) -> int:
    """Return the fewest bits of a floating-point value in a jaxpr, at most 64 and at least 16."""
    bits = [64]
    for equation in jaxpr.eqns:
        for v in equation.outvars:
            dtype = getattr(v.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                bits.append(max(jnp.finfo(dtype).bits, 16))
        bits.extend(map(_bits, inner_jaxprs(equation)))
    return min(bits)
