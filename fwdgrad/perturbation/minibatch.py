"""The examples of a minibatch: how many there are, what one is, and a key for each."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fwdgrad.util import validation
from fwdgrad.util.sharding import has_explicit_axes, varying_axes
from fwdgrad.util.trees import Array, PyTree


def number_of_examples(args: PyTree, kwargs: PyTree) -> int:
    """N, the size of the first axis of the arrays in `args`; raises unless it is one number.

    Arrays in `kwargs` that have as many entries are taken for examples in the wrong place.
    """
    leaves = jax.tree_util.tree_leaves_with_path(args)
    sizes = {}
    for path, leaf in leaves:
        at = jax.tree_util.keystr(path)
        if not isinstance(leaf, (jax.Array, np.ndarray)) or leaf.ndim == 0:
            is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            remedy = (
                "give each example a key of its own, jax.random.split(key, N)"
                if is_key
                else "pass what examples share as a keyword argument"
            )
            raise ValueError(
                f"args{at} has no axis of examples: found {type(leaf).__name__} of shape (). With "
                "space=Activities() all positional arguments after params have examples in front; "
                f"{remedy}."
            )
        sizes[at] = jnp.shape(leaf)[0]
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"args{path}: {n}" for path, n in sizes.items()) or "no arrays"
        raise ValueError(
            "the positional arguments after params must have one number of examples in front with "
            f"space=Activities(); found {found}."
        )
    number = next(iter(sizes.values()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(kwargs):
        shape = getattr(leaf, "shape", None)  # a leaf may be any object, such as a function
        if number != 1 and isinstance(shape, tuple) and shape[:1] == (number,):
            raise ValueError(
                f"the keyword argument{jax.tree_util.keystr(path)} has {number} entries in front, "
                "as many as there are examples; with space=Activities() keyword arguments are the "
                "same for all of them. If they are of the examples, pass them by position; if not, "
                "let fun close over them (functools.partial)."
            )
    return number


def noting_minibatches_of_one() -> AbstractContextManager[None]:
    """Return a context that notes of errors inside of it how `Activities` calls the loss."""
    return validation.error_note(
        "space=Activities() calls fun with minibatches of one example, which it maps over the "
        "examples by jax.vmap. Where fun does not work so, or JAX cannot map something that it "
        "calls (a ragged product, a sparse matrix, an ordered callback), use space=Weights()."
    )


def types_of_one(examples: Sequence[Array]) -> list[Any]:
    """Return the types of one example's arrays inside of the map over examples."""
    types: list[Any] = []
    jax.eval_shape(jax.vmap(lambda *one: types.extend(map(jax.typeof, one))), *examples)
    return types


def check_own_losses(types: Sequence[Any], type_of_loss: Any) -> None:
    """Raise ValueError if examples differ by device, and the loss of one does not."""
    known = varying_axes(type_of_loss)
    if missing := sorted(axis for x in types for axis in varying_axes(x) if axis not in known):
        raise ValueError(
            f"fun returns what is the same on all devices along {missing[0]!r}, such as a "
            "jax.lax.pmean, and the examples are not; space=Activities() asks for the loss of each "
            "example. Take the mean over devices outside of fun."
        )


def keys_of_each(examples: Sequence[Array], key: Array) -> Array:
    """Return a key for each example, sharded as the examples are."""
    keys = jax.random.split(key, examples[0].shape[:1])
    if not has_explicit_axes():
        return keys
    spec = jax.typeof(examples[0]).sharding.spec
    return jax.sharding.reshard(keys, PartitionSpec(spec[0]))
