"""Reading jaxprs: what an equation calls and computes, and where in the user's code it stands.

How a version of JAX lays out its equations is in `fwdgrad.util.jax_internals`; all else that is
used of JAX's insides is behind `jax.extend` and in the fields of equations that JAX's own guide to
writing interpreters uses.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.util import validation
from fwdgrad.util.jax_internals import (
    Equation,
    Program,
    is_custom_vjp,
    is_inexact,
    read_program,
    uses_references,
)
from fwdgrad.util.programs import evaluate_equation
from fwdgrad.util.source_info import context_of, place
from fwdgrad.util.tracers import trace_state


def variables(atoms: Sequence[Any]) -> list[Any]:
    """Return the atoms that are variables, not literals."""
    return [v for v in atoms if not isinstance(v, jex_core.Literal)]


def read_atoms(atoms: Sequence[Any], values: Mapping[Any, Any]) -> list[Any]:
    """Return the values of variables and literals."""
    return [v.val if isinstance(v, jex_core.Literal) else values[v] for v in atoms]


def last_uses(equations: Sequence[Equation], kept: Container[Any] | None) -> list[list[Any]]:
    """Return for each equation the variables that no later one reads, without those in `kept`.

    An output that nothing reads is among those of its equation. If `kept` is None, all are kept.
    """
    uses: list[list[Any]] = [[] for _ in equations]
    if kept is not None:
        last = {v: i for i, e in enumerate(equations) for v in (*e.outvars, *e.reads)}
        for v, i in last.items():
            if v not in kept:
                uses[i].append(v)
    return uses


def evaluate(
    equations: Sequence[Equation], values: dict[Any, Any], kept: Container[Any] | None = None
) -> None:
    """Evaluate equations, adding the outputs to `values`, by variable.

    If `kept` is given, every other value is dropped after its last use.
    """
    for equation, used in zip(equations, last_uses(equations, kept), strict=True):
        operands = read_atoms(equation.invars, values)
        with context_of(equation):
            made = evaluate_equation(equation, operands)
            values.update(zip(equation.outvars, made, strict=True))
        del operands, made
        for v in used:
            values.pop(v, None)


def evaluated_by_equations(fun: Callable[..., Any], *args: Any) -> Any:
    """Return fun(*args); outside of `jit` by evaluating the equations of its trace.

    The loops of the trace are then programs that later calls find again, where JAX would compile
    the loops of a function that is not jitted in each call. A function that cannot be traced, or
    that works with mutable arrays, is called as it is.

    Args:
      fun: a function of pytrees of arrays that returns one.
      args: its arguments.
    """
    if trace_state() != (True, False):
        return fun(*args)
    try:
        traced, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        return fun(*args)
    if any(map(uses_references, traced.jaxpr.eqns)):
        return fun(*args)
    program = read_program(traced)
    values = program.environment(jax.tree.leaves(args))
    evaluate(program.eqns, values, kept=program.outvars)
    outputs = map(jnp.asarray, read_atoms(program.outvars, values))
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


class _Variable:
    """A variable of an inlined body, other in each call of the same body."""

    def __init__(self, aval: Any):
        self.aval = aval


def inlined(program: Program) -> Program:
    """Return a program with the equations of bodies in the place of calls.

    A call of a `custom_vjp` function stays one.
    """
    equations: list[Equation] = []
    constants = dict(zip(program.constvars, program.consts, strict=True))

    def read(atoms: Sequence[Any], names: Mapping[Any, Any]) -> list[Any]:
        return [v if isinstance(v, jex_core.Literal) else names.get(v, v) for v in atoms]

    def inline(program: Program, names: dict[Any, Any], is_body: bool) -> None:
        for equation in program.eqns:
            operands, made = read(equation.invars, names), equation.outvars
            outputs: Sequence[Any] = made
            if equation.body is not None and not is_custom_vjp(equation):
                inner = read_program(equation.body, equation)
                own = {v: _Variable(v.aval) for v in inner.constvars}
                constants.update(zip(own.values(), inner.consts, strict=True))
                own.update(zip(inner.invars, operands, strict=True))
                inline(inner, own, is_body=True)
                outputs = read(inner.outvars, own)
            else:
                if is_body:  # its variables are the same in each call
                    outputs = [_Variable(v.aval) for v in outputs]
                if is_body or names:
                    equation = equation.renamed(operands, outputs)
                equations.append(equation)
            if is_body or equation.body is not None:
                names.update(zip(made, outputs, strict=True))

    names: dict[Any, Any] = {}
    inline(program, names, is_body=False)
    outvars = read(program.outvars, names)
    return Program([*constants], program.invars, outvars, [*constants.values()], equations)


def reached(jaxpr: Any, active: Sequence[bool]) -> list[bool]:
    """Return for each output if it can have a tangent where the `active` inputs have one.

    It may say yes of an output whose tangent is zero, never no of one whose tangent is not.
    """
    variables = {v for v, a in zip(jaxpr.invars, active, strict=True) if a}
    for equation in jaxpr.eqns:
        if equation.primitive is not primitives.stop_gradient_p and any(
            not isinstance(v, jex_core.Literal) and v in variables for v in equation.invars
        ):
            variables.update(v for v in equation.outvars if is_inexact(v))
    return [not isinstance(v, jex_core.Literal) and v in variables for v in jaxpr.outvars]


def carried(
    jaxpr: Any, consts: Sequence[bool], init: Sequence[bool], xs: Sequence[bool]
) -> list[bool]:
    """Return for each value that a loop carries if it can have a tangent in some turn.

    That is the least fixed point of `reached` over the turns.

    Args:
      jaxpr: the body of the loop, (constants, carry, inputs) -> (carry, outputs).
      consts, init, xs: which of these, at the start, have one.
    """
    active = list(init)
    while True:
        outputs = reached(jaxpr, [*consts, *active, *xs])[: len(active)]
        after = [a or b for a, b in zip(active, outputs, strict=True)]
        if after == active:
            return active
        active = after


def derivative_of_kernel(equation: Any) -> AbstractContextManager[None]:
    """Return a context that notes of errors inside of it which kernel has no derivative."""
    return validation.error_note(
        f"JAX cannot differentiate the Pallas kernel at {place(equation)}, which a tangent "
        "reaches: kernels that read integers, write to scratch memory, branch, alias their "
        "operands or run on a mesh have no forward mode. Give it a rule by jax.custom_jvp."
    )
