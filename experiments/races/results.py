"""The results of a race: its lines, and the tables of its report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import costs, style, tables, timings
from experiments.common.comparisons import Comparison
from experiments.common.tuning import Rates
from fwdgrad.measurement import Interval, mean_interval
from fwdgrad.training import unpack_flags

COLUMNS: tables.Columns = {
    "family": str, "estimator": str, "seed": int, "step": int, "flops": float,
    "valid_accuracy": float,
}  # fmt: skip
TEST_COLUMNS: tables.Columns = {
    "estimator": str, "seed": int, "test_accuracy": float, "num_examples": int,
    "test_correct": str,
}  # fmt: skip
# Of the report's tables.
_SHOWN = (
    "line", "test error (%)", "validation error (%)", "steps", "training time (s)",
    "time / backprop", "derivatives", "minibatch", "best rate",
)  # fmt: skip
_SHOWN_COMPARISONS = ("line", "against", "points of test error", "corrected p", "verdict")


class Line:
    """The results of an estimator.

    Attributes:
      family: the family of estimators.
      columns: name -> array (seeds, rows) of `step`, `seconds`, `flops`, `valid_accuracy`.
      test_accuracy: array (seeds,).
      correct: array (seeds, images), 1 where a run classifies a test image rightly.
      over_backprop: the ratio of the time of a step to backprop's.
    """

    def __init__(
        self, rows: pd.DataFrame, test: pd.DataFrame, seconds: Interval, over_backprop: Interval
    ):
        self.family = rows["family"].iloc[0]
        self.columns = tables.by_seed(rows, ("step", "flops", "valid_accuracy"))
        self.columns["seconds"] = self.columns["step"] * seconds.value
        self.test_accuracy = test["test_accuracy"].to_numpy()
        texts = zip(test["test_correct"], test["num_examples"], strict=True)
        flags = [unpack_flags(text, number) for text, number in texts]
        self.correct = np.array(flags, float)
        self.over_backprop = over_backprop

    @property
    def seconds(self) -> float:
        """Return the length of the training."""
        return float(self.columns["seconds"][0, -1])

    @property
    def accuracy(self) -> float:
        """Return the mean test accuracy over the seeds."""
        return float(self.test_accuracy.mean())


Lines = Mapping[str, Line]
About = Mapping[str, Mapping[str, Any]]  # line -> the other entries of the record


def read(folder: Path, name: str) -> dict[str, Line]:
    """Return estimator -> its results, from the tables of a race."""
    rows = tables.read(folder / f"{name}.csv", COLUMNS)
    test = tables.read(folder / f"{name}_test.csv", TEST_COLUMNS, grid=["estimator", "seed"])
    tables.check_same_steps(folder / f"{name}.csv", rows, ["estimator"])
    samples = timings.read_timings(folder / f"{name}_timings.csv")[()]
    seconds, ratios = costs.seconds(samples), costs.over_reference(samples)
    return {
        estimator: Line(line, test[test["estimator"] == estimator], seconds[estimator],
                        ratios[estimator])
        for estimator, line in rows.groupby("estimator", sort=False)
    }  # fmt: skip


def line_table(lines: Lines, about: About, rates: Mapping[str, Rates]) -> list[str]:
    """Return a table of all lines in Markdown, the least test error first."""
    shown = [
        (style.label(name), _percent(1 - line.test_accuracy),
         _percent(1 - line.columns["valid_accuracy"][:, -1]), line.columns["step"][0, -1],
         f"{line.seconds:.3g}", line.over_backprop, about[name]["derivatives"],
         about[name]["batch_size"], rates[name])
        for name, line in sorted(lines.items(), key=lambda item: -item[1].accuracy)
    ]  # fmt: skip
    return tables.markdown(_SHOWN, shown)


def comparison_table(found: Sequence[Comparison], margin: float) -> list[str]:
    """Return a table of the comparisons in Markdown."""
    shown = [
        (style.label(c.first), style.label(c.second), _signed(c), f"{c.corrected:.2g}",
         c.verdict(margin))
        for c in found
    ]  # fmt: skip
    return tables.markdown(_SHOWN_COMPARISONS, shown)


def _signed(c: Comparison) -> str:
    if math.isnan(c.low):
        return f"{c.difference:+.2f}"
    return f"{c.difference:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"


def _percent(samples: np.ndarray) -> str:
    """Return the mean of fractions with its interval, in per cent."""
    value, low, high, _ = mean_interval(100 * samples)
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
