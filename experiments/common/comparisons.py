"""Comparisons of two lines, chosen before the runs: paired differences, corrected for their number.

Differences are paired by seed, and test errors by image too: then seeds and images are crossed
random effects, so that an interval covers other seeds and other test images.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special

from experiments.common import tables
from fwdgrad.records import read_table


class Comparison(NamedTuple):
    """A paired difference of two lines.

    Attributes:
      first, second: the lines; the difference is the first less the second.
      difference, low, high: the mean and its interval.
      p_value: of no difference, two-sided.
      corrected: the p-value by Holm's method, for all comparisons of the experiment.
      inner_low, inner_high: the 90 % interval, of two one-sided tests at 5 %.
      n: the number of seeds.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p_value: float
    corrected: float
    inner_low: float
    inner_high: float
    n: int

    def verdict(self, margin: float, level: float = 0.05) -> str:
        """Return "lower", "higher", "equivalent" within the margin, or "undecided".

        >>> Comparison("a", "b", -1, -2, -0.1, 0.03, 0.03, -1.8, -0.3, 5).verdict(0.2)
        'lower'
        >>> Comparison("a", "b", 0.1, -0.1, 0.2, 0.4, 0.8, -0.05, 0.19, 5).verdict(0.2)
        'equivalent'
        """
        if self.corrected < level:
            return "lower" if self.difference < 0 else "higher"
        if -margin < self.inner_low and self.inner_high < margin:
            return "equivalent"
        return "undecided"


COLUMNS: tables.Columns = {
    "first": str, "second": str, **dict.fromkeys(Comparison._fields[2:-1], float), "n": int,
}  # fmt: skip


def read(path: Path) -> list[tuple[dict[str, str], Comparison]]:
    """Return the rows of a table: its other columns, and the comparison; [] for a table without."""
    rows = read_table(path)
    if not rows:  # none of the lines that run are compared
        return []
    others = [name for name in rows[0] if name not in COLUMNS]
    found = tables.read(path, {**dict.fromkeys(others, str), **COLUMNS}).to_dict("records")
    return [
        ({name: row.pop(name) for name in others}, Comparison(**row)) for row in found
    ]  # fmt: skip


class _Mean(NamedTuple):
    value: float
    error: float  # its standard error
    freedom: float  # degrees of freedom of that


def compare(
    names: Sequence[tuple[str, str]],
    differences: Sequence[np.ndarray],
    *,
    confidence: float = 0.95,
) -> list[Comparison]:
    """Compare pairs of lines.

    Args:
      names: the pairs.
      differences: for each pair an array (seeds,), or (seeds, images).
      confidence: of the intervals.

    >>> [c] = compare([("a", "b")], [np.array([1.0, 2.0, 3.0])])
    >>> round(c.difference, 3), round(c.low, 3), round(c.high, 3), round(c.p_value, 3)
    (2.0, -0.484, 4.484, 0.074)
    """
    means = [_mean(np.asarray(x, float)) for x in differences]
    p_values = [_p_value(mean) for mean in means]
    found = []
    for (first, second), mean, x, p, corrected in zip(
        names, means, differences, p_values, holm(np.array(p_values)).tolist(), strict=True
    ):
        ends = _interval(mean, confidence)
        found.append(
            Comparison(
                first, second, mean.value, *ends, p, corrected, *_interval(mean, 0.9), len(x)
            )
        )
    return found


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number by Holm's method.

    The k-th smallest of m is multiplied by m − k + 1, and is at least the one before it.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.06, 0.06]

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    sorted_values = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(sorted_values, 1.0)
    return corrected


def _mean(samples: np.ndarray) -> _Mean:
    """Return the mean over seeds, or over seeds and images as crossed random effects.

    With mean squares of rows R, columns C and residuals E of an array (S, N), the variance of the
    mean is (R + C − E) / (S N), and at least R / (S N); its degrees of freedom are Satterthwaite's.

    Source: Searle, Casella, McCulloch, Variance Components (1992), the two-way crossed model.
    """
    value = float(samples.mean())
    seeds = samples.shape[0]
    if seeds < 2:
        return _Mean(value, math.nan, 1)
    if samples.ndim == 1:
        return _Mean(value, float(samples.std(ddof=1)) / math.sqrt(seeds), seeds - 1)
    images = samples.shape[1]
    rows, columns = samples.mean(1, keepdims=True), samples.mean(0, keepdims=True)
    of_rows = images * float(((rows - value) ** 2).sum()) / (seeds - 1)
    of_columns = seeds * float(((columns - value) ** 2).sum()) / (images - 1)
    freedoms = (seeds - 1, images - 1, (seeds - 1) * (images - 1))
    of_rest = float(((samples - rows - columns + value) ** 2).sum()) / freedoms[2]
    total = of_rows + of_columns - of_rest
    if of_columns < of_rest:  # images differ no more than by chance
        return _Mean(value, math.sqrt(of_rows / samples.size), seeds - 1)
    parts = zip((of_rows, of_columns, of_rest), freedoms, strict=True)
    spread = sum(square**2 / freedom for square, freedom in parts)
    freedom = total**2 / spread if spread else seeds - 1
    return _Mean(value, math.sqrt(total / samples.size), freedom)


def _interval(mean: _Mean, confidence: float) -> tuple[float, float]:
    half = float(special.stdtrit(mean.freedom, (1 + confidence) / 2)) * mean.error
    return mean.value - half, mean.value + half


def _p_value(mean: _Mean) -> float:
    if not mean.error > 0:
        return math.nan if math.isnan(mean.error) else float(mean.value == 0)
    return float(2 * special.stdtr(mean.freedom, -abs(mean.value) / mean.error))
