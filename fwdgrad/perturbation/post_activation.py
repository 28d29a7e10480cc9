"""Post-activations: parameter-free operations between a pre-activation and the next layer.

They lower the variance of activity perturbation in two ways.

Some narrow, such as pooling or a mean over positions. If all entries have about the same weight in
the narrower value, noise enters there: it has fewer entries. The estimate is pulled back exactly
through these few operations.

Many select: a ReLU passes nothing where it is off, a maximum over a window passes one entry. An
entry that nothing passes has the derivative zero. The values alone tell, so the noise of such an
entry is masked.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.perturbation.sites import Plan, Site, Variable
from fwdgrad.propagation.facts import fact_of, is_elementwise
from fwdgrad.propagation.jaxprs import evaluate, variables
from fwdgrad.util.jax_internals import Equation, Program, is_inexact, read_program
from fwdgrad.util.shapes import surely_less
from fwdgrad.util.sharding import varying_as
from fwdgrad.util.trees import Array


@dataclass(frozen=True)
class PostActivation:
    """Parameter-free operations between a pre-activation z and the next layer.

    Attributes:
      variable: z.
      equations: the operations, in order.
      outputs: the results that other equations read.
      narrows: True if there is one output, with fewer entries than z. Noise enters there.
    """

    variable: Variable
    equations: list[Equation]
    outputs: list[Variable]
    narrows: bool

    @property
    def noisy(self) -> Variable:
        """The variable at which noise enters."""
        return self.outputs[0] if self.narrows else self.variable

    @property
    def read(self) -> set[Variable]:
        """The variables that the operations read, z included."""
        made = {v for e in self.equations for v in e.outvars}
        return {v for e in self.equations for v in e.reads} - made

    @property
    def is_elementwise(self) -> bool:
        """True if each entry of an output depends on the same entry of z alone."""
        return all(map(is_elementwise, self.equations)) and all(
            v.aval.shape == self.variable.aval.shape for v in self.outputs
        )

    def has_effect(self, values: Mapping[Variable, Any]) -> Array:
        """Return the mask of the noise: False at entries whose derivative is zero.

        A derivative along random tangents, or pulled back from random cotangents, is zero where
        every path through the operations is flat, and almost never elsewhere. Half precision has
        few numbers, and two may cancel: there several draws are made.
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
        """Return the function from the derivative at the entry of the noise to that by z."""
        if not self.narrows:
            return lambda cotangent: cotangent
        (output,), pull_back = jax.vjp(self.run(values), values[self.variable])
        return lambda cotangent: pull_back([cotangent.astype(output.dtype)])[0]

    def run(self, values: Mapping[Variable, Any]) -> Callable[[Array], list[Array]]:
        """Return the function from z to the outputs."""

        def run(z: Array) -> list[Array]:
            reached = {**values, self.variable: z}
            evaluate(self.equations, reached)
            return [reached[v] for v in self.outputs]

        return run


def find_post_activation(program: Program, site: Site, plan: Plan) -> PostActivation | None:
    """Return the post-activation of a site, or None if it neither narrows nor masks.

    Noise of a last site is not moved to a narrower value: that would be the loss itself. Nor is
    noise moved into the head, which the noise of last sites reaches.

    Args:
      program: of one example's loss, inlined (`fwdgrad.propagation.jaxprs`).
      site: the site.
      plan: the one it is of.
    """
    start = site.operand[0] if site.operand else site.equations[-1] + 1
    if not site.is_last:
        head = {program.eqns[i] for i in plan.head}

        def narrows(equation: Equation) -> bool:
            return equation not in head and _narrows(equation)

        equations, outputs = _passed(program, site.variable, start, plan, narrows)
        if len(outputs) == 1 and surely_less(outputs[0].aval.size, site.variable.aval.size):
            found = PostActivation(site.variable, equations, outputs, narrows=True)
            if _goes_back(found):
                return found
    equations, outputs = _passed(program, site.variable, start, plan, _keeps_apart)
    found = PostActivation(site.variable, equations, outputs, narrows=False)
    return found if outputs and _goes_back(found) else None


def _passed(
    program: Program, variable: Variable, start: int, plan: Plan, passes: Callable[[Equation], bool]
) -> tuple[list[Equation], list[Variable]]:
    """Return the equations that a value passes, and their outputs that other equations read.

    There are none if another equation reads the value itself.
    """
    before = [v for e in program.eqns[:start] for v in e.outvars]
    known = {*program.constvars, *program.invars, *before}
    known -= plan.with_parameters
    made, equations, read_outside = {variable}, [], set(variables(program.outvars[:1]))
    for equation, needed in zip(program.eqns[start:], plan.needed[start:], strict=True):
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
    return equations_making(outputs, equations), outputs


def equations_making(outputs: Iterable[Variable], equations: Sequence[Equation]) -> list[Equation]:
    """Return the equations that contribute to the outputs."""
    wanted, making = set(outputs), []
    for equation in reversed(equations):
        if wanted.intersection(equation.outvars):
            making.append(equation)
            wanted.update(equation.reads)
    return making[::-1]


def _is_complex(equation: Equation) -> bool:
    return any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in equation.outvars)


def _keeps_apart(equation: Equation) -> bool:
    """Return True if an equation is elementwise, or moves or selects entries."""
    if is_elementwise(equation) or fact_of(equation.primitive).selects:
        return True
    return _all_inside(_keeps_apart, equation)


def _narrows(equation: Equation) -> bool:
    """Return True if an equation moves, selects or sums, or its slopes are about equal."""
    fact = fact_of(equation.primitive)
    if fact.multiplies and fact.elementwise:
        return any(v.aval.shape == () for v in equation.invars)
    # Very unequal slopes may raise the variance of noise at the narrower value: entries with small
    # slopes get as much noise as the others, and large slopes amplify it on the way back.
    if fact.selects or fact.even_slopes:
        return True
    return _all_inside(_narrows, equation)


def _all_inside(passes: Callable[[Equation], bool], equation: Equation) -> bool:
    """Return True of a call if all equations that it evaluates pass."""
    function = equation.function
    return function is not None and all(map(passes, read_program(function).eqns))


def _goes_back(found: PostActivation) -> bool:
    """Return True if reverse mode works; the rule of a custom_jvp may have no transpose."""
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
