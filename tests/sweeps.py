"""Rows of parametrised sweeps: a few in every run, all of them with `pytest --thorough`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


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
