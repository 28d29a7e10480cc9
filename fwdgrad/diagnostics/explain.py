"""`explain`: the form, use and loss of structure of each tangent, and the cost of a step."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from fwdgrad.diagnostics.abstract_call import Call, cost_of_step
from fwdgrad.diagnostics.custom_rules import CustomRule, entered_custom_rules
from fwdgrad.diagnostics.explanation import Explanation, LeafExplanation, SiteExplanation
from fwdgrad.diagnostics.independence import compare_examples, losses_alone
from fwdgrad.diagnostics.nonfinite import find_nonfinite
from fwdgrad.estimators.backprop import backprop_value_and_grad
from fwdgrad.estimators.forward import forward_value_and_grad
from fwdgrad.perturbation.loss import Loss, check_unguided
from fwdgrad.perturbation.noisy_site import site_name
from fwdgrad.perturbation.space import Space
from fwdgrad.perturbation.weights import Weights
from fwdgrad.propagation.matrix_axes import Use
from fwdgrad.propagation.pushforward import Pushforward, trace
from fwdgrad.propagation.record import Form, Record, recording
from fwdgrad.tangents.independent import TangentDistribution
from fwdgrad.tangents.low_rank import LowRank
from fwdgrad.util.trees import Array, PyTree


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
    """Explain the tangent of each parameter and the cost of a step of a forward gradient.

    The answer to "why is my model not fast?". For each leaf: the form of its tangent, the lines of
    the model that use its factors or blocks, and the lines that materialise them as an array of the
    leaf's size, with the reason. For a step (the estimate and the update p − η g): operations,
    bytes and memory, beside those of backprop.

    The estimate is traced, and both steps are compiled. The interpreter records forms, uses and
    losses of structure, so the explanation holds for any space and any distribution, your own
    included. With `space=Activities()` the explanation has `sites` in the place of `leaves`: each
    value that is perturbed or has its exact derivative, and the parameters that learn by it.

    Three parts need values, so they evaluate the loss outside of `jit`: the comparison of
    `custom_vjp` rules with the derivatives of their functions, the check at activities that each
    example has a loss of its own, and the search for NaN.

    Args:
      fun, params, args: the arguments of `forward_value_and_grad(fun)(key, params, *args)`; bind
        keyword arguments of fun by `functools.partial`. Arrays may be `jax.ShapeDtypeStruct`; then
        nothing is evaluated.
      tangents, num_tangents, space, has_aux: the options of `forward_value_and_grad`, but the
        default distribution is `LowRank()`.
      check_nan: if True, search for the equation at which a tangent becomes NaN or infinite while
        its value is finite. The search evaluates the loss operation by operation, and keeps all
        values.

    Returns:
      An `Explanation`; print it.

    Raises:
      TypeError, ValueError: as `forward_value_and_grad`; or `check_nan` is True and an array is a
        `jax.ShapeDtypeStruct`.

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
    call = Call(params, args)
    if check_nan and not call.is_concrete:
        raise TypeError(
            "check_nan=True searches for NaN among values, but params or args hold a "
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
        cost_of_step(value_and_grad, call, may_fail=bool(record.why_whole)),
        cost_of_step(backprop, call, may_fail=True),
        examples=_examples(loss_at, call) if record.sites is not None else "",
        custom_rules=_custom_rules(loss_at, call),
        nonfinite=_nonfinite(loss_at, call, record) if check_nan else None,
    )


class _Leaf(NamedTuple):
    """A leaf of the parameters, and the uses of it in the loss."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    uses: list[Use]


def _recorded(
    value_and_grad: Callable[..., Any], loss_at: Callable[..., Loss], call: Call
) -> tuple[list[_Leaf], Record]:
    """Return the leaves of the parameters, and the record of an estimate."""
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

    call.eval_shape(of_leaves)
    with recording() as record:
        try:
            call.eval_shape(estimate)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            if not record.why_whole:
                raise
    return leaves, record


def _leaves(
    leaves: Sequence[_Leaf], record: Record, tangents: TangentDistribution
) -> tuple[LeafExplanation, ...]:
    """Return the explanation of each leaf; leaves with an exact gradient come last."""
    explained = []
    for leaf in sorted(leaves, key=lambda leaf: leaf.name in record.exact):
        form = record.forms.get(leaf.name)
        if form is None and record.sites is not None:
            continue
        used, lost = (tuple(events.get(leaf.name, {})) for events in (record.used, record.lost))
        known = form or Form()
        if record.why_whole and known.parts:
            lost = ("jax.jvp of the whole loss",)
        if leaf.name in record.exact:
            reason = "the last layer: its exact gradient"
        elif form is None:
            reason = "the space pushes no tangent of it through fwdgrad's interpreter"
        elif record.why_whole and not leaf.uses:  # without a jaxpr its uses are unknown
            reason = "the loss is pushed forward as a whole"
        else:
            reason = "" if known.parts else _reason(tangents, leaf.uses)
        explained.append(
            LeafExplanation(
                leaf.name,
                leaf.shape,
                leaf.dtype,
                known.rank,
                known.blocks,
                known.size,
                used,
                lost,
                reason,
                str(known),
            )
        )
    return tuple(explained)


def _sites(leaves: Sequence[_Leaf], record: Record) -> tuple[SiteExplanation, ...]:
    """Return the explanation of each site of activity perturbation."""
    sites = []
    for i, (at, shape, parameters, kind) in enumerate(record.sites or ()):
        name = site_name(i)
        form = record.forms.get(name, Form())
        used, lost = (tuple(events.get(name, {})) for events in (record.used, record.lost))
        names = tuple(leaves[j].name for j in parameters)
        fields = form.rank, form.blocks, used, lost, str(form) if form.parts else ""
        sites.append(SiteExplanation(at, shape, names, kind, *fields))
    return tuple(sites)


def _examples(loss_at: Callable[..., Loss], call: Call) -> str:
    """Return as text if each example has a loss of its own, as `Activities` requires."""
    if not call.is_concrete:
        return "the check that each example has a loss of its own needs values: give arrays"
    return str(compare_examples(loss_at(*call.rebuild(call.params, call.arrays))))


def _custom_rules(loss_at: Callable[..., Loss], call: Call) -> tuple[CustomRule, ...]:
    """Return the custom_vjp functions that are entered, with the difference of their rules."""
    found: list[CustomRule] = []

    def walk(params: PyTree, *args: Any) -> None:
        loss = loss_at(params, *args)
        program = trace(loss.at, loss.theta).program
        if program is not None:  # or it is JAX's own error if there is one
            values = loss.theta if call.is_concrete else None
            found.extend(entered_custom_rules(program, values))

    if call.is_concrete:
        walk(*call.rebuild(call.params, call.arrays))
    else:
        call.eval_shape(walk)
    return tuple(found)


def _nonfinite(loss_at: Callable[..., Loss], call: Call, record: Record) -> str:
    """Return the places where tangents become non-finite; at activities, of each example alone."""
    loss = loss_at(*call.rebuild(call.params, call.arrays))
    if record.why_whole:
        return f"impossible, because {record.why_whole}"
    if record.sites is None:
        traced = loss.trace(loss.at, loss.theta)
    else:
        leaves, structure = jax.tree.flatten(loss.args)

        def of_examples(theta: list[Array]) -> tuple[Array, None]:
            return losses_alone(loss, theta, leaves, structure), None

        traced = loss.trace(of_examples, loss.theta)
    return str(find_nonfinite(traced.required(needed_by="check_nan=True"), loss.theta))


def _named(space: Any) -> str:
    """Return the repr of a space, or the name of its class if it has no repr of its own."""
    return type(space).__name__ if type(space).__repr__ is object.__repr__ else repr(space)


def _reason(tangents: TangentDistribution, uses: list[Any]) -> str:
    """Return the reason for which the tangent of a leaf is dense."""
    if any(use.split is not None for use in uses):
        return f"sampled dense by {tangents!r}"
    if not uses:
        return "the loss does not read it"
    return "no matrix: read by " + ", ".join([*dict.fromkeys(map(str, uses))][:2])
