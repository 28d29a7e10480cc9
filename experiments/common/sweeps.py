"""The members of a sweep that did not finish, named at its end, under any launcher.

A launcher hands back the first error alone, and no name of a member whose process was killed.
"""

import atexit
import secrets
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fwdgrad.records import FolderInUseError, hold, read_json, write_json

KILLED = "its process was ended, by a signal or by the launcher"
GO_ON = "The same command goes on with all that is missing."
_SECONDS = 0.5  # between two looks at the members that still run


class Members(Callback):
    """A callback of Hydra that records how each member of a sweep ends.

    Hydra pickles the object for the processes of a launcher. A member has a folder, which its
    process holds as long as it runs.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None  # of the sweep; None outside of sweeps
        self._held = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_held": ExitStack()}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        root = Path(config.hydra.sweep.dir).absolute()
        self._folder = root / f".sweep-{secrets.token_hex(4)}"
        atexit.register(report, self._folder)  # a launcher's error ends the process

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self._folder is not None:
            member = self._folder / str(config.hydra.job.num)
            self._held.enter_context(hold(member))
            self._write(member, list(config.hydra.overrides.task), KILLED)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if self._folder is not None:
            error = job_return._return_value
            first_line = str(error).strip().partition("\n")[0]
            why = f"{type(error).__name__}: {first_line}"
            is_done = job_return.status == JobStatus.COMPLETED
            member = self._folder / str(config.hydra.job.num)
            self._write(member, list(config.hydra.overrides.task), "" if is_done else why)
            self._held.close()

    def _write(self, member: Path, overrides: list[str], failure: str) -> None:
        write_json(member / "member.json", {"overrides": overrides, "failure": failure})


def report(folder: Path) -> None:
    """Wait for the members that still run, print those that failed, and remove the folder."""
    members = sorted(folder.glob("*/member.json"), key=lambda path: int(path.parent.name))
    if running := sum(_is_running(path.parent) for path in members):
        print(f"waiting for members that still run: {running}", file=sys.stderr)
    while any(_is_running(path.parent) for path in members):
        time.sleep(_SECONDS)
    found = [read_json(path) for path in members]
    if failed := [member for member in found if member["failure"]]:
        print(f"\n{len(failed)} of the {len(found)} members begun did not finish:", file=sys.stderr)
        for member in failed:
            print(f"  {' '.join(member['overrides'])}: {member['failure']}", file=sys.stderr)
        print(GO_ON, file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)


def _is_running(member: Path) -> bool:
    try:
        with hold(member):
            return False
    except FolderInUseError:
        return True
