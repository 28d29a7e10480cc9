"""Locks on folders: one process at a time writes to a folder.

The lock is the operating system's: it ends with the process that holds it, however that ends. Files
beside it, there as long as the folder is held, name the holder.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fwdgrad.records.files import atomic_write, remove_leftovers

_LOCK, _HOLDER = ".lock", ".holder.json"
_TRIES, _PAUSE = 3, 0.05  # a holder that is just leaving, or has yet to write its name


class FolderInUseError(RuntimeError):
    """A folder that another process holds, or has taken over."""


class Hold:
    """A folder that this process holds.

    Args:
      folder: the folder.
      token: of this hold alone, as the folder's holder file has it.
    """

    def __init__(self, folder: Path, token: str):
        self._folder, self._token = folder, token

    def check(self) -> None:
        """Raise an error if the folder was deleted or taken over while this process held it.

        Raises:
          FolderInUseError: the holder file is gone, or names another hold.
        """
        if _read_holder(self._folder).get("token") != self._token:
            raise FolderInUseError(
                f"{self._folder} was deleted or taken over while this process (pid {os.getpid()}) "
                "was writing to it. Nothing more is written. End this process before the folder "
                "is deleted, and start again."
            )


@contextmanager
def hold(folder: str | Path) -> Iterator[Hold]:
    """Hold a folder; remove what a killed process left in it.

    A missing folder is made; an empty one is removed at the end.

    Args:
      folder: the folder.

    Raises:
      FolderInUseError: another process holds it, or this one does already.
      OSError: the folder cannot be locked.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, hold(folder) as first:
    ...     first.check()
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        lock = _acquire(folder)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"the folder cannot be locked ({error.strerror or error}). Its file system may be "
            "read-only or without locks: name a folder on another one (output.root)",
            str(folder),
        ) from error
    try:
        remove_leftovers(folder)
        token = secrets.token_hex(8)
        with atomic_write(folder / _HOLDER) as file:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            host = socket.gethostname()
            json.dump({"pid": os.getpid(), "host": host, "since": since, "token": token}, file)
        yield Hold(folder, token)
    finally:
        if _read_holder(folder).get("token") == token:
            (folder / _HOLDER).unlink(missing_ok=True)
            with suppress(OSError):  # on Windows, while it is open
                (folder / _LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # one has content
            for path in made:
                path.rmdir()


def _acquire(folder: Path) -> FileLock:
    lock = FileLock(folder / _LOCK, timeout=0)
    for is_last in (False,) * (_TRIES - 1) + (True,):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            if is_last:
                raise FolderInUseError(_in_use(folder)) from None
        except FileNotFoundError:  # another process has just removed a folder that it left empty
            if is_last:
                raise
        else:
            return lock
        time.sleep(_PAUSE)
    raise AssertionError("the last try returns or raises")


def _in_use(folder: Path) -> str:
    holder = _read_holder(folder)
    who = "a process that has not written its name"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    return (
        f"{folder} is in use by {who}. Wait until that process has finished, or end it and start "
        "this command again; a run goes on from its last checkpoint."
    )


def _read_holder(folder: Path) -> dict[str, object]:
    try:
        holder = json.loads((folder / _HOLDER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}
