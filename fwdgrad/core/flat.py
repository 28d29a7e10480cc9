"""Where what follows a layer is flat, so that noise in its outputs would be nothing but noise.

Between a layer and the next stand operations without parameters, and many of them pick: a ReLU lets
nothing through where it is off, a maximum over a window one entry of it. An entry of the layer's
outputs with no way through has the derivative zero, and that is known from the values alone. So
this follows the outputs through what treats entries for themselves, moves them or picks among them,
up to the first operation that mixes them or has a parameter in it, and pulls random cotangents back
through that much. What comes out is zero where every way is flat, and almost surely nowhere else.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
from jax.extend.core import primitives

from fwdgrad.core.elementwise import is_elementwise
from fwdgrad.core.jaxprs import body_of, evaluate, is_inexact, variables
from fwdgrad.core.trees import Array

Variable = Any  # jax.extend.core.Var

_MOVING = {
    p.name
    for p in (
        primitives.transpose_p, primitives.reshape_p, primitives.broadcast_in_dim_p,
        primitives.squeeze_p, primitives.rev_p, primitives.slice_p, primitives.dynamic_slice_p,
        primitives.pad_p, primitives.concatenate_p,
    )
} | {"split", "stack"}  # fmt: skip
_PICKING = {
    p.name
    for p in (
        primitives.reduce_max_p, primitives.reduce_min_p, primitives.reduce_window_max_p,
        primitives.reduce_window_min_p, primitives.clamp_p,
    )
}  # fmt: skip


class Following(NamedTuple):
    """What a value goes through before anything mixes its entries.

    Attributes:
      variable: the value.
      equations: these operations, in order.
      outputs: what they make that others read.
    """

    variable: Variable
    equations: list[Any]
    outputs: list[Variable]


def following(
    jaxpr: Any,
    variable: Variable,
    start: int,
    with_parameters: Set[Variable],
    needed: Sequence[bool],
) -> Following | None:
    """What a value goes through, or None if nothing can be flat there.

    Args:
      jaxpr: a Jaxpr without calls.
      variable: the value.
      start: from which equation on; what the others make is known.
      with_parameters: variables that are parameters, or are made of them alone.
      needed: of each equation, whether a tangent of its outputs goes on to the loss.
    """
    known = {*jaxpr.constvars, *jaxpr.invars, *(v for e in jaxpr.eqns[:start] for v in e.outvars)}
    known -= with_parameters
    made, equations, read_outside = {variable}, [], set(variables(jaxpr.outvars[:1]))
    for equation, matters in zip(jaxpr.eqns[start:], needed[start:], strict=True):
        read = set(variables(equation.invars))
        if _keeps_apart(equation) and read <= made | known:
            equations.append(equation)
            (made if read & made else known).update(equation.outvars)
        elif matters:
            read_outside |= read
    outputs = [
        v for e in equations for v in e.outvars if v in made & read_outside and is_inexact(v)
    ]
    equations = _making(outputs, equations)
    if variable in read_outside or not equations:
        return None
    return Following(variable, equations, outputs)


def _making(outputs: Sequence[Variable], equations: Sequence[Any]) -> list[Any]:
    """Those of the equations that the outputs are made by."""
    wanted, making = set(outputs), []
    for equation in reversed(equations):
        if wanted.intersection(equation.outvars):
            making.append(equation)
            wanted.update(variables(equation.invars))
    return making[::-1]


def _keeps_apart(equation: Any) -> bool:
    """Whether an equation treats entries for themselves, moves them or picks among them."""
    if is_elementwise(equation) or equation.primitive.name in _MOVING | _PICKING:
        return True
    body = body_of(equation)
    return body is not None and all(map(_keeps_apart, body.eqns))


def has_effect(after: Following, values: Mapping[Variable, Any]) -> Array:
    """Of each entry of the value whether it has any effect on what comes after it.

    Args:
      after: what comes after it.
      values: of all that is known where the value is.
    """

    def run(x: Array) -> list[Array]:
        reached = {**values, after.variable: x}
        evaluate(after.equations, reached)
        return [reached[v] for v in after.outputs]

    outputs, pull_back = jax.vjp(run, values[after.variable])
    keys = jax.random.split(jax.random.key(0), len(outputs))
    cotangents = [
        jax.random.uniform(key, y.shape, y.dtype, minval=0.5, maxval=1.5)
        for key, y in zip(keys, outputs, strict=True)
    ]
    (slopes,) = pull_back(cotangents)
    return slopes != 0
