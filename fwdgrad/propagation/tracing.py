"""Tracing a loss for propagation: its jaxpr, or the reason why there is none."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.util import validation
from fwdgrad.util.jax_internals import (
    Equation,
    Program,
    called_jaxpr,
    find_custom_vjp,
    function_name,
    is_custom_vjp,
    is_inexact,
    read_program,
    uses_references,
)
from fwdgrad.util.source_info import place
from fwdgrad.util.trees import Array, FlatAux


@dataclass(frozen=True)
class Trace:
    """A loss, traced at its parameters.

    Attributes:
      flat: the loss as a function of the parameters, a list, and what else it was traced at; it
        returns the loss and the arrays of aux.
      program: its jaxpr, whose first inputs are the parameters and first output the loss. None if
        the loss cannot be traced, or works with mutable arrays.
      why_none: the reason why there is no program, or ''.
      uses_references: True if the loss works with mutable arrays.
      error: the error of a loss that cannot be traced.
    """

    flat: FlatAux
    program: Program | None
    why_none: str = ""
    uses_references: bool = False
    error: Exception | None = None

    def required(self, needed_by: str) -> Program:
        """Return the program; raise TypeError if there is none, with the option that needs it."""
        remedy = "Write it with jax.numpy.where or jax.lax.cond, or use space=Weights()"
        if self.error is not None:
            raise TypeError(
                f"fun cannot be traced, which {needed_by} needs: its Python code asks for the "
                f"value of an array (see the error above). {remedy}."
            ) from self.error
        if self.uses_references:
            raise TypeError(
                f"fun works with mutable arrays (jax.new_ref), through which {needed_by} does not "
                f"follow noise. {remedy}."
            )
        assert self.program is not None
        return self.program


def trace(
    fun: Callable[..., Any], leaves: Sequence[Array], *others: Any, enter_custom_vjp: bool = True
) -> Trace:
    """Trace a loss.

    Args:
      fun: `fun(leaves, *others)` returns (loss, aux).
      leaves: the parameters.
      others: pytrees of arrays.
      enter_custom_vjp: replace calls of `custom_vjp` functions that tangents of the parameters
        reach by what the functions compute. If not, they stay, and are an error where a tangent is
        pushed through them.
    """
    flat = FlatAux(fun)
    try:
        jaxpr = jax.make_jaxpr(lambda *args: flat(*args))(leaves, *others)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        return Trace(flat, None, "its Python code asks for the value of a parameter", error=error)
    if any(map(uses_references, jaxpr.jaxpr.eqns)):
        return Trace(flat, None, "it works with mutable arrays", uses_references=True)
    program = read_program(jaxpr)
    return Trace(flat, _entered(program, len(leaves)) if enter_custom_vjp else program)


def _entered(program: Program, num_leaves: int) -> Program:
    """Return a program without the custom_vjp calls that tangents of its first inputs reach."""
    if not any(equation.custom_vjp for equation in program.eqns):
        return program
    reached = set(program.invars[:num_leaves])
    equations = []
    for equation in program.eqns:
        if equation.primitive is not primitives.stop_gradient_p and not reached.isdisjoint(
            equation.reads
        ):
            reached.update(filter(is_inexact, equation.outvars))
            equation = Equation(without_custom_vjp(equation.source))
        equations.append(equation)
    return program._replace(eqns=equations)


def without_custom_vjp(equation: Any) -> Any:
    """Return the equation with each such call replaced by one of what the function computes."""
    if find_custom_vjp(equation) is None:
        return equation
    if (body := called_jaxpr(equation)) is not None and not _is_plain(equation):
        params = {"call_jaxpr": _without_custom_vjp(body)}
        return equation.replace(primitive=primitives.closed_call_p, params=params)
    params = jax.tree.map(_without_custom_vjp, equation.params, is_leaf=_is_jaxpr)
    return equation.replace(params=params)


def _is_plain(equation: Any) -> bool:
    """Return True for a call that has its jaxpr among its parameters, to be replaced there."""
    return not is_custom_vjp(equation) and any(map(_is_jaxpr, equation.params.values()))


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, (jex_core.Jaxpr, jex_core.ClosedJaxpr))


def _without_custom_vjp(x: Any) -> Any:
    """Return a jaxpr without custom_vjp calls, and any other parameter of an equation unchanged."""
    if not _is_jaxpr(x):
        return x
    if isinstance(x, jex_core.Jaxpr):  # in JAX 0.11 and later closed ones, too
        return x.replace(eqns=[*map(without_custom_vjp, x.eqns)])
    return jex_core.ClosedJaxpr(_without_custom_vjp(x.jaxpr), x.consts)


def raise_for_custom_vjp(equation: Any) -> None:
    """Raise the TypeError that names the `custom_vjp` function of an equation, and its place."""
    raise TypeError(
        "fun calls a function that is defined by jax.custom_vjp and so has no forward-mode "
        f"rule: {function_name(equation)}, called at {place(equation)}. Define it by "
        "jax.custom_jvp instead (JAX derives the reverse mode from that), or leave "
        "enter_custom_vjp=False out, to differentiate what it computes."
    )


def derivative_of_kernel(equation: Any) -> AbstractContextManager[None]:
    """Return a context that notes of errors inside of it which kernel has no derivative."""
    return validation.error_note(
        f"JAX cannot differentiate the Pallas kernel at {place(equation)}, which a tangent "
        "reaches: kernels that read integers, write to scratch memory, branch, alias their "
        "operands or run on a mesh have no forward mode. Give it a rule by jax.custom_jvp."
    )
