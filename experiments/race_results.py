"""What the table of the accuracy race says: its lines, and who is ahead of whom."""

import math
from pathlib import Path

import numpy as np

from experiments import style
from fwdgrad.work import mean_interval
from fwdgrad.work.records import read_table


class Line:
    """What the table says of an estimator.

    Attributes:
      family: its family.
      columns: name -> array (seeds, rows) of `step`, `seconds`, `flops`, `valid_accuracy`.
      test_accuracy: (seeds,), of the last rows.
    """

    def __init__(self, rows: list[dict[str, str]]):
        self.family = rows[0]["family"]
        runs: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            runs.setdefault(row["seed"], []).append(row)
        self.columns = {
            column: np.array([[float(row[column]) for row in run] for run in runs.values()])
            for column in ("step", "seconds", "flops", "valid_accuracy")
        }
        self.test_accuracy = np.array([float(run[-1]["test_accuracy"]) for run in runs.values()])

    @property
    def seconds(self) -> float:
        """How long it trained."""
        return float(self.columns["seconds"][0, -1])


def read(table: Path) -> dict[str, Line]:
    """From estimator to what the table says of it."""
    rows: dict[str, list[dict[str, str]]] = {}
    for row in read_table(table):
        rows.setdefault(row["estimator"], []).append(row)
    return {estimator: Line(of_estimator) for estimator, of_estimator in rows.items()}


def percent(samples: np.ndarray) -> str:
    """The mean of fractions with its interval, in per cent."""
    value, low, high, _ = mean_interval(100 * samples)
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def verdicts(lines: dict[str, Line]) -> list[str]:
    """For each line that is not backprop: does it beat the controls, and how soon is it there?"""
    controls = {name: line for name, line in lines.items() if name.startswith("control")}
    exact = {name: line for name, line in lines.items() if line.family == "backprop"}
    text = []
    for name, line in lines.items():
        if line.family == "backprop":
            continue
        said = [_against_controls(line, controls), _against_backprop(line, exact, controls)]
        text.append(f"- {style.name(name)}: {'; '.join(filter(None, said))}.")
    return text


def _against_controls(line: Line, controls: dict[str, Line]) -> str:
    """The control of at least the line's time that is the best, and whether it is beaten."""
    equal = {name: c for name, c in controls.items() if c.seconds >= 0.95 * line.seconds}
    if not equal:
        return ""
    best = max(equal, key=lambda name: equal[name].test_accuracy.mean())
    gain = mean_interval(100 * _paired(line.test_accuracy, equal[best].test_accuracy))
    verdict = "beats" if gain.low > 0 else "does not beat" if gain.high <= 0 else "is not told from"
    return f"{verdict} {style.name(best)}, the best control of its time, by {gain} points"


def _against_backprop(line: Line, exact: dict[str, Line], controls: dict[str, Line]) -> str:
    """Points behind the best backprop, and time over that of the first that is as accurate."""
    whole = {name: x for name, x in exact.items() if name not in controls}
    if not whole:
        return ""
    best = max(whole, key=lambda name: whole[name].columns["valid_accuracy"][:, -1].mean())
    behind = mean_interval(100 * _paired(whole[best].test_accuracy, line.test_accuracy))
    text = f"{behind} points behind {style.name(best)}"
    as_good = [x for x in whole.values() if x.test_accuracy.mean() >= line.test_accuracy.mean()]
    if as_good:
        soonest = min(x.seconds for x in as_good)
        text += (
            f", {line.seconds / soonest:.3g} times the {soonest:.3g} s that backprop takes to it"
        )
    return text


def _paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Differences of the same seeds."""
    n = min(len(a), len(b))
    return a[:n] - b[:n]
