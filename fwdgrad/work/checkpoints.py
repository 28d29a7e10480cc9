"""Saving and restoring the state of a run, whole or not at all.

The file is the leaves of the state as Equinox writes them, then their SHA-256 sum.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from fwdgrad.work.files import atomic_write

_NAME = "checkpoint.eqx"
_SUM_BYTES = hashlib.sha256().digest_size


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or belongs to another state."""


def save_checkpoint(folder: Path, state: Any) -> None:
    """Writes a pytree of arrays, PRNG keys and numbers to `checkpoint.eqx` in `folder`."""
    buffer = io.BytesIO()
    eqx.tree_serialise_leaves(buffer, jax.tree.map(_without_key, state))
    content = buffer.getvalue()
    with atomic_write(folder / _NAME, "wb") as file:
        file.write(content)
        file.write(hashlib.sha256(content).digest())


def load_checkpoint(folder: Path, like: Any) -> Any | None:
    """Reads what `save_checkpoint` wrote; None if there is none.

    Args:
      folder: the run's folder.
      like: a pytree of the same structure, shapes and dtypes.

    Raises:
      CheckpointError: the file is damaged, or its content is not like `like`.
    """
    path = folder / _NAME
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        content, found = content[:-_SUM_BYTES], content[-_SUM_BYTES:]
        if hashlib.sha256(content).digest() != found:
            raise ValueError("its SHA-256 sum is wrong")
        arrays = eqx.tree_deserialise_leaves(io.BytesIO(content), jax.tree.map(_without_key, like))
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path} does not hold the state of this run ({error}). Delete the folder "
            f"{folder} to start the run from the beginning."
        ) from error
    return jax.tree.map(_with_key, arrays, like)


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_key(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _with_key(x: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if _is_key(like) else x
