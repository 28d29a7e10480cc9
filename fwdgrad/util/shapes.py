"""Shapes: merging axes, and comparing sizes that may be symbolic.

A size may be symbolic, such as the minibatch size in `jax.export`. Code that selects the cheaper of
two forms asks whether one size is surely smaller. If a symbolic size leaves that open, the answer
is False and the general form is used, which is correct for every size. (Equality needs no help: a
symbolic size equals no other size.)
"""

import math
from typing import Any

from jax.extend import core as jex_core

from fwdgrad.util.trees import Array


def merge_axes(x: Array, start: int, stop: int) -> Array:
    """Merge the axes `start` … `stop` − 1 into one axis, of size 1 if start == stop.

    Axes of size zero are allowed. (`x.reshape(..., -1)` fails where another axis has size zero,
    because the size of the new axis is then undetermined.)

    >>> import jax.numpy as jnp
    >>> merge_axes(jnp.zeros((2, 3, 0, 4)), 1, 3).shape, merge_axes(jnp.zeros((2, 3)), 2, 2).shape
    ((2, 0, 4), (2, 3, 1))
    """
    return x.reshape(*x.shape[:start], math.prod(x.shape[start:stop]), *x.shape[stop:])


def surely_at_most(a: Any, b: Any) -> bool:
    """Return True if a ≤ b for every value of the symbolic sizes, else False.

    >>> surely_at_most(2, 3), surely_at_most(3, 2)
    (True, False)
    >>> import jax
    >>> (n,) = jax.export.symbolic_shape("n")
    >>> surely_at_most(n, 3 * n), surely_at_most(n, 3)
    (True, False)
    """
    try:
        return bool(a <= b)
    except jex_core.InconclusiveDimensionOperation:
        return False


def surely_less(a: Any, b: Any) -> bool:
    """Return True if a < b for every value of the symbolic sizes, else False."""
    return surely_at_most(a + 1, b)
