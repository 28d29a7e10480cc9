"""Which leaves of a parameter pytree are differentiated, and which pass through.

A parameter pytree may hold anything: arrays of any dtype, `None`, Python scalars,
strings, the activation functions of an Equinox module. Only real floating-point
*arrays* are parameters; everything else is configuration or state. `partition` takes
the two apart and `combine` puts them together again, as `equinox.partition` does:

    params  =  combine(*partition(params))
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Array = jax.Array

_ARRAY_TYPES = (jax.Array, np.ndarray, np.generic)


def is_differentiable(leaf: Any) -> bool:
    """Whether `leaf` is an array of a real floating dtype (float16 to float64, bfloat16).

    Python floats are not: in a module they are configuration (a dropout rate, an
    epsilon), and an array is how JAX code spells a parameter.

    >>> is_differentiable(jnp.ones(3)), is_differentiable(jnp.arange(3)), is_differentiable(0.5)
    (True, False, False)
    """
    return isinstance(leaf, _ARRAY_TYPES) and jnp.issubdtype(leaf.dtype, jnp.floating)


def partition(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Splits `tree` into its differentiable leaves and the rest, each with `None` for the other.

    The differentiable part is a pytree of arrays alone, so it can be jitted, donated,
    checkpointed and given to any optax optimizer.

    >>> partition({"w": jnp.float32(2), "steps": 3})
    ({'steps': None, 'w': Array(2., dtype=float32)}, {'steps': 3, 'w': None})
    """
    differentiable, rest = split(tree, is_differentiable)
    return jax.tree.map(jnp.asarray, differentiable), rest


def split(tree: PyTree, chosen: Callable[[Any], bool]) -> tuple[PyTree, PyTree]:
    """Splits `tree` into the leaves that are `chosen` and the rest, as `partition` does."""
    first = jax.tree.map(lambda x: x if chosen(x) else None, tree)
    rest = jax.tree.map(lambda x: None if chosen(x) else x, tree)
    return first, rest


def combine(differentiable: PyTree, rest: PyTree) -> PyTree:
    """Puts together what `partition` or `split` took apart.

    >>> combine({"w": jnp.float32(2), "steps": None}, {"w": None, "steps": 3})
    {'steps': 3, 'w': Array(2., dtype=float32)}
    """

    def choose(x: Any, other: Any) -> Any:
        return other if x is None else x

    return jax.tree.map(choose, differentiable, rest, is_leaf=lambda x: x is None)


def require_parameters(params: PyTree) -> None:
    """Raises unless `params` has a real floating leaf and no complex one.

    Raises:
      TypeError: a leaf is complex (named by its path).
      ValueError: no leaf is a floating-point array.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        if isinstance(leaf, _ARRAY_TYPES) and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} has the complex dtype {leaf.dtype}; only "
                "real parameters are differentiated. Hold its real and imaginary parts as two "
                "real leaves and join them inside the loss."
            )
    if not any(is_differentiable(leaf) for _, leaf in leaves):
        found = ", ".join(
            f"params{jax.tree_util.keystr(path)}: {_describe(leaf)}" for path, leaf in leaves[:5]
        )
        raise ValueError(
            f"params has no differentiable leaf: found {found or 'an empty pytree'}. At least "
            "one leaf must be an array of a floating dtype; wrap a Python number in jnp.asarray, "
            "or cast an integer array with .astype(jnp.float32)."
        )


def _describe(leaf: Any) -> str:
    if isinstance(leaf, _ARRAY_TYPES):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return type(leaf).__name__


def accumulation_dtype(*dtypes: Any) -> Any:
    """The dtype in which values of these are drawn, multiplied and summed: at least float32.

    >>> accumulation_dtype(jnp.float16, jnp.bfloat16), accumulation_dtype(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    wide = [jnp.dtype(t) for t in dtypes if jnp.finfo(t).bits > 32]
    return wide[0] if wide else jnp.dtype(jnp.float32)
