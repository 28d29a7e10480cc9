"""The record of a run: identity, folder, metrics and provenance.

A run is a config and a seed. Runs of one config share an identity, the hash of the config,
and a folder named after it, with a folder for each seed:

    <root>/<label>-<identity>/seed-<seed>/
        config.yaml      the resolved config, written by the experiment
        metrics.csv      one row an evaluation, the columns of `Metrics`
        run.json         seed, status, final metrics, the steps at which it was resumed; code,
                         settings of JAX, versions and hardware of the process that wrote it last,
                         `earlier` those of processes before; sums of the two files above
        checkpoint.eqx   the training state; the final one, once the run has finished

While a process writes to the folder there are `.lock` and `.holder.json`, too.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fwdgrad.records.serialization import (
    RecordError,
    read_json,
    read_table,
    table_sum,
    text_sum,
    write_table,
)

_STATUS = ("running", "finished", "diverged")
# Of run.json: the keys and types that every version has written.
_INFO = {"status": str, "seed": int, "settings": dict, "resumed_at": list, "wall_seconds": float}
_AGAIN = "Restore the file, or delete the folder {} to start the run from the beginning."


class Metrics(NamedTuple):
    """A row of `metrics.csv`: the state of training after `step` updates.

    Attributes:
      step: the number of updates made.
      seconds: training time up to here; without compilation, evaluation and logging.
      learning_rate: the rate that the next update uses.
      train_loss: the mean loss of the minibatches since the row before; in the first row, the
        loss of the first minibatch.
      valid_loss, valid_accuracy: means over the validation set.
    """

    step: int
    seconds: float
    learning_rate: float
    train_loss: float
    valid_loss: float
    valid_accuracy: float


class RunRecord(NamedTuple):
    """A run read back: its folder, the content of `run.json`, and its metrics."""

    folder: Path
    info: dict[str, Any]
    metrics: list[Metrics]


def config_identity(config: Mapping[str, Any]) -> str:
    """Return the first 10 hexadecimal digits of the SHA-256 sum of a config of plain values.

    The order of the keys does not matter.

    >>> config_identity({"a": 1, "b": [2, None]}) == config_identity({"b": [2, None], "a": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_folder(root: str | Path, label: str, identity: str, seed: int) -> Path:
    """Return the folder of a run.

    >>> run_folder("runs", "mlp-backprop", "0123456789", 4).as_posix()
    'runs/mlp-backprop-0123456789/seed-4'
    """
    return Path(root) / f"{label}-{identity}" / f"seed-{seed}"


def write_metrics(folder: Path, rows: Iterable[Metrics]) -> None:
    """Write `metrics.csv`; floats read back to the bit."""
    write_table(folder / "metrics.csv", Metrics._fields, rows)


def read_metrics(folder: Path) -> list[Metrics]:
    """Read `metrics.csv`; return no rows if there is no such file.

    Raises:
      RecordError: it is no table of metrics.
    """
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    remedy = _AGAIN.format(folder)
    table, rows = read_table(path, remedy), []
    for number, row in enumerate(table, start=1):
        if tuple(row) != Metrics._fields:
            columns, expected = ", ".join(row), ", ".join(Metrics._fields)
            found = f"has the columns {columns}, not {expected}"
            raise RecordError(f"{path} {found}. {remedy}")
        try:
            step, *others = row.values()
            rows.append(Metrics(int(step), *map(float, others)))
        except ValueError as error:
            raise RecordError(f"{path}, row {number}: {error}. {remedy}") from error
    return rows


def read_info(folder: Path) -> dict[str, Any] | None:
    """Read `run.json`; return None if there is none.

    Raises:
      RecordError: it does not describe a run.
    """
    path = folder / "run.json"
    if not path.exists():
        return None
    info = read_json(path, _INFO)
    remedy = _AGAIN.format(folder)
    for key, kind in _INFO.items():
        accepted = (int, float) if kind is float else kind
        if not isinstance(info[key], accepted) or isinstance(info[key], bool):
            raise RecordError(
                f"{path}: {key} is {info[key]!r}, not of type {kind.__name__}. {remedy}"
            )
    if info["status"] not in _STATUS:
        raise RecordError(f"{path}: status is {info['status']!r}, not one of {_STATUS}. {remedy}")
    needed = {"finished": ("final", dict), "diverged": ("message", str)}.get(info["status"])
    if needed and not isinstance(info.get(needed[0]), needed[1]):
        raise RecordError(f"{path}: a {info['status']} run has no {needed[0]}. {remedy}")
    return info


def read_run(folder: Path) -> RunRecord | None:
    """Read a run; return None if there is none in `folder`.

    Raises:
      RecordError: a file is damaged; of a finished run also if a file is lost or was changed.
    """
    info = read_info(folder)
    if info is None:
        return None
    record = RunRecord(folder, info, read_metrics(folder))
    if info["status"] == "finished":
        _check_finished(record)
    return record


def file_sums(rows: Iterable[Metrics], config: str) -> dict[str, str]:
    """Return the sums of a run's files, for `run.json`."""
    return {"metrics.csv": table_sum(Metrics._fields, rows), "config.yaml": text_sum(config)}


def _check_finished(record: RunRecord) -> None:
    """Check the files of a finished run against the sums in `run.json`; old runs have none."""
    folder, info, rows = record
    path, remedy = folder / "metrics.csv", _AGAIN.format(folder)
    if not path.exists():
        raise RecordError(f"{path} of a finished run is lost. {remedy}")
    num_steps, every = (info["settings"].get(key) for key in ("num_steps", "eval_every"))
    if isinstance(num_steps, int) and isinstance(every, int):
        expected = [*range(0, num_steps, every), num_steps]
        if (found := [row.step for row in rows]) != expected:
            raise RecordError(
                f"{path} has {len(found)} rows, the last of step {found[-1] if found else None}; "
                f"the finished run has {len(expected)}, the last of step {num_steps}. {remedy}"
            )
    for name, value in rows[-1]._asdict().items() if rows else ():
        if name in info["final"] and repr(value) != repr(type(value)(info["final"][name])):
            raise RecordError(
                f"{path}: the last row's {name} is {value}, in run.json {info['final'][name]}. "
                f"{remedy}"
            )
    known = info.get("sums", {})
    if "metrics.csv" in known and known["metrics.csv"] != table_sum(Metrics._fields, rows):
        raise RecordError(f"{path} was changed after the run had finished: other numbers. {remedy}")
    if "config.yaml" in known:
        config = folder / "config.yaml"
        if not config.exists():
            raise RecordError(f"{config} of a finished run is lost. {remedy}")
        if known["config.yaml"] != text_sum(config.read_text(encoding="utf-8", errors="replace")):
            raise RecordError(f"{config} was changed after the run had finished. {remedy}")
