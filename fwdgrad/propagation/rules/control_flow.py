"""Rules for calls and control flow, which propagate tangents through the bodies.

A loop's body becomes one that carries the tangents beside the values. A weight that is the same
in every turn keeps its factors, and so does a stack of weights that is scanned over; a carried
tangent is materialised, because its form would change from turn to turn. An equation with unknown
parameters is left to `jax.jvp`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.propagation.custom_functions import raise_for_custom_vjp
from fwdgrad.propagation.interpreter import Context, Rule, propagate
from fwdgrad.propagation.jaxprs import carried, reached
from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.forms import Tangent, count_tangents, dense
from fwdgrad.util import programs
from fwdgrad.util.jax_internals import CALL_NAMES, called_jaxpr, is_custom_vjp, read_program
from fwdgrad.util.layouts import cond_branches, is_platform_dependent, scan_parts, while_parts
from fwdgrad.util.trees import Array

_CARRIED = "carried by a loop"


def _call(context: Context, equation: Any, primals: list[Any], tangents: list[Tangent]) -> Any:
    if (body := called_jaxpr(equation)) is None:
        return NotImplemented
    if is_custom_vjp(equation):
        raise_for_custom_vjp(equation)
    return propagate(context, read_program(body, equation), primals, tangents)


def _cond(
    context: Context, equation: Any, primals: list[Any], tangents: list[Tangent]
) -> tuple[list[Any], list[Tangent]]:
    if is_platform_dependent(equation):
        return NotImplemented
    index, *operands = primals
    number = _num_tangents(tangents)
    branches = cond_branches(equation)
    active = [t is not None for t in tangents[1:]]
    outputs_active = [
        any(x) for x in zip(*(reached(b.jaxpr, active) for b in branches), strict=True)
    ]

    def dual(branch: Any) -> Any:
        def run(operands: list[Any], tangents: list[Tangent]) -> tuple[list[Any], list[Tangent]]:
            outputs, pushed = propagate(context, read_program(branch, equation), operands, tangents)
            pushed = _materialize(context, equation, pushed, "returned by a branch")
            return outputs, _with_zeros(number, outputs, pushed, outputs_active)

        return run

    return programs.switch(index, [dual(b) for b in branches], operands, tangents[1:])


def _while(
    context: Context, equation: Any, primals: list[Any], tangents: list[Tangent]
) -> tuple[list[Any], list[Tangent]]:
    loop = while_parts(equation)
    if loop.condition.out_avals[0].shape:  # of vmap: each example ends at its own turn
        return NotImplemented
    n, m = loop.num_condition_consts, loop.num_body_consts
    cond_consts, body_consts, init = primals[:n], primals[n : n + m], primals[n + m :]
    const_tangents = tangents[n : n + m]
    number = _num_tangents(tangents)
    active = _carried(loop.body.jaxpr, const_tangents, tangents[n + m :])

    def condition(carry: tuple[list[Any], list[Tangent]]) -> Array:
        return jex_core.jaxpr_as_fun(loop.condition)(*cond_consts, *carry[0])[0]

    def turn(carry: tuple[list[Any], list[Tangent]]) -> tuple[list[Any], list[Tangent]]:
        values, duals = carry
        outputs, pushed = propagate(
            context,
            read_program(loop.body, equation),
            [*body_consts, *values],
            [*const_tangents, *duals],
        )
        pushed = _materialize(context, equation, pushed, _CARRIED)
        return outputs, _with_zeros(number, outputs, pushed, active)

    start = _materialize(context, equation, tangents[n + m :], _CARRIED)
    start = _with_zeros(number, init, start, active)
    return programs.while_loop(condition, turn, (init, start))


def _scan(
    context: Context, equation: Any, primals: list[Any], tangents: list[Tangent]
) -> tuple[list[Any], list[Tangent]]:
    scan = scan_parts(equation)
    body, num_carry = scan.body, scan.num_carry
    n, m = scan.num_consts, scan.num_consts + num_carry
    consts, init, xs = primals[:n], primals[n:m], primals[m:]
    const_tangents = tangents[:n]
    number = _num_tangents(tangents)
    slices = [_Slices(context, equation, v) for v in tangents[m:]]
    active = _carried(body.jaxpr, const_tangents, tangents[n:m], tangents[m:])

    def turn(
        carry: tuple[list[Any], list[Tangent]], x: tuple[list[Any], list[Any]]
    ) -> tuple[Any, Any]:
        (values, duals), (values_x, scanned) = carry, x
        duals_x = [s.at(each) for s, each in zip(slices, scanned, strict=True)]
        outputs, pushed = propagate(
            context,
            read_program(body, equation),
            [*consts, *values, *values_x],
            [*const_tangents, *duals, *duals_x],
        )
        carried = _materialize(context, equation, pushed[:num_carry], _CARRIED)
        carried = _with_zeros(number, outputs[:num_carry], carried, active)
        stacked = _materialize(context, equation, pushed[num_carry:], "stacked by a loop")
        return (outputs[:num_carry], carried), (outputs[num_carry:], stacked)

    start = _materialize(context, equation, tangents[n:m], _CARRIED)
    start = _with_zeros(number, init, start, active)
    (last, last_tangents), (ys, ys_tangents) = programs.scan(
        turn,
        (init, start),
        (xs, [s.scanned for s in slices]),
        length=scan.length,
        reverse=scan.reverse,
        unroll=scan.unroll,
    )
    moved = [None if t is None else jnp.moveaxis(t, 0, 1) for t in ys_tangents]  # K first again
    return [*last, *ys], [*last_tangents, *moved]


class _Slices:
    """A tangent that is scanned over, as parts that have the scanned axis and parts without."""

    def __init__(self, context: Context, equation: Any, tangent: Tangent):
        self.scanned: Any = None
        if isinstance(tangent, StructuredTangent):
            self.scanned = tangent.scan_inputs()
            if self.scanned is None:
                tangent = context.materialize(equation, tangent, "scanned over by a loop")
        if tangent is not None and self.scanned is None:
            self.scanned = jnp.moveaxis(dense(tangent), 1, 0)
        self.tangent = tangent

    def at(self, scanned: Any) -> Tangent:
        """Return the tangent of one slice, given `scanned` at it."""
        if isinstance(self.tangent, StructuredTangent):
            return self.tangent.from_scan_slice(scanned)
        return scanned


def _carried(
    jaxpr: Any,
    consts: Sequence[Tangent],
    init: Sequence[Tangent],
    xs: Sequence[Tangent] = (),
) -> list[bool]:
    """Return for each carried value if it can have a tangent in some turn (least fixed point)."""
    active = ([t is not None for t in tangents] for tangents in (consts, init, xs))
    return carried(jaxpr, *active)


def _num_tangents(tangents: Sequence[Tangent]) -> int:
    return next(count_tangents(t) for t in tangents if t is not None)


def _materialize(
    context: Context, equation: Any, tangents: Sequence[Tangent], reason: str
) -> list[Tangent]:
    return [context.materialize(equation, t, reason) for t in tangents]


def _with_zeros(
    number: int, values: Sequence[Any], tangents: Sequence[Tangent], active: Sequence[bool]
) -> list[Tangent]:
    """Return arrays for the tangents that are `active`, zeros included, and None for the others."""

    def fill(x: Any, t: Tangent, wanted: bool) -> Tangent:
        if not wanted:
            return None
        if t is None:
            zeros = jnp.zeros_like(x)  # with the sharding of x
            return jnp.broadcast_to(zeros, (number, *zeros.shape))
        return dense(t)

    return [fill(*each) for each in zip(values, tangents, active, strict=True)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(CALL_NAMES, _call),
    primitives.cond_p.name: _cond,
    primitives.while_p.name: _while,
    primitives.scan_p.name: _scan,
}
