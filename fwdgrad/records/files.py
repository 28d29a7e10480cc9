"""Atomic writes: a file is written beside its place, then renamed into it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_SUFFIX = ".unfinished"


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file for writing; it takes the name `path` only once it is complete.

    Whoever reads `path` sees the old content or the new, never a part, even if this process
    is killed at any moment; an exception leaves the old content.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(f"{folder}/a/b.txt") as file:
    ...         _ = file.write("whole")
    ...     Path(f"{folder}/a/b.txt").read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder, so that the rename stays within one file system.
    descriptor, temporary = tempfile.mkstemp(
        prefix=f".{path.name}-", suffix=_SUFFIX, dir=path.parent
    )
    try:
        # The same bytes on every system.
        text = {} if "b" in mode else {"newline": "", "encoding": "utf-8"}
        with open(descriptor, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0o600 is for secrets
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of a killed `atomic_write` in `folder`."""
    for path in folder.glob(f".*-*{_SUFFIX}"):
        path.unlink(missing_ok=True)
