"""Rows of parametrised sweeps: a few in every run, all of them with `pytest --thorough`.

The short run takes `MOST_ROWS` rows of each sweep, spread over it; `thorough_but` names them where
others matter more. The files beside this one check every file and every number of the repository.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

MOST_ROWS = 4  # of a sweep in the short run


def beyond_the_short_run(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield the rows of each sweep that the short run leaves out, of those it would take."""
    sweeps = defaultdict(list)
    for item in items:
        is_of_all_files = item.path.parent == Path(__file__).parent
        is_row = hasattr(item, "callspec") and not item.get_closest_marker("thorough")
        if is_row and not is_of_all_files:
            sweeps[item.parent, item.originalname].append(item)  # type: ignore[attr-defined]
    for rows in sweeps.values():
        kept = spread(len(rows), MOST_ROWS)
        yield from (row for i, row in enumerate(rows) if i not in kept)


def spread(number: int, most: int) -> set[int]:
    """Return at most `most` of the indices below `number`, the first and the last among them.

    >>> sorted(spread(9, 4)), sorted(spread(3, 4))
    ([0, 3, 5, 8], [0, 1, 2])
    """
    if number <= most:
        return set(range(number))
    return {round(i * (number - 1) / (most - 1)) for i in range(most)}


def thorough_but(always: Collection[Any], rows: Iterable[Any]) -> list[Any]:
    """Return the rows of a parametrised test, marked `thorough` unless they are in `always`.

    Raises:
      ValueError: a row of `always` is not among `rows`.
    """
    rows = list(rows)
    if missing := [row for row in always if row not in rows]:
        raise ValueError(f"not among the rows of the sweep: {missing}")
    return [
        row if row in always else pytest.param(*_values(row), marks=pytest.mark.thorough)
        for row in rows
    ]


def _values(row: Any) -> tuple[Any, ...]:
    return row if isinstance(row, tuple) else (row,)
