"""A budget in seconds, kept by leaving out the least important jobs of the experiments.

An experiment names its jobs (`job`). What makes numbers claims the time of its job (`claim`, in
`from_config.run` and in `measured_once` below) just before it begins, when it is known that nothing
is recorded yet. A claim that does not fit raises `LeftOut`, which the job swallows: the experiment
goes on with its other jobs, and writes tables of those that it has. So recorded work costs nothing,
and a rerun with more seconds makes the missing numbers alone.

The time of a job, compilation included, is expected to be that of the longest job so far of the
same part, each in proportion to its share. For the first of a part it is a share of the preset's
expected seconds of the experiment, and more if its other jobs took more than their shares. A job
that turns out to take longer than the seconds left is ended early (`go_on`). Jobs have levels of
importance: jobs of level 0 of all experiments come before those of level 1.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from fwdgrad import measurement

LEVELS = 3


class LeftOut(Exception):
    """A job that does not fit into the budget, or is of a later level."""


class _Job(NamedTuple):
    part: str
    item: str
    level: int
    share: float


class Budget:
    """The seconds that a command may take, and the jobs that it leaves out to keep them.

    Args:
      seconds: None: no limit.
      expected: experiment -> the seconds of all its jobs, as far as known.
      reserve: seconds that are kept for the drawing of an experiment; its longest drawing so far,
        once it is known to take longer.
      start: when the seconds began, by the clock; None: now.
      clock: seconds that never go back.

    Attributes:
      left_out: experiment -> part -> the items of its jobs that were left out.
      has_worked: whether the present experiment has made anything that was not recorded.
    """

    def __init__(
        self,
        seconds: float | None = None,
        *,
        expected: Mapping[str, float] | None = None,
        reserve: float = 0.0,
        start: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.seconds = seconds
        self.left_out: dict[str, dict[str, list[str]]] = {}
        self.has_worked = False
        self._expected, self._reserve, self._clock = dict(expected or {}), reserve, clock
        self._start = clock() if start is None else start
        self._level = LEVELS - 1
        self._experiment = ""
        self._job: _Job | None = None
        self._begun: float | None = None  # of the job's work
        self._lacked = 0.0  # seconds that the job would have taken longer, had it not ended early
        self._longest: dict[tuple[str, str], float] = {}  # (experiment, part) -> of a share of 1
        self._spent: dict[str, list[float]] = {}  # experiment -> seconds of its jobs, and expected
        self._drawing: dict[str, float] = {}  # experiment -> seconds

    def rounds(self) -> Iterator[int]:
        """Yield the levels, one after the other; one round is enough without a limit."""
        if self.seconds is None:
            yield self._level
            return
        for self._level in range(LEVELS):
            yield self._level
            if not any(self.left_out.values()):
                return

    def is_due(self, experiment: str, level: int) -> bool:
        """Return whether an experiment has anything to do in a round, and there is time for it."""
        if self.seconds is None or level == 0:
            return True
        return bool(self.left_out.get(experiment)) and self._left() > 0

    @contextmanager
    def experiment(self, name: str) -> Iterator[None]:
        """Run an experiment: one job, of which no part is less important, unless it has jobs."""
        self._experiment, self.left_out[name], self.has_worked = name, {}, False
        with self.job(name):
            yield

    @contextmanager
    def drawing(self, name: str) -> Iterator[None]:
        """Draw an experiment; its next drawing is expected to take as long."""
        start = self._clock()
        yield
        self._drawing[name] = max(self._drawing.get(name, 0.0), self._clock() - start)

    @contextmanager
    def job(
        self, part: str, item: Any = "", *, level: int = 0, share: float = 1.0
    ) -> Iterator[None]:
        """Do a job of the experiment that is running, or leave it out.

        Args:
          part: the name of jobs that take about the same time.
          item: the name of this one among them.
          level: 0 the most important.
          share: of the experiment's expected seconds; in proportion to those of other jobs.
        """
        outer = self._job, self._begun
        self._job, self._begun = _Job(part, str(item), level, share), None
        try:
            yield
        except LeftOut:
            self.left_out.setdefault(self._experiment, {}).setdefault(part, []).append(str(item))
        finally:
            if self._begun is not None:
                key = (self._experiment, part)
                took = self._clock() - self._begun + self._lacked
                self._longest[key] = max(self._longest.get(key, 0.0), took / share)
                spent = self._spent.setdefault(self._experiment, [0.0, 0.0])
                spent[0] += took
                spent[1] += self._nominal(share)
            (self._job, self._begun), self._lacked = outer, 0.0

    @property
    def is_working(self) -> bool:
        """Return whether the present job makes anything that was not recorded."""
        return self._begun is not None

    def claim(self) -> None:
        """Begin the work of the present job.

        Raises:
          LeftOut: the expected time exceeds the seconds left, or the job is of a later level.
        """
        job = self._job
        if job is None or self._begun is not None:
            return
        if job.level > self._level or not self._fits(job):
            raise LeftOut(f"{job.part} {job.item}")
        self._begun, self.has_worked = self._clock(), True

    def go_on(self, seconds: float) -> None:
        """Go on with the present job, the rest of which is now expected to take so long.

        Raises:
          LeftOut: the seconds left are fewer.
        """
        if self._job is not None and seconds > self._left():
            self._lacked = seconds
            raise LeftOut(f"{self._job.part} {self._job.item}")

    def _fits(self, job: _Job) -> bool:
        key = (self._experiment, job.part)
        took, nominal = self._spent.get(self._experiment, (0.0, 0.0))
        slower = max(1.0, took / nominal) if nominal else 1.0
        expected = slower * self._expected.get(self._experiment, 0.0)
        return job.share * self._longest.get(key, expected) <= self._left()

    def _nominal(self, share: float) -> float:
        return share * self._expected.get(self._experiment, 0.0)

    def _left(self) -> float:
        """Return the seconds that are left for jobs, after the drawing of every experiment."""
        if self.seconds is None:
            return math.inf
        names = {*self._expected, *self._drawing}
        reserve = sum(max(self._reserve, self._drawing.get(name, 0.0)) for name in names)
        return self.seconds - (self._clock() - self._start) - reserve

    def is_left_out(self, experiment: str) -> bool:
        """Return whether an experiment has left out all of its jobs, and so written nothing."""
        return experiment in self.left_out.get(experiment, {})

    def information(self) -> dict[str, Any]:
        """Return what the record of the present experiment says of the budget; {} if all fits."""
        left_out = self.left_out.get(self._experiment)
        if not left_out:
            return {}
        parts = [f"{part} {_listed(items)}".strip() for part, items in left_out.items()]
        return {"budget_seconds": self.seconds, "left_out": parts}


def _listed(items: Sequence[str]) -> str:
    """Join names; of integers that follow one another the ends are named.

    >>> _listed(["2", "3", "4", "7", "9", "10"])
    '2–4, 7, 9, 10'
    """
    runs: list[list[str]] = []
    for item in items:
        if runs and item.isdecimal() and runs[-1][-1] == str(int(item) - 1):
            runs[-1].append(item)
        else:
            runs.append([item])
    texts = (f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)
    return ", ".join(texts)


_present = Budget()


def present() -> Budget:
    """Return the budget of the command that is running; without a limit unless it has one."""
    return _present


@contextmanager
def keep(budget: Budget) -> Iterator[Budget]:
    """Make a budget the present one."""
    global _present
    before, _present = _present, budget
    try:
        yield budget
    finally:
        _present = before


@wraps(measurement.measured_once)
def measured_once(
    folder: Path, label: str, config: Mapping[str, Any], measure: Callable[[], Any]
) -> dict[str, Any]:
    """Return `fwdgrad.measurement.measured_once`, with a claim of time before a measurement."""

    def claim_and_measure() -> Any:
        present().claim()
        return measure()

    return measurement.measured_once(folder, label, config, claim_and_measure)
