"""Symbolic differentiation of JAX functions with SymPy.

A function written for JAX is traced to a jaxpr, and the jaxpr is evaluated on arrays of SymPy
expressions. The result is a formula for each output, which SymPy differentiates.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from fwdgrad.util.jax_internals import called_jaxpr, custom_jvp_body
from fwdgrad.util.trees import Array
from fwdgrad.util.validation import missing_extra

try:
    import sympy
except ModuleNotFoundError as error:
    raise missing_extra("fwdgrad.problems.symbolic", error) from error

_DIGITS = 50  # decimal digits of a float64 argument, more than `evaluate` computes with


def expressions(function: Callable[[Array], Array], n: int) -> tuple[list[sympy.Symbol], Any]:
    """Return the outputs of a function as formulas in its inputs.

    Args:
      function: takes a float array (n,) and returns an array of any shape. It may use arithmetic,
        the elementary functions, max, abs, and products of vectors and matrices. At a kink, such as
        that of max(x, 0), SymPy's derivative is the mean of both sides, ½ there; JAX's may differ.
      n: the number of inputs.

    Returns:
      (symbols x_0 … x_{n−1}, flattened object array of expressions).

    Raises:
      NotImplementedError: the function contains an operation without a rule; the message names it.

    >>> symbols, outputs = expressions(lambda x: jnp.sin(x[:1]) * x[1], 2)
    >>> outputs[0]
    x1*sin(x0)
    """
    symbols = list(sympy.symbols(f"x:{n}", real=True))
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((n,), jnp.zeros(()).dtype))
    (output,) = _evaluate(closed, [np.array(symbols, dtype=object)])
    return symbols, np.asarray(output, dtype=object).ravel()


def symbolic_jacobian(symbols: Iterable[sympy.Symbol], outputs: Iterable[Any]) -> Any:
    """Return the derivatives of m expressions by n symbols, an object array (m, n).

    >>> symbols, outputs = expressions(lambda x: x**2 * x[0], 2)
    >>> symbolic_jacobian(symbols, outputs).tolist()
    [[3*x0**2, 0], [x1**2, 2*x0*x1]]
    """
    return np.array([[sympy.diff(y, x) for x in symbols] for y in outputs], dtype=object)


def evaluate(values: Any, symbols: Iterable[sympy.Symbol], x: Any, digits: int = 30) -> Any:
    """Return the values of expressions at x, rounded to float64 at the end.

    Args:
      values: an object array of expressions, of any shape.
      symbols: the n symbols of the expressions.
      x: a float array (n,), taken exactly.
      digits: the number of decimal digits to compute with.

    >>> symbols, outputs = expressions(lambda x: jnp.exp(x), 1)
    >>> evaluate(outputs, symbols, np.array([1.0])).tolist()
    [2.718281828459045]
    """
    numbers = [_exact(entry) for entry in np.asarray(x, np.float64)]
    at = dict(zip(symbols, numbers, strict=True))
    found = [float(sympy.N(sympy.sympify(v).subs(at), digits)) for v in np.ravel(values)]
    return np.array(found).reshape(np.shape(values))


def count_operations(values: Iterable[Any], *, common_subexpressions: bool = False) -> int:
    """Return the number of operations in expressions.

    Args:
      values: the expressions.
      common_subexpressions: if True, count each shared subexpression once.

    >>> x = sympy.Symbol("x")
    >>> y = [sympy.sin(x) ** 2 + sympy.cos(sympy.sin(x))]
    >>> count_operations(y), count_operations(y, common_subexpressions=True)
    (5, 4)
    """
    values = list(np.ravel(np.array(values, dtype=object)))
    if common_subexpressions:
        shared, values = sympy.cse(values)
        values = [*(value for _, value in shared), *values]
    return int(sum(sympy.count_ops(value) for value in values))


def _exact(number: Any) -> sympy.Float:
    """Return the exact value of a float64."""
    return sympy.Float(float(number), _DIGITS)


def _symbolic(value: Any) -> Any:
    """Return a constant as an object array of exact numbers; integers keep x·1 equal to x."""
    array = np.asarray(value)
    entries = [sympy.Integer(int(x)) if float(x).is_integer() else _exact(x) for x in array.ravel()]
    return np.array(entries, dtype=object).reshape(array.shape)


def _evaluate(closed: Any, inputs: list[Any]) -> list[Any]:
    """Evaluate a ClosedJaxpr on object arrays."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
    values.update(zip(jaxpr.constvars, map(_symbolic, closed.consts), strict=True))

    def read(atom: Any) -> Any:
        return _symbolic(atom.val) if isinstance(atom, jex_core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        body = called_jaxpr(equation)
        if body is None:
            body = custom_jvp_body(equation)
        if body is not None:
            outputs = _evaluate(body, operands)
        elif name in _RULES:
            result = _RULES[name](*operands, **equation.params)
            outputs = list(result) if equation.primitive.multiple_results else [result]
        else:
            raise NotImplementedError(
                f"the operation {name} has no symbolic rule; use {', '.join(sorted(_RULES))}."
            )
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rule that applies a function of SymPy to each entry."""
    apply = np.frompyfunc(function, function.__code__.co_argcount, 1)
    return lambda *operands, **_: np.asarray(apply(*operands), dtype=object)


def _dot_general(a: Any, b: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    contracted, (batch, _other) = dimension_numbers
    if batch:
        raise NotImplementedError(
            "dot_general with batch axes has no symbolic rule; use products of two matrices."
        )
    return np.asarray(np.tensordot(a, b, axes=contracted), dtype=object)


def _broadcast_in_dim(x: Any, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> Any:
    axes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, np.shape(x), strict=True):
        axes[axis] = size
    return np.broadcast_to(np.reshape(x, axes), shape)


def _iota(*, shape: Any, dimension: int, **_: Any) -> Any:
    return _symbolic(np.indices(shape)[dimension])


def _slice(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> Any:
    steps = strides or [1] * np.ndim(x)
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


_RULES: dict[str, Callable[..., Any]] = {
    "add": lambda a, b, **_: a + b,
    "add_any": lambda a, b, **_: a + b,
    "sub": lambda a, b, **_: a - b,
    "mul": lambda a, b, **_: a * b,
    "div": lambda a, b, **_: a / b,
    "neg": lambda a, **_: -a,
    "square": lambda a, **_: a**2,
    "integer_pow": lambda a, *, y, **_: a**y,
    "pow": lambda a, b, **_: a**b,
    "max": _elementwise(lambda a, b: sympy.Max(a, b)),
    "min": _elementwise(lambda a, b: sympy.Min(a, b)),
    "abs": _elementwise(lambda a: sympy.Abs(a)),
    "ne": _elementwise(lambda a, b: sympy.Ne(a, b)),
    "select_n": _elementwise(lambda w, a, b: sympy.Piecewise((b, w), (a, True))),
    "sqrt": _elementwise(lambda a: sympy.sqrt(a)),
    "exp": _elementwise(lambda a: sympy.exp(a)),
    "expm1": _elementwise(lambda a: sympy.exp(a) - 1),
    "log": _elementwise(lambda a: sympy.log(a)),
    "log1p": _elementwise(lambda a: sympy.log(1 + a)),
    "sin": _elementwise(lambda a: sympy.sin(a)),
    "cos": _elementwise(lambda a: sympy.cos(a)),
    "tanh": _elementwise(lambda a: sympy.tanh(a)),
    "logistic": _elementwise(lambda a: 1 / (1 + sympy.exp(-a))),
    "dot_general": _dot_general,
    "reduce_sum": lambda a, *, axes, **_: np.asarray(np.sum(a, axis=tuple(axes)), dtype=object),
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda *parts, dimension, **_: np.concatenate(parts, dimension),
    "stack": lambda *parts, axis, **_: np.stack(parts, axis),
    "unstack": lambda a, *, axis, **_: np.moveaxis(a, axis, 0),
    "reshape": lambda a, *, new_sizes, **_: np.reshape(a, new_sizes),
    "squeeze": lambda a, *, dimensions, **_: np.squeeze(a, tuple(dimensions)),
    "transpose": lambda a, *, permutation, **_: np.transpose(a, permutation),
    "slice": _slice,
    "iota": _iota,
    "convert_element_type": lambda a, **_: a,
    "copy": lambda a, **_: a,
}
