"""Tracing a loss for propagation: errors where it has no jaxpr, or a part no forward mode."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

from fwdgrad.propagation.jaxprs import place, uses_references
from fwdgrad.util import validation
from fwdgrad.util.jax_internals import function_name


def checked_jaxpr(fun: Callable[..., Any], *args: Any, needed_by: str) -> Any:
    """The ClosedJaxpr of fun; raises TypeError if there is none that can be propagated."""
    remedy = "Write it with jax.numpy.where or jax.lax.cond, or use space=Weights()"
    try:
        jaxpr = jax.make_jaxpr(fun)(*args)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            f"fun cannot be traced, which {needed_by} needs: its Python code asks for the value of "
            f"an array (see the error above). {remedy}."
        ) from error
    if uses_references(jaxpr.jaxpr):
        raise TypeError(
            f"fun works with mutable arrays (jax.new_ref), through which {needed_by} does not "
            f"follow noise. {remedy}."
        )
    return jaxpr


def raise_for_custom_vjp(equation: Any) -> None:
    """Raises the TypeError that names the `custom_vjp` function of an equation, and its place."""
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
