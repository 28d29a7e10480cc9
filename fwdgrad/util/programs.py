"""A cache of compiled loops and branches for eager calls, that is, calls outside of `jax.jit`.

Outside of `jit` JAX evaluates operation by operation, and compiles each kind of operation once. A
loop or a branch is one operation, which JAX caches by its Python functions. An estimator, and a
loss without `jit`, make these functions anew in each call. So each call would compile again, and
all compiled programs would stay in memory.

Here a loop is traced, as JAX would trace it, and the compiled program is looked up by the equations
of the trace instead of the functions. Arrays in the closure are arguments of the program. The loss
is traced in each call, so it may depend on any Python state, as in `jax.value_and_grad`.

`scan`, `while_loop`, `map_over` and `switch` are those of `jax.lax` with this cache; under `jit`
and under a derivative they are those of `jax.lax` without it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.util.jax_internals import Equation, bind
from fwdgrad.util.tracers import trace_state

_MAX_PROGRAMS = 64
_MAX_COMPARED = 1024  # entries of an array that is compared by its values, not by identity

_WITH_RULES = (primitives.custom_jvp_call_p, primitives.custom_vjp_call_p)


def run_compiled(fun: Callable[..., Any], *args: Any) -> Any:
    """Return fun(*args); an eager call uses the program compiled before for the same equations.

    Args:
      fun: a function from pytrees of arrays to a pytree of arrays.
      args: its arguments.
    """
    is_eager, is_differentiated = trace_state()
    leaves = jax.tree.leaves(args)
    if not is_eager or (is_differentiated and _has_tracers(leaves)):
        return fun(*args)
    traced, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
    if is_differentiated and _has_tracers(traced.consts):
        return fun(*args)
    outputs = _compiled(_ComparableJaxpr(traced.jaxpr))(traced.consts, leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def _has_tracers(values: Sequence[Any]) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in values)


def scan(
    body: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any, **options: Any
) -> tuple[Any, Any]:
    """Scan as `jax.lax.scan` does, cached in eager calls."""
    return run_compiled(lambda init, xs: jax.lax.scan(body, init, xs, **options), init, xs)


def while_loop(condition: Callable[[Any], Any], body: Callable[[Any], Any], init: Any) -> Any:
    """Loop as `jax.lax.while_loop` does, cached in eager calls."""
    return run_compiled(lambda init: jax.lax.while_loop(condition, body, init), init)


def map_over(body: Callable[[Any], Any], xs: Any) -> Any:
    """Map as `jax.lax.map` does, cached in eager calls."""
    return run_compiled(lambda xs: jax.lax.map(body, xs), xs)


def switch(index: Any, branches: Sequence[Callable[..., Any]], *operands: Any) -> Any:
    """Branch as `jax.lax.switch` does, cached in eager calls."""
    return run_compiled(lambda index, *xs: jax.lax.switch(index, branches, *xs), index, *operands)


def evaluate_equation(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Evaluate one equation; return a list, also of a single output."""
    if equation.has_loops:
        return run_compiled(lambda *operands: bind(equation, operands), *values)
    return bind(equation, values)


class _ComparableJaxpr:
    """A Jaxpr that is equal to a second one if both have the same equations on the same types."""

    def __init__(self, jaxpr: Any):
        self.jaxpr, self._content = jaxpr, _jaxpr_content(jaxpr)
        self._hash = hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ComparableJaxpr) and self._content == other._content

    def __hash__(self) -> int:
        return self._hash


@functools.lru_cache(maxsize=_MAX_PROGRAMS)
def _compiled(program: _ComparableJaxpr) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    """Return the compiled function (constants, inputs) -> outputs of a jaxpr, made once."""

    def evaluated(consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        return jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(program.jaxpr, consts))(*inputs)

    return jax.jit(evaluated)


def _jaxpr_content(jaxpr: Any) -> tuple[Any, ...]:
    """Return types, equations and outputs of a Jaxpr as a hashable, with variables numbered."""
    numbers = {v: i for i, v in enumerate((*jaxpr.constvars, *jaxpr.invars))}
    types = tuple(v.aval for v in numbers)

    def atom_content(atom: Any) -> Any:
        if isinstance(atom, jex_core.Literal):
            return atom.aval, _hashable(atom.val)
        return numbers[atom]

    equations = []
    for equation in jaxpr.eqns:
        operands = tuple(map(atom_content, equation.invars))
        numbers.update((v, len(numbers)) for v in equation.outvars)
        outputs = tuple(v.aval for v in equation.outvars)
        params = _params_content(equation)
        equations.append((equation.primitive, operands, outputs, params, equation.ctx))
    return types, tuple(equations), tuple(map(atom_content, jaxpr.outvars))


def _params_content(equation: Any) -> Any:
    """Return the parameters of an equation as a hashable, without a custom derivative rule."""
    params = equation.params
    if equation.primitive in _WITH_RULES:
        params = {name: x for name, x in params.items() if name == "call_jaxpr"}
    return _hashable(params)


def _hashable(x: Any) -> Any:
    """Return a hashable that is equal for equal values; 1 and True, 0.0 and −0.0 are not equal."""
    if isinstance(x, jex_core.ClosedJaxpr):
        return "closed", _jaxpr_content(x.jaxpr), tuple(map(_hashable, x.consts))
    if isinstance(x, jex_core.Jaxpr):
        return "jaxpr", _jaxpr_content(x)
    if isinstance(x, dict):
        return "dict", tuple((str(name), _hashable(x[name])) for name in sorted(x, key=str))
    if isinstance(x, (list, tuple)):
        return type(x), tuple(map(_hashable, x))
    if isinstance(x, (bool, int, float, complex)):
        return type(x), repr(x)
    if isinstance(x, (np.ndarray, np.generic)):
        return x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
        is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
        if is_key or x.size > _MAX_COMPARED:
            return _ByIdentity(x)
        return jax.typeof(x), np.asarray(x).tobytes()
    try:
        hash(x)
    except TypeError:
        return _ByIdentity(x)
    return x


class _ByIdentity:
    """An object that is equal to itself alone; it stays alive, so that its address stays unique."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
