"""The raw times of an experiment, `<experiment>_timings.csv`: a row a program, process and turn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import tables
from fwdgrad.measurement import Sample
from fwdgrad.records import RecordError, write_table

_COLUMNS: tables.Columns = {"program": str, "process": int, "turn": int, "seconds": float}
Key = tuple[Any, ...]


def write_timings(
    path: Path, records: Mapping[Key, Mapping[str, Any]], names: Sequence[str] = ()
) -> None:
    """Write the samples of records of `time_in_processes`.

    Args:
      path: the file.
      records: the values of the columns `names` -> a record of `measured_once`.
      names: the columns that tell the records apart; none for one record, whose key is ().
    """
    rows = [
        (*key, *sample) for key, record in records.items() for sample in record["result"]["samples"]
    ]
    write_table(path, [*names, *_COLUMNS], rows)


def read_timings(path: Path, names: tables.Columns | None = None) -> dict[Key, list[Sample]]:
    """Return the values of the columns `names` -> samples.

    Raises:
      RecordError: a row is missing: a program lacks a turn that another has in the same process.
    """
    names = names or {}
    found: dict[Key, list[Sample]] = {}
    for row in tables.read(path, {**names, **_COLUMNS}).itertuples(index=False):
        found.setdefault(tuple(row[: len(names)]), []).append(Sample(*row[len(names) :]))
    for key, samples in found.items():
        turns = [(s.process, s.turn) for s in samples if s.program == samples[0].program]
        for name in dict.fromkeys(sample.program for sample in samples):
            if (of_program := [s[1:3] for s in samples if s.program == name]) != turns:
                raise RecordError(
                    f"{path}: rows are missing, or there twice: {', '.join(map(str, key))} has "
                    f"{len(of_program)} turns of {name} and {len(turns)} of {samples[0].program}. "
                    "Restore the file, or make it again: run the command that made it."
                )
    return found


def processes_of(records: Mapping[Key, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return of each process: its key, the machine's state at its start, and compilation."""
    return [
        {"of": list(key), "process": i, **about}
        for key, record in records.items()
        for i, about in enumerate(record["result"]["processes"])
    ]


def note_on_sharing(information: Mapping[str, Any]) -> str:
    """Return the sentence on processes that several measurements share; "" if none does.

    >>> note_on_sharing({"processes": [{"process": 0}]})
    ''
    """
    processes = information["processes"]
    if not any(process.get("before") or process.get("beside") for process in processes):
        return ""
    text = (
        " The processes are the same for all panels, so programs of later panels may compile "
        "faster than in a process of their own"
    )
    at_once = dict.fromkeys(
        " ".join(map(str, process["of"])) for process in processes if process.get("beside")
    )
    if at_once:
        text += (
            f"; those of {', '.join(at_once)} compiled in all processes at the same time, which "
            "takes longer"
        )
    return f"{text}."
