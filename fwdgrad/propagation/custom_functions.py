"""Functions with a derivative of their own: `jax.custom_jvp` and `jax.custom_vjp`.

The rule of a custom_jvp function is the derivative that forward mode uses. A custom_vjp function
has none. Where tangents reach a call of one, the body of the function stands in the place of the
call (`entered`), and its reverse rule is not used; or the call is an error.
"""

from typing import Any

import jax
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.util.jax_internals import (
    Equation,
    Program,
    bind,
    called_jaxpr,
    find_custom_vjp,
    function_name,
    is_custom_vjp,
    is_inexact,
)
from fwdgrad.util.source_info import place
from fwdgrad.util.tracers import is_leaked


def entered(program: Program, num_leaves: int) -> Program:
    """Return a program without the custom_vjp calls that tangents of its first inputs reach."""
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
        "enter_custom_vjp=False out, to differentiate the body of the function."
    )


def custom_jvp_rule(equation: Any) -> Any:
    """Return the ClosedJaxpr of a custom_jvp with its rule: from primals and tangents to both."""
    moving = [not isinstance(v, jex_core.Literal) and is_inexact(v) for v in equation.invars]
    avals = [v.aval for v in equation.invars]

    def push(primals: list[Any], tangents: list[Any]) -> Any:
        def run(*xs: Any) -> Any:
            rest = iter(xs)
            return bind(
                equation, [next(rest) if m else x for m, x in zip(moving, primals, strict=True)]
            )

        return jax.jvp(run, [x for m, x in zip(moving, primals, strict=True) if m], tangents)

    primals = [
        v.val if isinstance(v, jex_core.Literal) else a
        for v, a in zip(equation.invars, avals, strict=True)
    ]
    tangents = [a for m, a in zip(moving, avals, strict=True) if m]
    return jax.make_jaxpr(push)(primals, tangents)


def has_staged_rule(equation: Any) -> bool:
    """Return True if the rule of a custom_jvp can still be applied after the function was traced.

    It cannot if it uses a value of that trace which is no argument, or if it gives an output a
    tangent of another shape, as where the tangent alone is mapped over.
    """
    try:
        rule = custom_jvp_rule(equation)
    except jax.errors.UnexpectedTracerError:
        return False
    shapes = [v.aval.shape for v in equation.outvars]
    fits = [x.shape for x in rule.out_avals] == [*shapes, *shapes]
    return fits and not any(map(is_leaked, rule.consts))


class CannotBeStagedError(TypeError):
    """A part of the loss has a derivative that cannot be had from the loss's jaxpr.

    The rule of a `custom_jvp` function may use a value of its surroundings, such as a key or an
    array that is mapped over, that is no argument of it; and it may give its output a tangent of
    another shape where it is mapped. JAX can differentiate such a loss while it runs, and not from
    its jaxpr, by `jax.grad(jax.jit(loss))` neither.
    """


def check_staged_rule(equation: Equation) -> None:
    """Raise CannotBeStagedError unless the rule of a custom_jvp can be applied after tracing."""
    if not has_staged_rule(equation):
        raise CannotBeStagedError(
            f"the rule of the custom_jvp function {function_name(equation)}, called at "
            f"{place(equation)}, cannot be applied after fun was traced: it uses a value that is "
            "no argument of the function, or gives a tangent of another shape where it is mapped. "
            "Pass what the rule uses as arguments; or use space=Weights(), which then pushes the "
            "whole of fun forward by jax.jvp."
        )
