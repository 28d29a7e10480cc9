"""Numerical differentiation: Jacobians from values of the function alone.

    forward     (f(x + h e_k) − f(x)) / h             error  ½ h |f''| + 2 ε |f| / h
    central     (f(x + h e_k) − f(x − h e_k)) / 2h    error  ⅙ h² |f'''| + ε |f| / h
    complex     Im f(x + i h e_k) / h                 error  ⅙ h² |f'''|

The first term of each error is truncation, the second rounding, ε the spacing of the dtype. Their
sum is least near h = ε^½ and h = ε^⅓, with ε^½ and ε^⅔ of accuracy left: half and two thirds of the
digits. The complex step subtracts nothing, so its h may be as small as one likes; but it needs a
function that is analytic and takes complex numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.util.trees import Array, is_differentiable

# The step for numbers near 1, as a power of the dtype's ε. At ε itself the complex step's
# truncation is far below rounding, and nothing underflows.
_POWERS = {"forward": 1 / 2, "central": 1 / 3, "complex": 1.0}


def default_step(method: str, dtype: Any) -> float:
    """The step h near the best for functions whose derivatives are of the size of their values.

    Args:
      method: "forward", "central" or "complex".
      dtype: a real floating dtype.

    Raises:
      ValueError: there is no such method.

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
    """The Jacobian by finite differences or the complex step, (J)_{jk} ≈ ∂f_j/∂x_k.

    Takes n + 1 values of the function (forward), 2 n (central) or n (complex), all at once.

    Args:
      function: takes an array of the shape of `x` and returns an array; with "complex" it must be
        analytic, which max, abs and comparisons are not.
      x: a floating array of n entries.
      method: "forward", "central" or "complex".
      step: h for entries up to 1 in size, h |x_k| for larger ones: one number, or one for each
        entry; by default `default_step`.

    Returns:
      (m, n), outputs and inputs flattened, of the dtype of `x`.

    Raises:
      TypeError: `x` is not a floating array; or the function is given complex numbers and returns
        real ones.
      ValueError: there is no such method, or the step is not positive.

    >>> numerical_jacobian(lambda x: x**2, jnp.array([1.0, 2.0]), method="complex").tolist()
    [[2.0, 0.0], [0.0, 4.0]]

    Source: Squire, Trapp, Using complex variables to estimate derivatives of real functions (1998);
    Nocedal, Wright, Numerical optimization (2006), section 8.1.
    """
    _check_method(method)
    x = jnp.asarray(x)
    if not is_differentiable(x):
        raise TypeError(f"x must be a real floating array; found {x.dtype}{list(x.shape)}.")
    if step is None:
        step = default_step(method, x.dtype)
    rounded = jnp.asarray(step, x.dtype)
    if not isinstance(rounded, jax.core.Tracer) and not (rounded > 0).all():
        raise ValueError(f"step must be positive, also rounded to {x.dtype}; found {step}.")
    h = rounded * jnp.maximum(1, jnp.abs(x.ravel()))
    directions = jnp.eye(x.size, dtype=x.dtype)

    def at(offsets: Array) -> Array:
        """The values at x + the rows of `offsets`, (n, m)."""
        return jax.vmap(lambda o: function(x + o.reshape(x.shape)).ravel())(offsets)

    if method == "complex":
        values = at(1j * h[:, None] * directions)
        if not jnp.issubdtype(values.dtype, jnp.complexfloating):
            raise TypeError(
                "function must return complex numbers for complex ones with method='complex'; it "
                f"returned {values.dtype}, so it is not analytic. Use method='central'."
            )
        return (values.imag / h[:, None]).T.astype(x.dtype)
    # The steps that are really made, since x + h is rounded. One that is lost altogether makes a
    # difference of zero, so a derivative of zero.
    ahead = _or(((x.ravel() + h) - x.ravel()), h)[:, None]
    if method == "forward":
        return ((at(ahead * directions) - function(x).ravel()) / ahead).T
    behind = _or(x.ravel() - (x.ravel() - h), h)[:, None]
    return ((at(ahead * directions) - at(-behind * directions)) / (ahead + behind)).T


def _or(x: Array, other: Array) -> Array:
    return jnp.where(x == 0, other, x)


def _check_method(method: str) -> None:
    if method not in _POWERS:
        raise ValueError(f"method must be one of {', '.join(_POWERS)}; found {method!r}.")
