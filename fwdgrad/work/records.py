"""What a run leaves behind: its identity, its folder, its metrics and where they come from.

A run is a config and a seed. Runs of one config share an identity, the hash of the config,
and a folder named after it, with a folder for each seed:

    <root>/<label>-<identity>/seed-<seed>/
        config.yaml      the resolved config, written by the experiment
        metrics.csv      one row an evaluation, the columns of `Metrics`
        run.json         seed, status, final metrics, the steps at which it was resumed; code,
                         versions and hardware of the process that wrote it last
        checkpoint.eqx   the training state; the final one, once the run has finished
"""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fwdgrad.work.files import atomic_write


class Metrics(NamedTuple):
    """One row of `metrics.csv`: the state of training after `step` updates.

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
    """A run that has been read back: its folder, the content of `run.json`, and its metrics."""

    folder: Path
    info: dict[str, Any]
    metrics: list[Metrics]


def config_identity(config: Mapping[str, Any]) -> str:
    """The first 10 hexadecimal digits of the SHA-256 sum of a config of plain values.

    The order of the keys does not matter.

    >>> config_identity({"a": 1, "b": [2, None]}) == config_identity({"b": [2, None], "a": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_folder(root: str | Path, label: str, identity: str, seed: int) -> Path:
    """The folder of a run.

    >>> run_folder("runs", "mlp-backprop", "0123456789", 4).as_posix()
    'runs/mlp-backprop-0123456789/seed-4'
    """
    return Path(root) / f"{label}-{identity}" / f"seed-{seed}"


def write_metrics(folder: Path, rows: Iterable[Metrics]) -> None:
    """Writes `metrics.csv`; floats are written so that they read back to the bit."""
    write_table(folder / "metrics.csv", Metrics._fields, rows)


def read_metrics(folder: Path) -> list[Metrics]:
    """Reads `metrics.csv`; no rows if there is no such file."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    return [
        Metrics(int(row.pop("step")), **{name: float(x) for name, x in row.items()})
        for row in read_table(path)
    ]


def write_table(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a tidy CSV file, whole or not at all."""
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, str]]:
    """Reads a CSV file: a dict a row, from the column's name to the text of its entry."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all; a number that is not finite becomes a string."""
    with atomic_write(path) as file:
        json.dump(_finite(content), file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_run(folder: Path) -> RunRecord | None:
    """Reads a run back; None if there is none in `folder`."""
    path = folder / "run.json"
    if not path.exists():
        return None
    return RunRecord(folder, read_json(path), read_metrics(folder))


def _finite(value: Any) -> Any:
    """`value` with every number that JSON cannot hold as a string: nan, inf or -inf."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
