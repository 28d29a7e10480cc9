"""`fwdgrad.compare` on a problem of the group `problem`: table, figure and report.

The start and the minibatch are those of the laboratory (`estimator_quality`) with the same seed.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
from omegaconf import DictConfig

import fwdgrad
from experiments.common import from_config, jobs, problems, style, tables
from experiments.quality.gradient_quality import minibatch
from fwdgrad import EstimatorComparison
from fwdgrad.measurement import Interval, exact
from fwdgrad.records import provenance, read_json, write_table
from fwdgrad.training import first_params

NAME = "compare"
_COLUMNS: tables.Columns = {"estimator": str, "quantity": str}
_QUALITY = ("cosine", "slope", "bias", "variance")
_COST = (
    "relative_time", "seconds", "total_bytes", "temporary_bytes", "operations", "compile_seconds",
)  # fmt: skip
_BLUE = "#0072B2"


def run(cfg: DictConfig, folder: Path) -> EstimatorComparison:
    """Compare the estimators on a `compare` config's problem, and write the table.

    Raises:
      ValueError: a key has a wrong value, or the problem cannot be made.
    """
    begun = time.monotonic()
    problem, size = problems.problem(cfg), cfg.batch_size
    batch = minibatch(problem, size, cfg.seed)
    result = fwdgrad.compare(
        problem.loss,
        first_params(problem.init, cfg.seed),
        batch,
        estimators=_estimators(cfg),
        key=jax.random.key(cfg.seed),
        half_width=cfg.half_width,
        max_keys=cfg.max_keys,
        max_seconds=cfg.max_seconds,
        compiler_options=cfg.compiler_options,
        show_progress=cfg.output.progress,
    )
    rows = [
        (row.name, quantity, *interval)
        for row in result.rows
        for quantity, interval in {
            **{name: getattr(row, name) for name in _QUALITY},
            **{name: exact(getattr(row, name)) for name in ("num_keys", *_COST)},
        }.items()
    ]
    write_table(folder / f"{NAME}.csv", [*_COLUMNS, *tables.INTERVAL], rows)
    information = {
        "problem": problems.name(cfg),
        **{key: cfg[key] for key in ("batch_size", "seed", "half_width", "max_keys")},
        **{key: getattr(result, key) for key in ("legend", "notes", "recommendation")},
        "turns": result.num_turns,
        "provenance": [provenance()],
        "wall_seconds": time.monotonic() - begun,
    }
    jobs.write_information(folder, NAME, [NAME], information)
    return result


def _estimators(cfg: DictConfig) -> dict[str, Callable[..., Any]]:
    """Return the usual estimators, and the one that the config chooses, if it is another."""
    own, label = from_config.estimator(cfg), style.label(cfg.estimator.label)
    usual = dict(fwdgrad.USUAL_ESTIMATORS)
    if any(_options(make) == _options(own) for make in usual.values()):
        return usual
    return {**usual, label if label not in usual else f"{label}, of the config": own}


def _options(make: Callable[..., Any]) -> Any:
    """Return the type and the options of the estimator that a function makes of a loss."""
    made = make(_options)  # for some loss, the same for all
    return type(made), [getattr(made, field.name) for field in dataclasses.fields(made)]


def _read(folder: Path) -> dict[str, dict[str, Interval]]:
    """Return estimator -> quantity -> interval."""
    return tables.read_intervals(folder / f"{NAME}.csv", _COLUMNS)


def draw(folder: Path) -> None:
    """Draw cosines, or variances where there is no exact gradient, against the time of a step."""
    information = read_json(folder / f"{NAME}.json")
    measured = {
        name: row for name, row in _read(folder).items() if not math.isnan(row["seconds"].value)
    }
    quantity = "cosine" if _has_gradient(measured) else "variance"
    unit = measured["backprop"]["seconds"].value if "backprop" in measured else None
    figure, axis = plt.subplots(figsize=(0.8 * style.WIDTH, 4))
    for name, row in measured.items():
        time = row["seconds"].value / unit if unit else row["relative_time"].value
        value, low, high, n = row[quantity]
        colour = "black" if name.startswith("backprop") else _BLUE
        style.bars(axis, [time], [value], [[low], [high]], [n], color=colour)
        style.end_label(axis, time, value, name, colour)
    style.log_scale(axis, "xy")
    axis.set_xlabel(f"time of a step, over that of {'backprop' if unit else 'the loss alone'}")
    axis.set_ylabel(
        "cosine with the exact gradient" if quantity == "cosine" else "variance, E‖g − E g‖²"
    )
    axis.set_title(f"{information['problem']}, minibatch {information['batch_size']}")
    numbers = [row[quantity].n for row in measured.values()] or [0]
    bars = f"bars: 95 % intervals of the {quantity} (Student's t)"
    caption = (
        f"Means, {style.samples(numbers, 'groups of keys', bars)}. Times: medians over n = "
        f"{information['turns']} turns of one process, without an interval."
    )
    style.save(figure, folder, NAME, caption)


def _has_gradient(rows: Mapping[str, Mapping[str, Interval]]) -> bool:
    return any(not math.isnan(row["cosine"].value) for row in rows.values())


def describe(folder: Path) -> str:
    """Return the report in Markdown: recommendation, figure, table and notes."""
    information = read_json(folder / f"{NAME}.json")
    rows = [
        (
            name,
            *(_text(row[quantity]) for quantity in (*_QUALITY, "num_keys", "relative_time")),
            _text(exact(row["total_bytes"].value / 2**20)),
            *(_text(row[quantity]) for quantity in ("operations", "compile_seconds")),
        )
        for name, row in _read(folder).items()
    ]
    header = (
        "estimator", *_QUALITY, "keys", "R", "total MiB", "operations", "compilation (s)",
    )  # fmt: skip
    lines = [
        f"## Estimators on {information['problem']}, minibatch {information['batch_size']}",
        "",
        information["recommendation"],
        "",
        f"![Quality against time]({NAME}.png)",
        "",
        *tables.markdown(header, rows),
        "",
        information["legend"],
        *(line for note in information["notes"] for line in ("", note)),
    ]
    return "\n".join(lines)


def _text(interval: Interval) -> str:
    return "–" if math.isnan(interval.value) else str(interval)
