"""The runs under a folder as rows: curves, final numbers, groups to filter by, provenance."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from experiments.common import vocabulary
from fwdgrad.records import Metrics, RecordError, RunRecord, read_run

MOST_POINTS = 200  # of a curve
CEILING = 10  # times the largest first loss, above which losses are drawn as that
GROUPS = (
    *("problem", "model", "dataset", "estimator", "tangents", "K", "optimizer", "platform"),
    *("seed", "status"),
)
MEAN = "means"
NUMBERS = (*Metrics._fields, "test_loss", "test_accuracy", "rate")
_IMAGES = "fwdgrad.problems.image_classification"  # of configs from before there were others
_NONE = "–"


class Run(NamedTuple):
    """A recorded run: its folder below the root, its record, its config as text and as a dict."""

    name: str
    record: RunRecord
    text: str
    config: dict[str, Any]


class Row(NamedTuple):
    """A run, or the mean over the seeds of a config.

    Attributes:
      name: the folder, below the root.
      runs: the run itself, or those of the mean.
      key: the estimator's key in the vocabulary, without the number of tangents.
      groups: group -> the run's value.
      curve: column of the metrics -> an array, at the same steps for all columns.
      numbers: the last of each column, the test set's loss and accuracy if it was read, and the
        first learning rate.
      seed_choices: the values of a filter by seed that show the row.
    """

    name: str
    runs: tuple[Run, ...]
    key: str
    groups: dict[str, str]
    curve: dict[str, np.ndarray]
    numbers: dict[str, float]
    seed_choices: tuple[str, ...]


def find_runs(root: Path) -> tuple[list[Run], list[str]]:
    """Return the runs under a folder, and for each damaged one its folder and the reason."""
    runs, damaged = [], []
    for folder in sorted(path for path in root.rglob("seed-*") if path.is_dir()):
        name = folder.relative_to(root).as_posix()
        try:
            record = read_run(folder)
            if record is None:
                raise RecordError("there is no run.json")
            text = (folder / "config.yaml").read_text(encoding="utf-8")
            config: Any = OmegaConf.to_container(OmegaConf.create(text))
            run = Run(name, record, text, config)
            _row(run, ())
        except Exception as error:  # any damage of a file, and it must not stop the page
            damaged.append(f"{name}: {type(error).__name__}: {error}")
        else:
            runs.append(run)
    return runs, damaged


def rows(runs: Iterable[Run]) -> list[Row]:
    """Return means over the seeds of a config that have not diverged, if two or more, and runs."""
    configs: dict[str, list[Run]] = {}
    for run in runs:
        configs.setdefault(run.name.rpartition("/")[0], []).append(run)
    made, means = [], []
    for seeds in configs.values():
        kept = [run for run in seeds if run.record.metrics and _status(run) != "diverged"]
        has_mean = len(kept) > 1
        # A filter by the mean shows the runs that are in none.
        made += [_row(run, () if has_mean and run in kept else (MEAN,)) for run in seeds]
        if has_mean:
            means.append(_mean(kept, len(seeds)))
    return means + made


def _row(run: Run, more_choices: tuple[str, ...]) -> Row:
    curve, numbers = _curve(np.array(run.record.metrics, float))
    final = run.record.info.get("final", {})
    numbers |= {name: float(final.get(name, "nan")) for name in ("test_loss", "test_accuracy")}
    numbers["rate"] = float(run.config["learning_rate"])
    groups, key = _groups(run), run.config["estimator"]["label"]
    return Row(run.name, (run,), key, groups, curve, numbers, (groups["seed"], *more_choices))


def _mean(runs: Sequence[Run], num_seeds: int) -> Row:
    """Return the mean at the steps that all runs have, of runs of one config."""
    rows = [_row(run, ()) for run in runs]
    by_step = [{row.step: row for row in run.record.metrics} for run in runs]
    common = sorted(set.intersection(*map(set, by_step)))
    tables = [np.array([steps[step] for step in common], float) for steps in by_step]
    curve, numbers = _curve(np.mean(tables, axis=0))
    for name in ("test_loss", "test_accuracy", "rate"):
        numbers[name] = float(np.mean([row.numbers[name] for row in rows]))
    statuses = sorted({row.groups["status"] for row in rows}, reverse=True)  # running first
    of = "" if len(runs) == num_seeds else f" of {num_seeds}"
    groups = {**rows[0].groups, "seed": f"mean of {len(runs)}{of}", "status": statuses[0]}
    name = runs[0].name.rpartition("/")[0]
    return Row(name, tuple(runs), rows[0].key, groups, curve, numbers, (MEAN,))


def _curve(table: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the columns of a table of metrics and its last row, nan if it has no row.

    Of the rows at most `MOST_POINTS` are kept, evenly spaced, the first and the last among them.
    """
    table = table.reshape(-1, len(Metrics._fields))
    last = table[-1] if len(table) else np.full(len(Metrics._fields), np.nan)
    if len(table) > MOST_POINTS:
        table = table[np.linspace(0, len(table) - 1, MOST_POINTS).round().astype(int)]
    numbers = dict(zip(Metrics._fields, map(float, last), strict=True))
    return dict(zip(Metrics._fields, table.T, strict=True)), numbers


def _groups(run: Run) -> dict[str, str]:
    """Return group -> the run's value."""
    config, info = run.config, run.record.info
    problem = config.get("problem", {}).get("_target_", _IMAGES)
    label = run.name.split("/")[-2]
    short = vocabulary.problem_name(problem)

    def read(group: str) -> str:
        """Return the choice of a group, unless the problem does not read it."""
        name = config.get(group, {}).get("name", _NONE)
        is_read = problem == _IMAGES or f"-{name}-" in label.removeprefix(short)
        return str(name) if is_read else _NONE

    return {
        "problem": short,
        "model": read("model"),
        "dataset": read("dataset"),
        "estimator": _estimator(config),
        "tangents": config.get("tangents", {}).get("name", _NONE),
        "K": str(config["estimator"]["value_and_grad"].get("num_tangents", _NONE)),
        "optimizer": _optimizer(config["optimizer"]),
        "platform": info.get("jax", {}).get("platform", _NONE),
        "seed": str(info["seed"]),
        "status": _status(run),
    }


def _status(run: Run) -> str:
    return run.record.info["status"]


def _estimator(config: dict[str, Any]) -> str:
    """Return the name of an estimator, with the options of its space."""
    space = config["estimator"]["value_and_grad"].get("space") or {}
    name = vocabulary.label(config["estimator"]["label"])
    if space.get("layerwise"):
        name = name.replace("joint", "layer-wise")
    exact = ", exact last"
    return name + exact if space.get("exact_last") and exact not in name else name


def _optimizer(config: dict[str, Any]) -> str:
    """Return the names of an optimizer and its schedule, "sgd, exponential decay"."""
    rate = config.get("learning_rate")
    parts = [config["_target_"], *([rate["_target_"]] if isinstance(rate, dict) else [])]
    names = [part.rpartition(".")[2].removesuffix("_schedule") for part in parts]
    return ", ".join(names).replace("_", " ")
