"""CSV and JSON files: written whole, read back to the bit, checked when they are read."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fwdgrad.records.files import atomic_write

_MAKE_AGAIN = "Restore the file, or make it again: run the command that made it, without draw_only."


class RecordError(ValueError):
    """A recorded file is lost, cut or changed."""


def table_sum(columns: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 sum of a table's entries.

    Quotes, line ends and a byte order mark change nothing.

    >>> table_sum(["a"], [[1]]) == table_sum(["a"], [["1"]])
    True
    """
    content = [[str(entry) for entry in row] for row in (columns, *rows)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def text_sum(text: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 sum of a text's lines, without trailing space."""
    lines = [line.rstrip() for line in text.lstrip("\ufeff").splitlines()]
    return hashlib.sha256("\n".join(line for line in lines if line).encode()).hexdigest()[:16]


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a tidy CSV file, whole or not at all."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_table(path: Path, remedy: str = _MAKE_AGAIN) -> list[dict[str, str]]:
    """Read a CSV file: for each row a dict from the column's name to the text of its entry.

    A byte order mark, quotes and other line ends, as spreadsheets write them, are read.

    Args:
      path: the file.
      remedy: the end of error messages.

    Raises:
      FileNotFoundError: there is no such file.
      RecordError: it is no table: empty, cut, or with a row of another length than the header.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{path} is no CSV file in UTF-8: {error}. {remedy}") from error
    if not rows:
        raise RecordError(f"{path} is empty. {remedy}")
    if not text.endswith(("\n", "\r")):
        raise RecordError(f"{path} is cut: its last line, {rows[-1]}, does not end. {remedy}")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(rows[0]):
            lengths = f"row {number} has {len(row)} entries, the header {len(rows[0])}"
            raise RecordError(f"{path} is damaged: {lengths}. {remedy}")
    return [_Row(path, zip(rows[0], row, strict=True)) for row in rows[1:]]


class _Row(dict[str, str]):
    """A row of a table; an unknown column raises an error that names the file."""

    def __init__(self, path: Path, entries: Iterable[tuple[str, str]]):
        super().__init__(entries)
        self._path = path

    def __missing__(self, column: str) -> str:
        found = f"has no column {column!r}, but {', '.join(self)}"
        raise RecordError(f"{self._path} {found}. {_MAKE_AGAIN}")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all; numbers that are not finite become strings."""
    with atomic_write(path) as file:
        json.dump(_finite(content), file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: Path, keys: Iterable[str] = ()) -> Any:
    """Read a JSON file.

    Args:
      path: the file.
      keys: required keys of the object.

    Raises:
      FileNotFoundError: there is no such file.
      RecordError: it is no JSON, or not an object with these keys.
    """
    remedy = "Restore the file, or delete it and run the command that made it once more."
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        raise RecordError(f"{path} is no JSON file in UTF-8: {error}. {remedy}") from error
    if keys and not isinstance(content, dict):
        raise RecordError(f"{path} holds {type(content).__name__}, not an object. {remedy}")
    if missing := [key for key in keys if key not in content]:
        raise RecordError(f"{path} has no {', '.join(missing)}. {remedy}")
    return content


def _finite(value: Any) -> Any:
    """Return `value` with every number that JSON cannot hold as a string: nan, inf or -inf."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
