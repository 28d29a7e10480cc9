"""What a layer's outputs go through before the next layer: where noise goes in, and where not.

Between a layer and the next stand operations without parameters. Some narrow: a pooling layer, a
mean over positions. The fewer the entries the less the noise, so it goes in where the outputs come
out of all this, if that is narrower, and what is found there is pulled back through these few
operations exactly. And many pick: a ReLU lets nothing through where it is off, a maximum over a
window one entry of it. An entry with no way through has the derivative zero, as is known from the
values alone, and noise in it would be nothing but noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import primitives

from fwdgrad.core.elementwise import is_elementwise
from fwdgrad.core.jaxprs import body_of, evaluate, is_inexact, variables
from fwdgrad.core.sites import Plan, Site, Variable
from fwdgrad.core.trees import Array

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
_SUMMING = frozenset({primitives.reduce_sum_p.name, primitives.reduce_window_sum_p.name})


@dataclass(frozen=True)
class Following:
    """What a layer's outputs z go through.

    Attributes:
      variable: z.
      equations: the operations, in order.
      outputs: what they make that others read.
      narrows: whether that is one value with fewer entries than z, so that noise goes in there.
    """

    variable: Variable
    equations: list[Any]
    outputs: list[Variable]
    narrows: bool

    @property
    def noisy(self) -> Variable:
        """Where noise goes in."""
        return self.outputs[0] if self.narrows else self.variable

    @property
    def read(self) -> set[Variable]:
        """What has to be known, z included."""
        made = {v for e in self.equations for v in e.outvars}
        return {v for e in self.equations for v in variables(e.invars)} - made

    def has_effect(self, values: Mapping[Variable, Any]) -> Array:
        """Of each entry with noise whether there is a way from z through it.

        A derivative along random tangents, or one pulled back from random cotangents, is zero where
        every way is flat, and almost surely nowhere else.
        """
        z = values[self.variable]
        if self.narrows:
            _, (slopes,) = jax.jvp(self._run(values), (z,), tuple(_random([z])))
            return slopes != 0
        outputs, pull_back = jax.vjp(self._run(values), z)
        (slopes,) = pull_back(_random(outputs))
        return slopes != 0

    def pull_back(self, values: Mapping[Variable, Any]) -> Callable[[Array], Array]:
        """From an estimate of the derivative where noise goes in to one by z."""
        if not self.narrows:
            return lambda cotangent: cotangent
        (output,), pull_back = jax.vjp(self._run(values), values[self.variable])
        return lambda cotangent: pull_back([cotangent.astype(output.dtype)])[0]

    def _run(self, values: Mapping[Variable, Any]) -> Callable[[Array], list[Array]]:
        def run(z: Array) -> list[Array]:
            reached = {**values, self.variable: z}
            evaluate(self.equations, reached)
            return [reached[v] for v in self.outputs]

        return run


def find_following(jaxpr: Any, site: Site, plan: Plan) -> Following | None:
    """What follows a site's value, or None if nothing is to be had of it.

    A last site's is not narrowed: that would end in the loss itself.

    Args:
      jaxpr: a Jaxpr without calls.
      site: the site.
      plan: the one it is of.
    """
    picking = _following(jaxpr, site, plan, frozenset())
    narrowing = None if site.is_last else _following(jaxpr, site, plan, _SUMMING)
    return narrowing if narrowing is not None and narrowing.narrows else picking


def _following(jaxpr: Any, site: Site, plan: Plan, more: frozenset[str]) -> Following | None:
    """What follows, of operations that keep entries apart or are among `more`."""
    start = site.operand[0] if site.operand else site.equations[-1] + 1
    known = {*jaxpr.constvars, *jaxpr.invars, *(v for e in jaxpr.eqns[:start] for v in e.outvars)}
    known -= plan.with_parameters
    made, equations, read_outside = {site.variable}, [], set(variables(jaxpr.outvars[:1]))
    for equation, needed in zip(jaxpr.eqns[start:], plan.needed[start:], strict=True):
        read = set(variables(equation.invars))
        if _passes(equation, more) and read <= made | known:
            equations.append(equation)
            (made if read & made else known).update(equation.outvars)
        elif needed:
            read_outside |= read
    outputs = [
        v for e in equations for v in e.outvars if v in made & read_outside and is_inexact(v)
    ]
    equations = _making(outputs, equations)
    if site.variable in read_outside or not equations:
        return None
    narrows = len(outputs) == 1 and outputs[0].aval.size < site.variable.aval.size
    return Following(site.variable, equations, outputs, narrows and not site.is_last)


def _making(outputs: Sequence[Variable], equations: Sequence[Any]) -> list[Any]:
    """Those of the equations that the outputs are made by."""
    wanted, making = set(outputs), []
    for equation in reversed(equations):
        if wanted.intersection(equation.outvars):
            making.append(equation)
            wanted.update(variables(equation.invars))
    return making[::-1]


def _passes(equation: Any, more: frozenset[str]) -> bool:
    """Whether it treats entries for themselves, moves them, picks, or is one of `more`."""
    if is_elementwise(equation) or equation.primitive.name in _MOVING | _PICKING | more:
        return True
    body = body_of(equation)
    return body is not None and all(_passes(e, more) for e in body.eqns)


def _random(like: Sequence[Array]) -> list[Array]:
    keys = jax.random.split(jax.random.key(0), len(like))
    return [
        jax.random.uniform(key, x.shape, x.dtype, minval=0.5, maxval=1.5)
        for key, x in zip(keys, like, strict=True)
    ]
