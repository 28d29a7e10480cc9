"""Test functions of optimisation, each with its dimension and its minimum.

Every function is smooth and maps a float array of shape (n,) to a scalar of the same dtype.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


def beale(x: Array) -> Array:
    """Return (1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)² of two variables.

    The minimum is 0 at (3, ½).

    >>> float(beale(jnp.array([3.0, 0.5])))
    0.0
    """
    u, v = x
    powers = v ** jnp.arange(1, 4, dtype=x.dtype)
    constants = jnp.array([1.5, 2.25, 2.625], x.dtype)
    return jnp.sum((constants - u + u * powers) ** 2)


def rosenbrock(x: Array) -> Array:
    """Return Σ_i (1 − x_i)² + 100 (x_{i+1} − x_i²)² of n ≥ 2 variables.

    The minimum is 0 at (1, …, 1), in a curved valley.

    >>> float(rosenbrock(jnp.array([-1.0, 0.0])))
    104.0
    """
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def sphere(x: Array) -> Array:
    """Return Σ_i x_i² of n ≥ 1 variables; the minimum is 0 at 0.

    >>> float(sphere(jnp.array([3.0, 4.0])))
    25.0
    """
    return jnp.sum(x**2)


def styblinski_tang(x: Array) -> Array:
    """Return ½ Σ_i (x_i⁴ − 16 x_i² + 5 x_i) of n ≥ 1 variables.

    The minimum is −39.166166 n at x_i = −2.903534; there are 2ⁿ − 1 other local minima.

    >>> round(float(styblinski_tang(jnp.full(2, -2.903534))), 3)
    -78.332
    """
    return jnp.sum(x**4 - 16 * x**2 + 5 * x) / 2


class Objective(NamedTuple):
    """A test function with its dimension and its minimiser.

    Attributes:
      function: (n,) -> ().
      dimension: n, or None if any n is allowed.
      argmin: the minimiser; or the value of each entry, (1,), if `dimension` is None.
    """

    function: Callable[[Array], Array]
    dimension: int | None
    argmin: tuple[float, ...]


TEST_FUNCTIONS = {
    "beale": Objective(beale, 2, (3.0, 0.5)),
    "rosenbrock": Objective(rosenbrock, None, (1.0,)),
    "sphere": Objective(sphere, None, (0.0,)),
    "styblinski_tang": Objective(styblinski_tang, None, (-2.903534,)),
}
