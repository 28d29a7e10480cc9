"""Tables of an experiment as data frames; a missing line or entry raises an error.

Files are read and written by `fwdgrad.records` and not by pandas, which fills a short row with nan,
takes the first of too many entries for a name, reads a table that was cut, and writes integers
beside a gap as floats. Markdown is written here, since `DataFrame.to_markdown` needs one more
package and pads cells, so that one longer entry changes every line.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fwdgrad.measurement import Interval
from fwdgrad.records import RecordError, read_table

_REMEDY = "Restore the file, or make it again: run the command that made it, without draw_only."
# Name of a column -> str, int, float or `gaps`, the function that parses its entries.
Columns = Mapping[str, Callable[[str], Any]]
INTERVAL: Columns = {"value": float, "low": float, "high": float, "n": int}


def gaps(entry: str) -> float:
    """Parse a number; return nan for an empty entry.

    >>> gaps("1.5"), gaps("")
    (1.5, nan)
    """
    return float(entry) if entry else float("nan")


def read(path: Path, columns: Columns, grid: Sequence[str] = ()) -> pd.DataFrame:
    """Read columns of a table that has rows.

    Args:
      path: the file.
      columns: to read; others that the table has are left out.
      grid: columns of whose values every combination has one row.

    Raises:
      RecordError: there is no row, no such column, an entry of another kind, or no such grid.
    """
    rows = read_table(path)
    if not rows:
        raise RecordError(f"{path} has no rows. {_REMEDY}")
    for column in columns:
        if column not in rows[0]:
            raise RecordError(f"{path} has no column {column}: {', '.join(rows[0])}. {_REMEDY}")
    entries = {name: _entries(path, rows, name, kind) for name, kind in columns.items()}
    table = pd.DataFrame(entries)
    if grid:
        expected = pd.MultiIndex.from_product([table[name].unique() for name in grid])
        found = pd.MultiIndex.from_frame(table[[*grid]])
        wrong = [*expected.difference(found), *found[found.duplicated()]]
        if wrong:
            raise RecordError(
                f"{path}: rows are missing, or there twice: {', '.join(grid)} of {wrong[0]}. "
                f"{_REMEDY}"
            )
    return table


def _entries(
    path: Path, rows: list[dict[str, str]], column: str, kind: Callable[[str], Any]
) -> list[Any]:
    entries = []
    for i, row in enumerate(rows, start=1):
        try:
            entries.append(kind(row[column]))
        except ValueError:
            wanted = "an integer" if kind is int else "a number"
            raise RecordError(
                f"{path}, row {i}: {column} is {row[column]!r}, not {wanted}. {_REMEDY}"
            ) from None
    return entries


def read_intervals(path: Path, names: Columns) -> Any:
    """Read a table of intervals; return nested dicts, a level for each of `names`."""
    found: dict[Any, Any] = {}
    for *outer, last, value, low, high, n in read(path, {**names, **INTERVAL}).itertuples(False):
        inner = found
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = Interval(value, low, high, n)
    return found


def by_seed(line: pd.DataFrame, columns: Iterable[str]) -> dict[str, np.ndarray]:
    """Return column -> an array (seeds, rows)."""
    runs = [run for _, run in line.groupby("seed", sort=False)]
    return {column: np.stack([run[column].to_numpy() for run in runs]) for column in columns}


def read_lines(
    path: Path, panel: str, columns: Columns, diverged: Iterable[Sequence[Any]] = ()
) -> dict[str, dict[str, Any]]:
    """Read a table with a row for each step of a run; return panel -> estimator -> `by_seed`.

    Args:
      path: the file.
      panel: the column that names a panel.
      columns: of the table, `estimator`, `seed` and `step` among them.
      diverged: (panel, estimator, seed) of runs that have no rows.

    Raises:
      RecordError: as `read`, `check_same_steps` and `check_paired` do.
    """
    table = read(path, columns)
    check_same_steps(path, table, [panel, "estimator"])
    check_paired(path, table, panel, diverged)
    numbers = [column for column in columns if column not in (panel, "estimator")]
    return {
        name: {x: by_seed(line, numbers) for x, line in lines.groupby("estimator", sort=False)}
        for name, lines in table.groupby(panel, sort=False)
    }


def check_same_steps(path: Path, table: pd.DataFrame, names: Sequence[str]) -> None:
    """Raise an error unless all seeds of a line have rows of the same, rising steps.

    Args:
      path: the file of the table, for the error.
      table: with the columns `seed` and `step`.
      names: the columns that name a line.

    Raises:
      RecordError: a run has fewer rows than another of its line, or other ones.
    """
    for name, line in table.groupby(list(names), sort=False):
        steps = {seed: run["step"].tolist() for seed, run in line.groupby("seed", sort=False)}
        first = next(iter(steps))
        for seed, of_run in steps.items():
            run, other = (f"{', '.join(map(str, name))}, seed {x}" for x in (seed, first))
            if of_run != sorted(set(of_run)):
                raise RecordError(f"{path}: the steps of {run} do not rise: {of_run}. {_REMEDY}")
            if of_run != steps[first]:
                differ = ", ".join(map(str, sorted(set(of_run) ^ set(steps[first]))))
                raise RecordError(
                    f"{path}: rows are missing: {run} has {len(of_run)} and {other} "
                    f"{len(steps[first])}, of which the steps {differ} are in one alone. {_REMEDY}"
                )


def check_paired(
    path: Path, table: pd.DataFrame, panel: str, diverged: Iterable[Sequence[Any]] = ()
) -> None:
    """Raise an error unless all estimators of a panel have the same seeds.

    Args:
      path: the file of the table, for the error.
      table: with the columns `estimator` and `seed`.
      panel: the column that names a panel.
      diverged: as in `read_lines`.

    Raises:
      RecordError: a seed is missing.
    """
    known = {tuple(run) for run in diverged}
    for name, lines in table.groupby(panel, sort=False):
        for estimator, line in lines.groupby("estimator", sort=False):
            missing = sorted(set(lines["seed"]) - set(line["seed"]))
            if missing := [seed for seed in missing if (name, estimator, seed) not in known]:
                raise RecordError(
                    f"{path}: rows are missing: {name}, {estimator} has none of the seeds "
                    f"{', '.join(map(str, missing))}, which other lines have. {_REMEDY}"
                )


def markdown(columns: Sequence[Any], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Return the lines of a table in Markdown.

    >>> markdown(["a", "b"], [[1, 2.5]])
    ['| a | b |', '|---|---|', '| 1 | 2.5 |']
    """
    heading, *lines = (f"| {' | '.join(map(str, row))} |" for row in (columns, *rows))
    return [heading, f"|{'---|' * len(columns)}", *lines]
