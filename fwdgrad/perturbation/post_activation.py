"""What a layer's outputs go through before the next layer: where noise goes in, and where not.

Between a layer and the next stand operations without parameters. Some narrow: a pooling layer, a
mean over positions. Where all entries weigh about the same in it there is less noise in the fewer
that come out, so it goes in there, and what is found there is pulled back through these few
operations exactly. And many pick: a ReLU lets nothing through where it is off, a maximum over a
window one entry of it. An entry with no way through has the derivative zero, as is known from the
values alone, and noise in it would be nothing but noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.perturbation.sites import Plan, Site, Variable
from fwdgrad.propagation.facts import fact_of, is_elementwise
from fwdgrad.propagation.jaxprs import evaluate, variables
from fwdgrad.util.jax_internals import Equation, is_inexact, read_program
from fwdgrad.util.shapes import surely_less
from fwdgrad.util.sharding import varying_as
from fwdgrad.util.trees import Array


@dataclass(frozen=True)
class PostActivation:
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
        return {v for e in self.equations for v in e.reads} - made

    @property
    def is_elementwise(self) -> bool:
        """Whether each entry of z goes its own way."""
        return all(map(is_elementwise, self.equations)) and all(
            v.aval.shape == self.variable.aval.shape for v in self.outputs
        )

    def has_effect(self, values: Mapping[Variable, Any]) -> Array:
        """Of each entry with noise whether there is a way from z through it.

        A derivative along random tangents, or pulled back from random cotangents, is zero where
        every way is flat, and hardly ever elsewhere. (In half precision there are few numbers, and
        two of them may cancel, so that there it takes several draws.)
        """
        z, run = values[self.variable], self.run(values)
        if self.is_elementwise:  # then none can cancel
            _, slopes = jax.jvp(run, (z,), (jnp.ones_like(z),))
            return jnp.stack([s != 0 for s in slopes]).any(0)
        outputs, push = jax.linearize(run, z)
        pull_back = jax.linear_transpose(push, z)
        effects = []
        for draw in range(1 if z.dtype.itemsize >= 4 else 4):
            key = jax.random.key(draw)
            if self.narrows:
                (slopes,) = push(*_random(key, [z]))
            else:
                (slopes,) = pull_back(_random(key, outputs))
            effects.append(slopes != 0)
        return jnp.stack(effects).any(0)

    def pull_back(self, values: Mapping[Variable, Any]) -> Callable[[Array], Array]:
        """From an estimate of the derivative where noise goes in to one by z."""
        if not self.narrows:
            return lambda cotangent: cotangent
        (output,), pull_back = jax.vjp(self.run(values), values[self.variable])
        return lambda cotangent: pull_back([cotangent.astype(output.dtype)])[0]

    def run(self, values: Mapping[Variable, Any]) -> Callable[[Array], list[Array]]:
        """The function from z to the outputs."""

        def run(z: Array) -> list[Array]:
            reached = {**values, self.variable: z}
            evaluate(self.equations, reached)
            return [reached[v] for v in self.outputs]

        return run


def find_post_activation(jaxpr: Any, site: Site, plan: Plan) -> PostActivation | None:
    """What follows a site's value, or None if nothing is to be had of it.

    A last site's is not narrowed: that would end in the loss itself. Nor is another's within what
    the last ones reach, where no noise goes in.

    Args:
      jaxpr: a Jaxpr without calls.
      site: the site.
      plan: the one it is of.
    """
    start = site.operand[0] if site.operand else site.equations[-1] + 1
    if not site.is_last:
        head = {id(jaxpr.eqns[i]) for i in plan.head}

        def narrows(equation: Any) -> bool:
            return id(equation) not in head and _narrows(equation)

        equations, outputs = _passed(jaxpr, site.variable, start, plan, narrows)
        if len(outputs) == 1 and surely_less(outputs[0].aval.size, site.variable.aval.size):
            found = PostActivation(site.variable, equations, outputs, narrows=True)
            if _goes_back(found):
                return found
    equations, outputs = _passed(jaxpr, site.variable, start, plan, _keeps_apart)
    found = PostActivation(site.variable, equations, outputs, narrows=False)
    return found if outputs and _goes_back(found) else None


def _passed(
    jaxpr: Any, variable: Variable, start: int, plan: Plan, passes: Callable[[Any], bool]
) -> tuple[list[Any], list[Variable]]:
    """The equations that a value goes through, and what others read of it, nothing if it itself."""
    known = {*jaxpr.constvars, *jaxpr.invars, *(v for e in jaxpr.eqns[:start] for v in e.outvars)}
    known -= plan.with_parameters
    made, equations, read_outside = {variable}, [], set(variables(jaxpr.outvars[:1]))
    for equation, needed in zip(jaxpr.eqns[start:], plan.needed[start:], strict=True):
        read = set(equation.reads)
        is_known = all(v in made or v in known for v in read)
        if is_known and passes(equation) and not _is_complex(equation):
            equations.append(equation)
            (made if read & made else known).update(equation.outvars)
        elif needed:
            read_outside |= read
    if variable in read_outside:
        return [], []
    made_here = [v for e in equations for v in e.outvars if v in made]
    outputs = [v for v in made_here if v in read_outside and is_inexact(v)]
    return _making(outputs, equations), outputs


def _making(outputs: Sequence[Variable], equations: Sequence[Any]) -> list[Any]:
    """Those of the equations that the outputs are made by."""
    wanted, making = set(outputs), []
    for equation in reversed(equations):
        if wanted.intersection(equation.outvars):
            making.append(equation)
            wanted.update(equation.reads)
    return making[::-1]


def _is_complex(equation: Any) -> bool:
    return any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in equation.outvars)


def _keeps_apart(equation: Any) -> bool:
    """Whether an equation treats entries for themselves, moves them or picks among them."""
    if is_elementwise(equation) or fact_of(equation.primitive).selects:
        return True
    return _all_inside(_keeps_apart, equation)


def _narrows(equation: Any) -> bool:
    """Whether an equation moves, picks or sums, or its slopes are about the same at all entries."""
    fact = fact_of(equation.primitive)
    if fact.multiplies and fact.elementwise:
        return any(v.aval.shape == () for v in equation.invars)
    # Where slopes are very unequal there may be more noise in what is narrower: entries that matter
    # little get as much of it as others, and some pull it back by more than others.
    if fact.selects or fact.even_slopes:
        return True
    return _all_inside(_narrows, equation)


def _all_inside(passes: Callable[[Equation], bool], equation: Equation) -> bool:
    """Return True of a call if all equations that it evaluates pass."""
    function = equation.function
    return function is not None and all(map(passes, read_program(function).eqns))


def _goes_back(found: PostActivation) -> bool:
    """Whether it can be differentiated in reverse, which a custom_jvp need not provide for."""
    if found.is_elementwise and not found.narrows:
        return True
    read = list(found.read)

    def back(*values: Array) -> Any:
        known = dict(zip(read, values, strict=True))
        outputs, pull_back = jax.vjp(found.run(known), known[found.variable])
        return pull_back(outputs)

    try:
        jax.eval_shape(back, *(v.aval for v in read))
    except (NotImplementedError, TypeError, ValueError):
        return False
    return True


def _random(key: Array, like: Sequence[Array]) -> list[Array]:
    keys = jax.random.split(key, len(like))
    return [
        varying_as(jax.random.uniform(k, x.shape, x.dtype, minval=0.5, maxval=1.5), x)
        for k, x in zip(keys, like, strict=True)
    ]
