"""Random signs, which the forms of an influence sketch with."""

from typing import Any

import jax

from fwdgrad.util.trees import Array


def random_signs(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return independent entries ±1."""
    return jax.random.rademacher(key, shape, dtype)
