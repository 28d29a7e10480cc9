"""Learning curves over several seeds: means, intervals, and times to a loss."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from experiments.common import style, tables
from fwdgrad.measurement import Interval, mean_interval, significant
from fwdgrad.records import Metrics, RunRecord, read_json, write_table

# From a column of `Metrics` to an array (seeds, rows).
Curve = dict[str, np.ndarray]
_COLUMNS: tables.Columns = {
    "panel": str, "estimator": str, "seed": int, "step": int,
    **dict.fromkeys(Metrics._fields[1:], float),
}  # fmt: skip


def write_curves(path: Path, records: Iterable[tuple[str, str, int, RunRecord]]) -> None:
    """Write the metrics of runs (panel, estimator, seed, record), a row for each evaluation."""
    write_table(
        path,
        _COLUMNS,
        [(*names, *row) for *names, record in records for row in record.metrics],
    )


def read_curves(path: Path) -> dict[str, dict[str, Curve]]:
    """Return panel -> estimator -> curve.

    All estimators of a panel have the same seeds, but for those of the entry `diverged` of the
    JSON file beside the table: (panel, estimator, seed) of each run that has no rows.
    """
    beside = path.with_suffix(".json")
    information = read_json(beside) if beside.exists() else {}
    return tables.read_lines(path, "panel", _COLUMNS, information.get("diverged", ()))


def mean_over_seeds(curve: Curve) -> Curve:
    """Return the mean over the seeds, as a curve of one seed."""
    return {column: samples.mean(0, keepdims=True) for column, samples in curve.items()}


def paired(first: Curve, second: Curve) -> tuple[Curve, Curve]:
    """Return the runs of the seeds that both curves have, in one order."""
    common = sorted({*first["seed"][:, 0]} & {*second["seed"][:, 0]})

    def chosen(curve: Curve) -> Curve:
        rows = [curve["seed"][:, 0].tolist().index(seed) for seed in common]
        return {column: samples[rows] for column, samples in curve.items()}

    return chosen(first), chosen(second)


def time_to(loss: float, curve: Curve, seed: int = 0, by: str = "seconds") -> float:
    """Return the time at which the validation loss of a seed first falls to `loss`, or inf.

    Between two rows time is interpolated by the loss.

    Args:
      loss: to fall to.
      curve: of some seeds.
      seed: the place of the seed in the curve.
      by: the column that is the time, `seconds` or `step`.
    """
    times, losses = curve[by][seed], curve["valid_loss"][seed]
    reached = np.flatnonzero(losses <= loss)
    if len(reached) == 0:
        return float("inf")
    i = reached[0]
    if i == 0:
        return float(times[0])
    return float(np.interp(loss, losses[[i, i - 1]], times[[i, i - 1]]))


class Unreached(NamedTuple):
    """The place of a mean time to a loss that only `reached` of `n` seeds reach.

    `least` is the mean with the end of the run for each other seed, a bound from below.
    """

    reached: int
    n: int
    least: Interval

    def __str__(self) -> str:
        return f"> {significant(self.least.value)}, reached by {self.reached} of {self.n}"


def mean_time(
    curve: Curve, reference: Curve, by: str = "seconds", confidence: float = 0.95
) -> Interval | Unreached:
    """Return the mean of T, a curve's time to the lowest loss of the reference's same seed.

    Args:
      curve, reference: of the same seeds, as `paired` returns them.
      by: as in `time_to`.
      confidence: of the interval over the seeds.
    """
    return _mean(_times(curve, reference, by), curve[by][:, -1], confidence)


def mean_ratio(
    curve: Curve,
    reference: Curve,
    by: str = "seconds",
    confidence: float = 0.95,
    loss: float | None = None,
) -> Interval | Unreached:
    """Return the mean over seeds of a curve's T over the reference's; arguments of `mean_time`.

    With a `loss` both are times to it; nan if the reference does not reach it with every seed.
    """
    own = _times(reference, reference, by, loss)
    own = np.where(np.isfinite(own), own, np.nan)
    # A reference that has learnt nothing has its lowest loss at the start.
    with np.errstate(divide="ignore", invalid="ignore"):
        times = _times(curve, reference, by, loss)
        return _mean(times / own, curve[by][:, -1] / own, confidence)


def _times(curve: Curve, reference: Curve, by: str, loss: float | None = None) -> np.ndarray:
    lowest = reference["valid_loss"].min(1)
    targets = lowest if loss is None else np.full_like(lowest, loss)
    return np.array([time_to(loss, curve, i, by) for i, loss in enumerate(targets)])


def _mean(times: np.ndarray, ends: np.ndarray, confidence: float) -> Interval | Unreached:
    reached = np.isfinite(times)
    samples = np.where(reached, times, ends)
    if not np.isfinite(samples).all():
        return Interval(math.nan, math.nan, math.nan, len(times))
    mean = mean_interval(samples, confidence)
    return mean if reached.all() else Unreached(int(reached.sum()), len(times), mean)


def plot(
    axis: Axes,
    x: np.ndarray,
    samples: np.ndarray,
    estimator: str,
    *,
    logarithmic: bool | None = None,
    beside: np.ndarray | None = None,
) -> None:
    """Plot the mean over the first axis of `samples` against x, with its interval shaded.

    Args:
      axis: a panel.
      x: the abscissas.
      samples: an array (seeds, rows).
      estimator: whose colour the line has.
      logarithmic: mean and interval are of the logarithms, so that no interval reaches below zero;
        None follows the scale of the axis.
      beside: the samples of a reference; the interval is then that of the paired differences, drawn
        around the mean.
    """
    if logarithmic is None:
        logarithmic = axis.get_yscale() == "log"
    x, samples = style.finite(x), style.finite(samples, positive=logarithmic)
    values = np.log(samples) if logarithmic else samples
    mean, low, high, _ = _intervals(values)
    if beside is not None:
        reference = style.finite(beside, positive=logarithmic)
        middle, *ends, _ = _intervals(values - (np.log(reference) if logarithmic else reference))
        low, high = (mean + end - middle for end in ends)
    if logarithmic:
        mean, low, high = (np.exp(line) for line in (mean, low, high))
    colour = style.colour(estimator)
    axis.plot(x, mean, color=colour, ls=style.dashes(estimator))
    style.band(axis, x, low, high, len(samples), colour)


def _intervals(samples: np.ndarray) -> np.ndarray:
    """Return mean, low, high and n, an array of each, over the first axis of samples."""
    return np.array([mean_interval(column) for column in samples.T]).T


def final_value(curve: Curve, column: str, confidence: float = 0.95) -> Interval:
    """Return the mean over the seeds of the last row, with its interval."""
    return mean_interval(curve[column][:, -1], confidence)
