"""Learning curves over several seeds: means, intervals, and times to a loss."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from experiments.common import style, tables
from fwdgrad.measurement import Interval, mean_interval
from fwdgrad.records import Metrics, RunRecord, write_table

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
    """Return panel -> estimator -> curve."""
    return tables.read_lines(path, "panel", _COLUMNS)


def mean_over_seeds(curve: Curve) -> Curve:
    """Return the mean over the seeds, as a curve of one seed."""
    return {column: samples.mean(0, keepdims=True) for column, samples in curve.items()}


def time_to(loss: float, curve: Curve, seed: int = 0) -> float:
    """Return the time at which the validation loss of a seed first falls to `loss`, or inf.

    Between two rows time is interpolated by the loss.
    """
    seconds, losses = curve["seconds"][seed], curve["valid_loss"][seed]
    reached = np.flatnonzero(losses <= loss)
    if len(reached) == 0:
        return float("inf")
    i = reached[0]
    if i == 0:
        return float(seconds[0])
    return float(np.interp(loss, losses[[i, i - 1]], seconds[[i, i - 1]]))


def times_to_best(curves: Mapping[str, Curve], reference: str) -> dict[str, np.ndarray]:
    """Return, for each estimator, its times to the reference's lowest loss of the same seed."""
    targets = curves[reference]["valid_loss"].min(1)
    return {estimator: _times_to(targets, curve) for estimator, curve in curves.items()}


def _times_to(losses: np.ndarray, curve: Curve) -> np.ndarray:
    return np.array([time_to(loss, curve, i) for i, loss in enumerate(losses)])


class Unreached(NamedTuple):
    """The place of a mean time to a loss that only `reached` of `n` seeds reach."""

    reached: int
    n: int

    def __str__(self) -> str:
        return f"reached by {self.reached} of {self.n}"


def mean_time(times: np.ndarray) -> Interval | Unreached:
    """Return the mean of times, or of ratios of times; `Unreached` unless all seeds have one."""
    reached = np.isfinite(times)
    return mean_interval(times) if reached.all() else Unreached(int(reached.sum()), len(times))


def ratios_of_times(curves: Mapping[str, Curve], estimator: str, reference: str) -> np.ndarray:
    """Return T of an estimator over T of the reference, for each seed; not finite without T."""
    times = times_to_best(curves, reference)
    with np.errstate(divide="ignore", invalid="ignore"):  # a reference that has learnt nothing
        return times[estimator] / times[reference]


def ratios_to_common_loss(
    curves: Mapping[str, Curve], estimator: str, reference: str
) -> np.ndarray:
    """Return for each seed the ratio of the times to the lowest loss that both reach.

    That loss is the reference's lowest if the estimator reaches it, and then the ratio is that of
    T; else it is the estimator's lowest.
    """
    both = [curves[name] for name in (estimator, reference)]
    losses = np.maximum(*(curve["valid_loss"].min(1) for curve in both))
    first, second = (_times_to(losses, curve) for curve in both)
    with np.errstate(divide="ignore", invalid="ignore"):
        return first / second


def plot(
    axis: Axes,
    x: np.ndarray,
    samples: np.ndarray,
    estimator: str,
    *,
    logarithmic: bool | None = None,
) -> None:
    """Plot the mean over the first axis of `samples` against x, with its interval shaded.

    With `logarithmic` mean and interval are of the logarithms, so that no interval reaches below
    zero; None follows the scale of the axis.
    """
    if logarithmic is None:
        logarithmic = axis.get_yscale() == "log"
    x, samples = style.finite(x), style.finite(samples, positive=logarithmic)
    intervals = [mean_interval(c) for c in (np.log(samples) if logarithmic else samples).T]
    lines = (np.array([interval[k] for interval in intervals]) for k in range(3))
    mean, low, high = (np.exp(line) if logarithmic else line for line in lines)
    axis.plot(x, mean, color=style.colour(estimator), label=style.label(estimator))
    axis.fill_between(x, low, high, color=style.colour(estimator), alpha=0.2, lw=0)


def final_value(curve: Curve, column: str) -> Interval:
    """Return the mean over the seeds of the last row, with its interval."""
    return mean_interval(curve[column][:, -1])
