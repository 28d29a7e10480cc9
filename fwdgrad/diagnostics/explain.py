"""Finding out why a forward gradient of a loss costs what it costs."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.diagnostics.custom_rules import CustomRule, entered_custom_rules
from fwdgrad.diagnostics.explanation import Cost, Explanation, LeafExplanation, SiteExplanation
from fwdgrad.diagnostics.independence import compare_examples, losses_alone
from fwdgrad.diagnostics.nonfinite import find_nonfinite
from fwdgrad.estimators.backprop import backprop_value_and_grad
from fwdgrad.estimators.forward import forward_value_and_grad
from fwdgrad.perturbation.loss import Loss, check_unguided
from fwdgrad.perturbation.noisy_site import site_name
from fwdgrad.perturbation.space import Space
from fwdgrad.perturbation.weights import Weights
from fwdgrad.propagation.matrix_axes import Use
from fwdgrad.propagation.pushforward import Pushforward
from fwdgrad.propagation.record import Record, recording
from fwdgrad.propagation.tracing import trace
from fwdgrad.tangents.independent import TangentDistribution
from fwdgrad.tangents.low_rank import LowRank
from fwdgrad.util.trees import Array, PyTree, extract_leaves, is_differentiable


def explain(
    fun: Callable[..., Any],
    params: PyTree,
    *args: Any,
    tangents: TangentDistribution = LowRank(),
    num_tangents: int = 1,
    space: Space = Weights(),
    has_aux: bool = False,
    check_nan: bool = False,
) -> Explanation:
    """Explain what a forward gradient of `fun` does with each parameter, and what it costs.

    The answer to "why is my model not fast?": for each leaf in which form its tangent is drawn,
    which lines of the model use its factors or blocks, and which have them written out as an array
    of the leaf's size, with the reason; then the operations, the bytes and the memory of a step,
    that is of the estimate and the update p − η g, beside those of backprop. The estimate is
    traced, and both are compiled. All of that is read off the record that the interpreter keeps, so
    it holds of any space and any distribution, your own included. With `space=Activities()` there
    are, in the place of `leaves`, `sites`: each value that gets noise, or is exact, and the
    parameters that learn by it.

    The loss is evaluated, outside of `jit`, where values are needed: to compare the rules of
    `custom_vjp` functions that forward mode enters with what they compute; at activities, to tell
    whether each example has a loss of its own; and to find NaN.

    Args:
      fun, params, args: as `forward_value_and_grad(fun)(key, params, *args)` takes them; bind
        keyword arguments of fun by `functools.partial`. Arrays may be `jax.ShapeDtypeStruct`; then
        nothing is evaluated.
      tangents, num_tangents, space, has_aux: as `forward_value_and_grad` takes them, but the
        tangents are of low rank, not normal, if nothing is said.
      check_nan: whether to look for the equation at which a tangent becomes NaN or infinite while
        its value is finite. That evaluates the loss operation by operation, and keeps all values.

    Returns:
      An `Explanation`; print it.

    Raises:
      TypeError, ValueError: as `forward_value_and_grad`; or `check_nan` is asked for shapes.

    >>> def loss(params, x):
    ...     return jax.numpy.mean((x @ params["w"] + params["b"]) ** 2)
    >>> params = {"w": jax.numpy.ones((30, 20)), "b": jax.numpy.ones(20)}
    >>> explanation = explain(loss, params, jax.numpy.ones((5, 30)))
    >>> [(leaf.name, leaf.rank, leaf.size) for leaf in explanation.leaves]
    [("params['b']", None, 20), ("params['w']", 1, 50)]
    """
    check_unguided(params)
    value_and_grad = forward_value_and_grad(
        fun, tangents=tangents, num_tangents=num_tangents, space=space, has_aux=has_aux
    )
    backprop = backprop_value_and_grad(fun, has_aux=has_aux)
    call = _Call(params, args)
    if check_nan and not call.is_concrete:
        raise TypeError(
            "check_nan=True looks for NaN among values, and params or args hold a "
            "jax.ShapeDtypeStruct; give arrays, or leave check_nan out."
        )

    def loss_at(params: PyTree, *args: Any) -> Loss:
        return Loss(fun, params, args, {}, has_aux)

    leaves, record = _recorded(value_and_grad, loss_at, call)
    at = "" if space == Weights() else f" at {_named(space)}"
    return Explanation(
        _leaves(leaves, record, tangents),
        _sites(leaves, record),
        record.why_whole,
        f"{num_tangents} × {tangents!r}{at}",
        _cost(value_and_grad, call, may_fail=bool(record.why_whole)),
        _cost(backprop, call, may_fail=True),
        examples=_examples(loss_at, call) if record.sites is not None else "",
        custom_rules=_custom_rules(loss_at, call),
        nonfinite=_nonfinite(loss_at, call, record) if check_nan else None,
    )


class _Call:
    """The parameters and positional arguments of a loss, apart in arrays and the rest.

    Attributes:
      params: their differentiable leaves, arrays or `jax.ShapeDtypeStruct`.
      arrays: the arrays among the arguments, likewise.
      is_concrete: whether all of these have values.
    """

    def __init__(self, params: PyTree, args: tuple[Any, ...]):
        self.params, self._params_around = extract_leaves(params, _is_parameter)
        self.arrays, self._args_around = extract_leaves(args, _is_array)
        both = (*self.params, *self.arrays, *self._params_around.others)
        self.is_concrete = not any(map(_is_abstract, both))

    def rebuild(self, params: Sequence[Any], arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Return params and args with these arrays in their places."""
        return (self._params_around.rebuild(params), *self._args_around.rebuild(arrays))

    def evaluated_abstractly(self, function: Callable[..., Any]) -> Any:
        """Return `jax.eval_shape` of function(params, *args); what has values keeps them."""
        leaves = [*self.params, *self.arrays]
        abstract = [x for x in leaves if _is_abstract(x)]

        def of_abstract(*values: Any) -> Any:
            given = iter(values)
            filled = [next(given) if _is_abstract(x) else x for x in leaves]
            n = len(self.params)
            return function(*self.rebuild(filled[:n], filled[n:]))

        return jax.eval_shape(of_abstract, *abstract)


def _is_abstract(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def _is_array(x: Any) -> bool:
    return _is_abstract(x) or isinstance(x, (jax.Array, np.ndarray))


def _is_parameter(x: Any) -> bool:
    return is_differentiable(x) or (_is_abstract(x) and jnp.issubdtype(x.dtype, jnp.floating))


class _Leaf(NamedTuple):
    """A leaf of the parameters, and how the loss uses it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    uses: list[Use]


def _recorded(
    value_and_grad: Callable[..., Any], loss_at: Callable[..., Loss], call: _Call
) -> tuple[list[_Leaf], Record]:
    """Return the leaves, and the record of an estimate."""
    leaves: list[_Leaf] = []

    def of_leaves(params: PyTree, *args: Any) -> None:
        loss = loss_at(params, *args)
        uses = Pushforward(loss.trace(loss.at, loss.theta), loss.theta, loss.names).uses
        leaves.extend(
            _Leaf(name, x.shape, str(x.dtype), of_leaf)
            for name, x, of_leaf in zip(loss.names, loss.theta, uses, strict=True)
        )

    def estimate(params: PyTree, *args: Any) -> None:
        value_and_grad(jax.random.key(0), params, *args)

    call.evaluated_abstractly(of_leaves)
    with recording() as record:
        try:
            call.evaluated_abstractly(estimate)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            if not record.why_whole:
                raise
    return leaves, record


def _leaves(
    leaves: Sequence[_Leaf], record: Record, tangents: TangentDistribution
) -> tuple[LeafExplanation, ...]:
    """Return what becomes of each leaf's tangent; those with an exact gradient come last."""
    explained = []
    for leaf in sorted(leaves, key=lambda leaf: leaf.name in record.exact):
        form = record.forms.get(leaf.name)
        if form is None and record.sites is not None:
            continue
        used, lost = (tuple(events.get(leaf.name, {})) for events in (record.used, record.lost))
        rank, blocks, size = form or (None, None, 0)
        is_structured = rank is not None or blocks is not None
        if record.why_whole and is_structured:
            lost = ("jax.jvp of the whole loss",)
        if leaf.name in record.exact:
            reason = "the last layer: its exact gradient"
        elif form is None:
            reason = "the space pushes no tangent of it through fwdgrad's interpreter"
        elif record.why_whole and not leaf.uses:  # without a jaxpr uses are not known
            reason = "the loss is pushed forward as a whole"
        else:
            reason = "" if is_structured else _reason(tangents, leaf.uses)
        explained.append(
            LeafExplanation(
                leaf.name, leaf.shape, leaf.dtype, rank, blocks, size, used, lost, reason
            )
        )
    return tuple(explained)


def _sites(leaves: Sequence[_Leaf], record: Record) -> tuple[SiteExplanation, ...]:
    sites = []
    for i, (at, shape, parameters, kind) in enumerate(record.sites or ()):
        name = site_name(i)
        rank, blocks, _ = record.forms.get(name, (None, None, 0))
        used, lost = (tuple(events.get(name, {})) for events in (record.used, record.lost))
        names = tuple(leaves[j].name for j in parameters)
        sites.append(SiteExplanation(at, shape, names, kind, rank, blocks, used, lost))
    return tuple(sites)


def _examples(loss_at: Callable[..., Loss], call: _Call) -> str:
    """Return whether each example has a loss of its own, as `Activities` asks."""
    if not call.is_concrete:
        return "whether each example has a loss of its own is told by values: give arrays"
    return str(compare_examples(loss_at(*call.rebuild(call.params, call.arrays))))


def _custom_rules(loss_at: Callable[..., Loss], call: _Call) -> tuple[CustomRule, ...]:
    """Return the custom_vjp functions that are entered, compared with their rules at values."""
    found: list[CustomRule] = []

    def walk(params: PyTree, *args: Any) -> None:
        loss = loss_at(params, *args)
        jaxpr = trace(loss.at, loss.theta, enter_custom_vjp=False).jaxpr
        if jaxpr is not None:  # or it is JAX's own error if there is one
            values = loss.theta if call.is_concrete else None
            found.extend(entered_custom_rules(jaxpr, values))

    if call.is_concrete:
        walk(*call.rebuild(call.params, call.arrays))
    else:
        call.evaluated_abstractly(walk)
    return tuple(found)


def _nonfinite(loss_at: Callable[..., Loss], call: _Call, record: Record) -> str:
    """Return where tangents become NaN or infinite: in each example alone, at activities."""
    loss = loss_at(*call.rebuild(call.params, call.arrays))
    if record.why_whole:
        return f"cannot be told, since {record.why_whole}"
    if record.sites is None:
        traced = loss.trace(loss.at, loss.theta)
    else:
        leaves, structure = jax.tree.flatten(loss.args)

        def of_examples(theta: list[Array]) -> tuple[Array, None]:
            return losses_alone(loss, theta, leaves, structure), None

        traced = loss.trace(of_examples, loss.theta)
    return str(find_nonfinite(traced.jaxpr, loss.theta))


def _named(space: Any) -> str:
    """Return the space as its class writes it, or the name of a class that says nothing more."""
    return type(space).__name__ if type(space).__repr__ is object.__repr__ else repr(space)


def _reason(tangents: TangentDistribution, uses: list[Any]) -> str:
    """Why a leaf's tangent is dense."""
    if any(use.split is not None for use in uses):
        return f"drawn dense by {tangents!r}"
    if not uses:
        return "the loss does not read it"
    return "no matrix: read by " + ", ".join(f"{u.operation} at {u.place}" for u in uses[:2])


def _cost(value_and_grad: Callable[..., Any], call: _Call, may_fail: bool = False) -> Cost | None:
    def step(key: Array, theta: list[Array], arrays: list[Array]) -> list[Array]:
        _, grad = value_and_grad(key, *call.rebuild(theta, arrays))
        of_leaves, _ = extract_leaves(grad, is_differentiable)
        return [p - 1e-3 * g for p, g in zip(theta, of_leaves, strict=True)]

    try:
        compiled = jax.jit(step).lower(jax.random.key(0), call.params, call.arrays).compile()
    except Exception:
        if may_fail:  # a while_loop has no reverse mode
            return None
        raise
    analysis, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return Cost(
        analysis.get("flops", math.nan),
        analysis.get("bytes accessed", math.nan),
        memory.temp_size_in_bytes if memory is not None else math.nan,
    )
