"""Tracing a loss for propagation: its jaxpr, or the reason why there is none."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.propagation.jaxprs import uses_references, variables
from fwdgrad.util import validation
from fwdgrad.util.jax_internals import (
    called_jaxpr,
    function_name,
    inner_jaxprs,
    is_custom_vjp,
    is_inexact,
)
from fwdgrad.util.source_info import place
from fwdgrad.util.trees import Array, FlatAux


@dataclass(frozen=True)
class Trace:
    """A loss, traced at its parameters.

    Attributes:
      flat: the loss as a function of the parameters, a list, and what else it was traced at; it
        returns the loss and the arrays of aux.
      jaxpr: its ClosedJaxpr, whose first inputs are the parameters and first output the loss. None
        if the loss cannot be traced, or works with mutable arrays.
      why_none: the reason why there is no jaxpr, or ''.
      uses_references: True if the loss works with mutable arrays.
      error: the error of a loss that cannot be traced.
    """

    flat: FlatAux
    jaxpr: Any
    why_none: str = ""
    uses_references: bool = False
    error: Exception | None = None

    def required(self, needed_by: str) -> Any:
        """Return the jaxpr; raise TypeError if there is none, with the option that needs it."""
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
        return self.jaxpr


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
    if uses_references(jaxpr.jaxpr):
        return Trace(flat, None, "it works with mutable arrays", uses_references=True)
    return Trace(flat, _entered(jaxpr, len(leaves)) if enter_custom_vjp else jaxpr)


def _entered(closed: Any, num_leaves: int) -> Any:
    """Return a ClosedJaxpr without the custom_vjp calls that tangents of its first inputs reach."""
    jaxpr = closed.jaxpr
    reached = set(jaxpr.invars[:num_leaves])
    equations = []
    for equation in jaxpr.eqns:
        if equation.primitive is not primitives.stop_gradient_p and not reached.isdisjoint(
            variables(equation.invars)
        ):
            reached.update(filter(is_inexact, equation.outvars))
            equation = without_custom_vjp(equation)
        equations.append(equation)
    if all(new is old for new, old in zip(equations, jaxpr.eqns, strict=True)):
        return closed
    return jex_core.ClosedJaxpr(jaxpr.replace(eqns=equations), closed.consts)


def find_custom_vjp(equation: Any) -> Any | None:
    """Return the first call of a `custom_vjp` function in an equation, however deep, or None."""
    if is_custom_vjp(equation):
        return equation
    inner = (e for jaxpr in inner_jaxprs(equation) for e in jaxpr.eqns)
    return next((found for e in inner if (found := find_custom_vjp(e)) is not None), None)


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
