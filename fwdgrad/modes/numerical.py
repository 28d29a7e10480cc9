"""Numerical differentiation: Jacobians by finite differences and the complex step.

    forward     (f(x + h e_k) − f(x)) / h             error  ½ h |f''| + 2 ε |f| / h
    central     (f(x + h e_k) − f(x − h e_k)) / 2h    error  ⅙ h² |f'''| + ε |f| / h
    complex     Im f(x + i h e_k) / h                 error  ⅙ h² |f'''|

The first term of each error is truncation, the second is rounding, with ε the spacing of the dtype.
Their sum is smallest near h = ε^½ (forward) and h = ε^⅓ (central), where it is ε^½ and ε^⅔: half
and two thirds of the digits are correct. The complex step has no subtraction, so h may be
arbitrarily small; but the function must be analytic and take complex numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.util.trees import Array, is_differentiable

# The step for numbers near 1, as a power of ε. With h = ε the truncation error of the complex step
# is far below rounding, and no intermediate value underflows.
_POWERS = {"forward": 1 / 2, "central": 1 / 3, "complex": 1.0}


def default_step(method: str, dtype: Any) -> float:
    """Return the step h that is near the best if derivatives are about as large as values.

    Args:
      method: "forward", "central" or "complex".
      dtype: a real floating dtype.

    Raises:
      ValueError: `method` is none of the three names.

    >>> f"{default_step('forward', 'float32'):.1e} {default_step('central', 'float64'):.1e}"
    '3.5e-04 6.1e-06'
    """
    _check_method(method)
    return float(jnp.finfo(dtype).eps) ** _POWERS[method]


def numerical_jacobian(
    function: Callable[[Array], Array],
    x: Array,
    *,
    method: str = "central",
    step: float | Array | None = None,
) -> Array:
    """Return the Jacobian by finite differences or the complex step, (J)_{jk} ≈ ∂f_j/∂x_k.

    Evaluates the function n + 1 times (forward), 2 n times (central) or n times (complex), mapped
    by `jax.vmap`.

    Args:
      function: takes an array of the shape of `x` and returns an array. With "complex" it must be
        analytic; max, abs and comparisons are not.
      x: a floating array of n entries.
      method: "forward", "central" or "complex".
      step: h, a number or an array with one for each entry; the step is h max(1, |x_k|). By default
        `default_step`.

    Returns:
      An array (m, n) of the dtype of `x`, with outputs and inputs flattened.

    Raises:
      TypeError: `x` is not a real floating array, or with "complex" the function returns real
        numbers.
      ValueError: `method` is none of the three names, or `step` is not positive.

    >>> numerical_jacobian(lambda x: x**2, jnp.array([1.0, 2.0]), method="complex").tolist()
    [[2.0, 0.0], [0.0, 4.0]]

    Source: Squire, Trapp, Using complex variables to estimate derivatives of real functions (1998);
    Nocedal, Wright, Numerical optimization (2006), section 8.1.
    """
    _check_method(method)
    x = jnp.asarray(x)
    if not is_differentiable(x):
        raise TypeError(
            f"x must be a real floating array; found {x.dtype}{list(x.shape)}. Cast it with "
            ".astype(jnp.float32)."
        )
    if step is None:
        step = default_step(method, x.dtype)
    rounded = jnp.asarray(step, x.dtype)
    if not isinstance(rounded, jax.core.Tracer) and not (rounded > 0).all():
        raise ValueError(
            f"step must be positive after rounding to {x.dtype}; found {step}. Leave step out for "
            "default_step."
        )
    h = rounded * jnp.maximum(1, jnp.abs(x.ravel()))
    directions = jnp.eye(x.size, dtype=x.dtype)

    def values_at(offsets: Array) -> Array:
        """Return the values at x + each row of `offsets`, (n, m)."""
        return jax.vmap(lambda o: function(x + o.reshape(x.shape)).ravel())(offsets)

    if method == "complex":
        values = values_at(1j * h[:, None] * directions)
        if not jnp.issubdtype(values.dtype, jnp.complexfloating):
            raise TypeError(
                "function must return complex numbers for a complex argument with "
                f"method='complex'; it returned {values.dtype}, so it is not analytic. Use "
                "method='central'."
            )
        return (values.imag / h[:, None]).T.astype(x.dtype)
    # The steps after rounding of x ± h. A step that rounds to zero keeps h as the divisor, so the
    # derivative is zero and not NaN.
    ahead = _nonzero_or(((x.ravel() + h) - x.ravel()), h)[:, None]
    if method == "forward":
        return ((values_at(ahead * directions) - function(x).ravel()) / ahead).T
    behind = _nonzero_or(x.ravel() - (x.ravel() - h), h)[:, None]
    differences = values_at(ahead * directions) - values_at(-behind * directions)
    return (differences / (ahead + behind)).T


def _nonzero_or(x: Array, other: Array) -> Array:
    """Return the entries of x, and those of `other` where x is zero."""
    return jnp.where(x == 0, other, x)


def _check_method(method: str) -> None:
    """Raise ValueError unless there is a method of this name."""
    if method not in _POWERS:
        raise ValueError(f"method must be one of {', '.join(_POWERS)}; found {method!r}.")
