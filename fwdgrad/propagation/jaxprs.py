"""Reading jaxprs: what an equation calls and computes, and where in the user's code it stands.

How a version of JAX lays out its equations is in `fwdgrad.util.jax_internals`; all else that is
used of JAX's insides is behind `jax.extend` and in the fields of equations that JAX's own guide to
writing interpreters uses.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.extend import source_info_util
from jax.extend.core import primitives

from fwdgrad.util.jax_internals import (
    bind,
    called_jaxpr,
    custom_jvp_body,
    entered_jaxprs,
    is_custom_vjp,
    is_leaked,
    trace_state,
)
from fwdgrad.util.programs import evaluate_equation

Equation = Any  # jax.extend.core.JaxprEqn


def variables(atoms: Sequence[Any]) -> list[Any]:
    """The atoms that are variables, not literals."""
    return [v for v in atoms if not isinstance(v, jex_core.Literal)]


def evaluate(
    equations: Sequence[Equation], values: dict[Any, Any], kept: Sequence[Any] | None = None
) -> None:
    """Evaluate equations, adding what they compute to `values`, by variable.

    If `kept` is given, every other value is dropped when it has been read for the last time.
    """
    last = {v: i for i, e in enumerate(equations) for v in (*e.outvars, *variables(e.invars))}
    for i, equation in enumerate(equations):
        operands = [_value_of(atom, values) for atom in equation.invars]
        with context_of(equation):
            made = evaluate_equation(equation, operands)
            values.update(zip(equation.outvars, made, strict=True))
        if kept is not None:
            del operands, made
            for v in (*variables(equation.invars), *equation.outvars):
                if last[v] == i and v not in kept:
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
    if uses_references(traced.jaxpr):
        return fun(*args)
    values = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
    values.update(zip(traced.jaxpr.invars, jax.tree.leaves(args), strict=True))
    evaluate(traced.jaxpr.eqns, values, kept=variables(traced.jaxpr.outvars))
    outputs = [_value_of(atom, values) for atom in traced.jaxpr.outvars]
    return jax.tree.unflatten(jax.tree.structure(shapes), map(jnp.asarray, outputs))


def _value_of(atom: Any, values: Mapping[Any, Any]) -> Any:
    return atom.val if isinstance(atom, jex_core.Literal) else values[atom]


def inlined(jaxpr: Any) -> Any:
    """Return the same ClosedJaxpr with the bodies of calls in the place of the calls.

    A call of a `custom_vjp` function stays one.
    """

    def run(jaxpr: Any, inputs: Sequence[Any]) -> list[Any]:
        values = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
        values.update(zip(jaxpr.jaxpr.invars, inputs, strict=True))
        for e in jaxpr.jaxpr.eqns:
            body = called_jaxpr(e)
            if body is None or is_custom_vjp(e):
                evaluate([e], values)
                continue
            operands = [v.val if isinstance(v, jex_core.Literal) else values[v] for v in e.invars]
            with context_of(e):
                values.update(zip(e.outvars, run(body, operands), strict=True))
        return [
            v.val if isinstance(v, jex_core.Literal) else values[v] for v in jaxpr.jaxpr.outvars
        ]

    # Avals, not shapes and dtypes: an array of `shard_map` has the axes too over which it varies.
    return jax.make_jaxpr(lambda *inputs: run(jaxpr, inputs))(*jaxpr.in_avals)


def body_of(equation: Any) -> Any:
    """The Jaxpr that an equation calls and does nothing else, or None; that of a custom_jvp too.

    Not that of a custom_vjp, which has no forward mode where it is not entered.
    """
    body = custom_jvp_body(equation)
    if body is None and not is_custom_vjp(equation):
        body = called_jaxpr(equation)
    return None if body is None else body.jaxpr


# Where the innermost equation with a place, of those that are being evaluated, comes from.
_call_around: ContextVar[Any] = ContextVar("fwdgrad_call_around", default=None)


def custom_jvp_rule(equation: Equation) -> Any:
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


def has_staged_rule(equation: Equation) -> bool:
    """Whether the rule of a custom_jvp can still be applied after the function was traced.

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


def context_of(equation: Equation) -> ExitStack:
    """The context in which to evaluate the equation: names and places as in the user's code.

    Equations in the body of one of JAX's own functions may have no place; theirs is that of the
    call, if it is evaluated in this context.
    """
    info = equation.source_info
    names = source_info_util.current_name_stack() + info.name_stack
    stack = ExitStack()
    if source_info_util.summarize(info, num_frames=1) or (call := _call_around.get()) is None:
        call = info
    stack.callback(_call_around.reset, _call_around.set(call))
    stack.enter_context(source_info_util.user_context(call.traceback, name_stack=names))
    stack.enter_context(equation.ctx.manager)
    if not jax.config.jax_enable_x64 and _has_64_bits(equation):  # type: ignore[attr-defined]
        stack.enter_context(jax.enable_x64(True))
    return stack


def _has_64_bits(equation: Equation) -> bool:
    """Whether an operand or output is a number of 64 bits, or a complex number of twice as many."""
    dtypes = (getattr(v.aval, "dtype", None) for v in (*equation.invars, *equation.outvars))
    return any(str(dtype) in _OF_64_BITS for dtype in dtypes)


_OF_64_BITS = {"float64", "complex128", "int64", "uint64"}


# Folders whose code is no user's. The models of `fwdgrad.problems` count as a user's.
_ROOT = os.path.dirname(os.path.dirname(__file__))
_LIBRARIES = (
    f"{os.sep}site-packages{os.sep}",
    *(
        os.path.join(_ROOT, floor) + os.sep
        for floor in ("util", "tangents", "propagation", "perturbation", "estimators", "modes")
    ),
    os.path.join(_ROOT, "diagnostics") + os.sep,
)


def place(equation: Equation) -> str:
    """Where in the user's code the equation comes from: 'models/mlp.py:12:3 (MLP.__call__)'.

    That is the innermost frame outside of installed packages and of this one, so it names the line
    of a model and not the line of the library whose layer it uses.
    """
    frames = _frames(equation.source_info)
    if frames == [""] and (call := _call_around.get()) is not None:
        frames = _frames(call)
    own = [frame for frame in frames if not any(library in frame for library in _LIBRARIES)]
    file, colon, rest = (own or frames)[-1].partition(":")
    return os.sep.join(file.split(os.sep)[-2:]) + colon + rest


def _frames(info: Any) -> list[str]:
    return source_info_util.summarize(info, num_frames=100).split("\n")


def uses_references(jaxpr: Any) -> bool:
    """Whether a jaxpr makes or reads mutable arrays (`jax.new_ref`), itself or where it is entered.

    What an equation that is not entered does with memory of its own, such as a kernel, is left to
    the rules of JAX.
    """
    return any(
        any(isinstance(v.aval, jax.ref.AbstractRef) for v in (*equation.invars, *equation.outvars))
        or any(map(uses_references, entered_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def is_inexact(variable: Any) -> bool:
    """Whether a variable of a jaxpr is real or complex, so that it can have a tangent."""
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def reached(jaxpr: Any, active: Sequence[bool]) -> list[bool]:
    """Which outputs of a jaxpr can have a tangent if the inputs that are `active` have one.

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
    """Which values that a loop carries can have a tangent in some turn: the least fixed point.

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
