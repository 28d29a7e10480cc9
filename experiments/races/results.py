"""The results of a race: its lines, and the tables of its report."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import costs, curves, style, tables, timings
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
# Of the report's table of comparisons.
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
    def operations(self) -> float:
        """Return the operations of the training."""
        return float(self.columns["flops"][0, -1])

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


def family_of(name: str, line: Line) -> str:
    """Return the family that a line is drawn and explained with."""
    return "control" if name.startswith("control") else line.family


def equal_operations(lines: Iterable[Line]) -> bool:
    """Return whether all lines have about the same operations."""
    operations = [line.operations for line in lines]
    return max(operations) <= 1.1 * min(operations)


def line_table(
    lines: Lines, about: About, rates: Mapping[str, Rates], target: float | None
) -> list[str]:
    """Return a table of all lines in Markdown, the least test error first.

    Args:
      lines: the lines.
      about: line -> its entry in the record.
      rates: line -> its learning rates.
      target: the validation accuracy to which times are stated, if any.
    """
    to_target = "" if target is None else f"time to {100 * target:g} % / backprop"
    rows = [
        {
            "line": style.label(name),
            "test error (%)": _percent(1 - line.test_accuracy),
            "validation error (%)": _percent(1 - line.columns["valid_accuracy"][:, -1]),
            "steps": line.columns["step"][0, -1],
            "operations (10¹²)": f"{line.operations / 1e12:.3g}",
            "training time (s)": f"{line.seconds:.3g}",
            "time / backprop": line.over_backprop,
            to_target: "" if target is None else _time_to(target, line, lines["backprop"]),
            "derivatives": about[name]["derivatives"],
            "minibatch": about[name]["batch_size"],
            "best rate": rates[name],
        }
        for name, line in sorted(lines.items(), key=lambda item: -item[1].accuracy)
    ]
    same = {"operations (10¹²)"} if equal_operations(lines.values()) else set()
    shown = [column for column in rows[0] if column and column not in same]
    return tables.markdown(shown, [[row[column] for column in shown] for row in rows])


def _time_to(accuracy: float, line: Line, backprop: Line) -> Any:
    """Return the time to a validation accuracy over backprop's, a mean over seeds."""
    own, reference = (
        {"seconds": x.columns["step"] * x.over_backprop.value,
         "valid_loss": 1 - x.columns["valid_accuracy"]}
        for x in (line, backprop)
    )  # fmt: skip
    found = curves.mean_ratio(own, reference, loss=1 - accuracy)
    if isinstance(found, curves.Unreached):
        return found if found.reached else "not reached"
    return "not reached by backprop" if math.isnan(found.value) else found


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
