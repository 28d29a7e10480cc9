"""Checkpoints: the state of a run, written whole or not at all.

The file is the leaves of the state as Equinox writes them, then the run's `about` as JSON, the
length of the JSON, a mark of this format, and the SHA-256 sum of all. A run resumes from this one
file, so that no second file can be lost or older.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from fwdgrad.records.files import atomic_write

_NAME = "checkpoint.eqx"
_SUM_BYTES = hashlib.sha256().digest_size
_LENGTH_BYTES = 8
_MARK = b"fwdgrad2"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another state."""


def save_checkpoint(folder: Path, state: Any, about: dict[str, Any]) -> None:
    """Write `checkpoint.eqx` in `folder`.

    Args:
      folder: the run's folder.
      state: a pytree of arrays, PRNG keys and numbers.
      about: plain values that describe the run.
    """
    buffer = io.BytesIO()
    eqx.tree_serialise_leaves(buffer, jax.tree.map(_without_key, state))
    text = json.dumps(about).encode()
    buffer.write(text + len(text).to_bytes(_LENGTH_BYTES, "big") + _MARK)
    content = buffer.getvalue()
    with atomic_write(folder / _NAME, "wb") as file:
        file.write(content)
        file.write(hashlib.sha256(content).digest())


def read_about(folder: Path) -> dict[str, Any] | None:
    """Return the `about` of a checkpoint; None if there is no checkpoint.

    Raises:
      CheckpointError: the file is damaged, or of another format.
    """
    parts = _read(folder)
    return None if parts is None else parts[1]


def load_checkpoint(folder: Path, like: Any) -> Any | None:
    """Return the state of a checkpoint; None if there is no checkpoint.

    Args:
      folder: the run's folder.
      like: a pytree of the same structure, shapes and dtypes.

    Raises:
      CheckpointError: the file is damaged, of another format, or of another structure than `like`.
    """
    parts = _read(folder)
    if parts is None:
        return None
    leaves = io.BytesIO(parts[0])
    try:
        arrays = eqx.tree_deserialise_leaves(leaves, jax.tree.map(_without_key, like))
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise _unusable(folder, error) from error
    if leaves.read():
        raise _unusable(folder, "it holds more than the state of this run")
    return jax.tree.map(_with_key, arrays, like)


def _read(folder: Path) -> tuple[bytes, dict[str, Any]] | None:
    """Return the leaves as they were written, and `about`; None if there is no checkpoint."""
    path = folder / _NAME
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unusable(folder, error) from error
    content, found = content[:-_SUM_BYTES], content[-_SUM_BYTES:]
    if hashlib.sha256(content).digest() != found:
        raise _unusable(folder, "its SHA-256 sum is wrong: it was cut or changed")
    if not content.endswith(_MARK):
        raise _unusable(folder, "it was written by an earlier version of fwdgrad")
    end = len(content) - len(_MARK) - _LENGTH_BYTES
    start = end - int.from_bytes(content[end : end + _LENGTH_BYTES], "big")
    return content[:start], json.loads(content[start:end])


def _unusable(folder: Path, reason: object) -> CheckpointError:
    return CheckpointError(
        f"{folder / _NAME} does not hold the state of this run ({reason}). Delete the folder "
        f"{folder} to start the run from the beginning."
    )


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_key(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _with_key(x: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if _is_key(like) else x
