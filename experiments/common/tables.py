"""Tables of an experiment; a missing line or entry raises an error with file and row."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fwdgrad.records import RecordError, read_table

_REMEDY = "Restore the file, or make it again: run the command that made it, without draw_only."


def read(path: Path, numbers: Iterable[str] = ()) -> list[dict[str, str]]:
    """Read a table that has rows.

    Args:
      path: the file.
      numbers: columns in which every entry is a number (nan and inf are).

    Raises:
      RecordError: there is no row, no such column, or an entry that is no number.
    """
    rows = read_table(path)
    if not rows:
        raise RecordError(f"{path} has no rows. {_REMEDY}")
    for column in numbers:
        if column not in rows[0]:
            raise RecordError(f"{path} has no column {column}: {', '.join(rows[0])}. {_REMEDY}")
        for i, row in enumerate(rows, start=1):
            try:
                float(row[column])
            except ValueError:
                raise RecordError(
                    f"{path}, row {i}: {column} is {row[column]!r}, not a number. {_REMEDY}"
                ) from None
    return rows


def check_same_steps(path: Path, runs: Mapping[Any, Sequence[float]]) -> None:
    """Raise an error unless all runs of a line have rows of the same, rising steps.

    Args:
      path: the file of the table, for the error.
      runs: (name, …, seed) -> the steps of the rows.

    Raises:
      RecordError: a run has fewer rows than another of its line, or other ones.
    """
    expected: dict[tuple[str, ...], tuple[tuple[str, ...], Sequence[float]]] = {}
    for run, steps in runs.items():
        other, of_other = expected.setdefault(run[:-1], (run, steps))
        if list(steps) != sorted(set(steps)) or any(map(math.isnan, steps)):
            raise RecordError(f"{path}: the steps of {_named(run)} do not rise: {steps}. {_REMEDY}")
        if list(steps) != list(of_other):
            differ = ", ".join(f"{step:g}" for step in sorted(set(steps) ^ set(of_other)))
            raise RecordError(
                f"{path}: rows are missing: {_named(run)} has {len(steps)} and {_named(other)} "
                f"{len(of_other)}, of which the steps {differ} are in one alone. {_REMEDY}"
            )


def check_paired(path: Path, runs: Iterable[tuple[str, str, str]]) -> None:
    """Raise an error unless all lines of a panel have the same seeds.

    Args:
      path: the file of the table, for the error.
      runs: (panel, line, seed).

    Raises:
      RecordError: a seed is missing.
    """
    seeds: dict[str, dict[str, set[str]]] = {}
    for panel, line, seed in runs:
        seeds.setdefault(panel, {}).setdefault(line, set()).add(seed)
    for panel, lines in seeds.items():
        of_all = set().union(*lines.values())
        for line, of_line in lines.items():
            if missing := sorted(of_all - of_line):
                raise RecordError(
                    f"{path}: rows are missing: {panel}, {line} has none of the seeds "
                    f"{', '.join(missing)}, which other lines have. {_REMEDY}"
                )


def _named(run: tuple[str, ...]) -> str:
    return f"{', '.join(run[:-1])}, seed {run[-1]}"
