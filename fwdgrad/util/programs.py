"""Compiled programs that later calls find again, for calls outside of `jax.jit`.

Outside of `jit` JAX evaluates operation by operation, and compiles each kind of operation once. But
a loop or a branch is an operation of its own: JAX knows it by the Python functions that make it,
and an estimator makes them anew in each call, as a loss does that is not jitted. Each call would
compile again, and what is compiled stays in memory.

So here the loop is traced, as JAX would trace it, and the program is looked up by the equations of
the trace instead of the functions. Arrays that it closes over are arguments of the program. The
loss is traced in each call, so it may depend on any Python state, as in `jax.value_and_grad`.

`scan`, `while_loop`, `map_over` and `switch` are JAX's, with this in front; under `jit` and under a
derivative they are JAX's alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.util.jax_internals import bind, inner_jaxprs, trace_state

_MOST_PROGRAMS = 64
_SMALL = 1024  # entries of an array that is compared by its values

_LOOPS = (primitives.scan_p, primitives.while_p, primitives.cond_p)
_WITH_RULES = (primitives.custom_jvp_call_p, primitives.custom_vjp_call_p)


def run_compiled(fun: Callable[..., Any], *args: Any) -> Any:
    """Return fun(*args), by a program that was compiled for the same equations before.

    Args:
      fun: a function of pytrees of arrays that returns one.
      args: its arguments.
    """
    evaluating, differentiating = trace_state()
    leaves = jax.tree.leaves(args)
    if not evaluating or (differentiating and _has_tracers(leaves)):
        return fun(*args)
    traced, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
    if differentiating and _has_tracers(traced.consts):
        return fun(*args)
    outputs = _program(_Content(traced.jaxpr))(traced.consts, leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def _has_tracers(values: Sequence[Any]) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in values)


def scan(
    body: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any, **options: Any
) -> tuple[Any, Any]:
    """`jax.lax.scan`."""
    return run_compiled(lambda init, xs: jax.lax.scan(body, init, xs, **options), init, xs)


def while_loop(condition: Callable[[Any], Any], body: Callable[[Any], Any], init: Any) -> Any:
    """`jax.lax.while_loop`."""
    return run_compiled(lambda init: jax.lax.while_loop(condition, body, init), init)


def map_over(body: Callable[[Any], Any], xs: Any) -> Any:
    """`jax.lax.map`."""
    return run_compiled(lambda xs: jax.lax.map(body, xs), xs)


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """`jax.lax.switch`."""
    return run_compiled(lambda index, *of: jax.lax.switch(index, branches, *of), index, *operands)


def evaluate_equation(equation: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluate one equation; return a list, also of a single output."""
    if has_loops(equation):
        return run_compiled(lambda *operands: bind(equation, operands), *values)
    return bind(equation, values)


def has_loops(equation: Any) -> bool:
    """Whether an equation is a loop or a branch, or calls what has one in it."""
    return equation.primitive in _LOOPS or any(
        has_loops(inner) for jaxpr in inner_jaxprs(equation) for inner in jaxpr.eqns
    )


class _Content:
    """A Jaxpr, equal to another if both compute the same of the same types."""

    def __init__(self, jaxpr: Any):
        self.jaxpr, self._content = jaxpr, _of_jaxpr(jaxpr)
        self._hash = hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and self._content == other._content

    def __hash__(self) -> int:
        return self._hash


@functools.lru_cache(maxsize=_MOST_PROGRAMS)
def _program(content: _Content) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    def evaluated(consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        return jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(content.jaxpr, consts))(*inputs)

    return jax.jit(evaluated)


def _of_jaxpr(jaxpr: Any) -> tuple[Any, ...]:
    numbers = {v: i for i, v in enumerate((*jaxpr.constvars, *jaxpr.invars))}
    types = tuple(v.aval for v in numbers)

    def of_atom(atom: Any) -> Any:
        if isinstance(atom, jex_core.Literal):
            return atom.aval, _of_value(atom.val)
        return numbers[atom]

    equations = []
    for equation in jaxpr.eqns:
        operands = tuple(map(of_atom, equation.invars))
        numbers.update((v, len(numbers)) for v in equation.outvars)
        made = tuple(v.aval for v in equation.outvars)
        equations.append((equation.primitive, operands, made, _of_params(equation), equation.ctx))
    return types, tuple(equations), tuple(map(of_atom, jaxpr.outvars))


def _of_params(equation: Any) -> Any:
    """The parameters of an equation; of a function with a rule for derivatives not the rule."""
    params = equation.params
    if equation.primitive in _WITH_RULES:
        params = {name: x for name, x in params.items() if name == "call_jaxpr"}
    return _of_value(params)


def _of_value(x: Any) -> Any:
    """A hashable that is equal for equal values; 1 and True, 0.0 and −0.0 are not equal."""
    if isinstance(x, jex_core.ClosedJaxpr):
        return "closed", _of_jaxpr(x.jaxpr), tuple(map(_of_value, x.consts))
    if isinstance(x, jex_core.Jaxpr):
        return "jaxpr", _of_jaxpr(x)
    if isinstance(x, dict):
        return "dict", tuple((str(name), _of_value(x[name])) for name in sorted(x, key=str))
    if isinstance(x, (list, tuple)):
        return type(x), tuple(map(_of_value, x))
    if isinstance(x, (bool, int, float, complex)):
        return type(x), repr(x)
    if isinstance(x, (np.ndarray, np.generic)):
        return x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
        return _Same(x) if is_key or x.size > _SMALL else (jax.typeof(x), np.asarray(x).tobytes())
    try:
        hash(x)
    except TypeError:
        return _Same(x)
    return x


class _Same:
    """An object that is equal to itself alone; it is kept, so that no other gets its address."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
