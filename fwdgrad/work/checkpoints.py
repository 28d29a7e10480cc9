"""Saving and restoring the state of a run, whole or not at all."""

from pathlib import Path
from typing import Any

import equinox as eqx

from fwdgrad.work.files import atomic_write

_NAME = "checkpoint.eqx"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or belongs to another state."""


def save_checkpoint(folder: Path, state: Any) -> None:
    """Writes a pytree of arrays and numbers to `checkpoint.eqx` in `folder`."""
    with atomic_write(folder / _NAME, "wb") as file:
        eqx.tree_serialise_leaves(file, state)


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
        with path.open("rb") as file:
            return eqx.tree_deserialise_leaves(file, like)
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path} does not hold the state of this run ({error}). Delete the folder "
            f"{folder} to start the run from the beginning."
        ) from error
