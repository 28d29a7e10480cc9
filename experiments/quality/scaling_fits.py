"""The tables of `scaling_laws`, and the power laws fitted to them."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.common import costs, tables, timings
from experiments.common.curves import read_curves
from experiments.quality.power_laws import PowerLaw, fit
from fwdgrad.measurement import Interval, exact, geometric_mean_interval, mean_interval
from fwdgrad.records import read_json

COLUMNS: tables.Columns = {
    "axis": str, "line": str, "x": float, "parameters": float, "seed": int,
    "error": float, "law": float, "operations": float,
}  # fmt: skip
PARAMETERS = "parameters"  # the axis of the points of all widths and depths
NUMBER = "num_tangents"
BUDGETS = ("operations", "time")
_MOST_NUMBER = 1e9


class Errors(NamedTuple):
    """The errors of a line along an axis.

    Attributes:
      x: (points,).
      error, law: the error and its theory, nan where that is not known, (seeds, points).
      operations: of a step over those of backprop's, (points,).
    """

    x: np.ndarray
    error: np.ndarray
    law: np.ndarray
    operations: np.ndarray

    @property
    def overhead(self) -> np.ndarray:
        """Return (1 + error) · operations, the operations of a descent over backprop's."""
        return (1 + self.error) * self.operations


class Scaling(NamedTuple):
    """All that is measured.

    Attributes:
      errors: axis -> line -> errors.
      ratios: line -> error over theory of each seed and distinct point, (seeds, points).
      losses: "operations" or "time" -> line -> validation loss, (seeds, widths); nan where a run
        ends before the time, or the time is before its first evaluation.
      widths: of `losses`.
      seconds: the time of `losses`.
      information: the content of the JSON file.
    """

    errors: dict[str, dict[str, Errors]]
    ratios: dict[str, np.ndarray]
    losses: dict[str, dict[str, np.ndarray]]
    widths: np.ndarray
    seconds: float
    information: Mapping[str, Any]


def read(folder: Path, name: str, information: Mapping[str, Any] | None = None) -> Scaling:
    """Read the tables; `information` is the content of the JSON file, if it is not written yet."""
    information = information or read_json(folder / f"{name}.json")
    path = folder / f"{name}.csv"
    errors: dict[str, dict[str, Errors]] = {}
    ratios = {}
    if "errors" in information["parts"]:
        table = tables.read(path, COLUMNS)
        for (axis, line), rows in table.groupby(["axis", "line"], sort=False):
            errors.setdefault(axis, {})[line] = _errors(rows, "x")
        for line, rows in table.groupby("line", sort=False):
            of_sizes = rows[rows["axis"].isin(["width", "depth"])]
            if line.startswith("weights") and len(of_sizes):
                errors.setdefault(PARAMETERS, {})[line] = _errors(of_sizes, PARAMETERS)
            distinct = rows.drop_duplicates(["seed", "parameters", "operations", "error"])
            ratio = distinct["error"] / distinct["law"].where(distinct["law"] > 0)
            ratios[line] = np.stack([x.to_numpy() for _, x in ratio.groupby(distinct["seed"])])
    if "training" not in information:
        return Scaling(errors, ratios, {}, np.array([]), math.nan, information)
    return Scaling(errors, ratios, *_losses(folder, name, information["training"]), information)


def _errors(rows: pd.DataFrame, x: str) -> Errors:
    by_x = rows.drop_duplicates([x, "seed"]).sort_values([x, "seed"])
    columns = {
        name: by_x.pivot(index="seed", columns=x, values=name)
        for name in ("error", "law", "operations")
    }
    error, law, operations = (table.to_numpy() for table in columns.values())
    return Errors(columns["error"].columns.to_numpy(float), error, law, operations[0])


def _losses(
    folder: Path, name: str, training: Mapping[str, Any]
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray, float]:
    """Return the losses at equal operations and at equal time, their widths, and the time."""
    curves = read_curves(folder / f"{name}_training.csv")
    samples = timings.read_timings(folder / f"{name}_timings.csv", {"panel": str})
    runs = {}
    for (panel,), of_panel in samples.items():
        for line, interval in costs.seconds(of_panel).items():
            curve = curves[panel][line]
            runs[panel, line] = curve["step"][0] * interval.value, curve["valid_loss"]
    seconds = min(times[-1] for times, _ in runs.values())
    lines = list(dict.fromkeys(line for _, line in runs))
    at_end = {
        line: _columns(curves, lambda p, x=line: runs[p, x][1][:, -1] if (p, x) in runs else None)
        for line in lines
    }
    at_time = {
        line: _columns(
            curves, lambda p, x=line: _at(seconds, *runs[p, x]) if (p, x) in runs else None
        )
        for line in lines
    }
    widths = np.array([float(panel.rpartition(" ")[2]) for panel in curves])
    return dict(zip(BUDGETS, (at_end, at_time), strict=True)), widths, float(seconds)


def _columns(panels: Any, losses: Any) -> np.ndarray:
    """Return the losses (seeds, panels), nan for a panel without the line."""
    found = [losses(panel) for panel in panels]
    seeds = max(len(x) for x in found if x is not None)
    return np.stack([np.full(seeds, np.nan) if x is None else x for x in found], axis=1)


def _at(seconds: float, times: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the losses at a time, (seeds,), between two evaluations; nan before the first one."""
    if len(times) < 2 or seconds < times[1]:
        return np.full(len(losses), np.nan)
    return np.array([np.interp(seconds, times, of_seed) for of_seed in losses])


def over_law(ratios: np.ndarray) -> Interval:
    """Return the geometric mean of measured over theory, over points and then over seeds."""
    known = np.isfinite(ratios).all(0) & (ratios > 0).all(0)
    if not known.any():
        return Interval(math.nan, math.nan, math.nan, len(ratios))
    return geometric_mean_interval(np.exp(np.log(ratios[:, known]).mean(1)))


def scatter(ratios: np.ndarray) -> float:
    """Return the relative standard deviation of measured over theory between seeds, over points."""
    known = np.isfinite(ratios).all(0) & (ratios > 0).all(0)
    if len(ratios) < 2 or not known.any():
        return math.nan
    logs = np.log(ratios[:, known])
    return float(np.sqrt(logs.var(0, ddof=1).mean()))


def laws_of(errors: Errors) -> dict[str, PowerLaw]:
    """Return the power laws of the error, of its theory, and of the overhead."""
    values = {"error": errors.error, "law": errors.law, "overhead": errors.overhead}
    return {name: fit(errors.x, y) for name, y in values.items()}


def meets(errors: Errors) -> Interval:
    """Return the place on the axis at which the overhead is 1 by its fit.

    There is none, and the interval is nan, if no step that was measured costs less than backprop's:
    the overhead is no less than the operations, however small the error.
    """
    if not errors.operations.min() < 1:
        return Interval(math.nan, math.nan, math.nan, len(errors.error))
    return fit(errors.x, errors.overhead).reaches(1.0)


def best_number(errors: Errors) -> tuple[float, Interval]:
    """Return the K of the least overhead by the fits, and that overhead.

    The error is a power law in K for each seed, and the operations are linear in K, so the
    overhead (c₀ + c₁ K) (1 + a K^b) has a least value.
    """
    law = fit(errors.x, errors.error)
    known = np.isfinite(errors.operations) & (errors.operations > 0)
    if np.isnan(law.farthest) or len(np.unique(errors.x[known])) < 2:
        return math.nan, Interval(math.nan, math.nan, math.nan, len(errors.error))
    operations = errors.operations[known]
    slope, start = np.polyfit(errors.x[known], operations, 1, w=1 / operations)
    numbers = np.geomspace(1, _MOST_NUMBER, 2001)
    logarithms = law.intercepts[:, None] + law.exponents[:, None] * np.log(numbers)
    overheads = (start + slope * numbers) * (1 + np.exp(logarithms))
    i = int(np.argmin(overheads.mean(0)))
    return float(numbers[i]), mean_interval(overheads[:, i])


def laws_of_losses(
    scaling: Scaling, budget: str
) -> Iterator[tuple[str, PowerLaw, PowerLaw | None]]:
    """Yield line, the law of its loss in the width, and that of its loss over backprop's."""
    losses = scaling.losses[budget]
    for line, of_line in losses.items():
        ratio = None
        if line != "backprop" and "backprop" in losses:
            ratio = fit(scaling.widths, of_line / losses["backprop"])
        yield line, fit(scaling.widths, of_line), ratio


def fits_of(scaling: Scaling) -> list[tuple[Any, ...]]:
    """Return the rows of the table of fits: axis, line, quantity and interval.

    Quantities are the exponents of `error`, `law`, `overhead`, and of the losses at equal
    `operations` and `time`, also over backprop's; `meets`, the place on the axis at which an
    overhead or a ratio of losses is 1; along K the least overhead by the fits (`best_number`);
    `over_law` and `scatter` on the axis `all`.
    """
    rows: list[tuple[Any, ...]] = []
    for axis, lines in scaling.errors.items():
        for line, errors in lines.items():
            laws = laws_of(errors)
            rows += [(axis, line, name, *law.exponent) for name, law in laws.items()]
            rows += [(axis, line, "farthest", *exact(laws["error"].farthest))]
            if axis == NUMBER:
                at, least = best_number(errors)
                rows += [(axis, line, "least_overhead", *least)]
                rows += [(axis, line, "least_overhead_at", *exact(at))]
            elif axis != PARAMETERS:
                rows += [(axis, line, "overhead_meets", *meets(errors))]
    for line, ratios in scaling.ratios.items():
        rows += [("all", line, "over_law", *over_law(ratios))]
        rows += [("all", line, "scatter", *exact(scatter(ratios)))]
    for budget in scaling.losses:
        for line, law, ratio in laws_of_losses(scaling, budget):
            rows += [("width", line, f"loss_at_{budget}", *law.exponent)]
            if ratio is not None:
                rows += [("width", line, f"loss_at_{budget}_over_backprop", *ratio.exponent)]
                rows += [("width", line, f"loss_at_{budget}_meets", *ratio.reaches(1.0))]
    return rows


def least_overhead(errors: Errors) -> tuple[float, Interval]:
    """Return the x of the least overhead that was measured, and that overhead."""
    means = errors.overhead.mean(0)
    i = int(np.argmin(np.where(np.isfinite(means), means, np.inf)))
    return float(errors.x[i]), mean_interval(errors.overhead[:, i])
