"""What the table of the accuracy race says: its lines, and who is ahead of whom."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import style
from experiments.targets import verdict
from experiments.tuning import Rates
from fwdgrad.work import Interval, exact, mean_interval
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

    @property
    def accuracy(self) -> float:
        """The mean over the seeds on the test set."""
        return float(self.test_accuracy.mean())


Lines = Mapping[str, Line]
About = Mapping[str, Mapping[str, Any]]  # of each line what the record says besides


def read(table: Path) -> dict[str, Line]:
    """From estimator to what the table says of it."""
    rows: dict[str, list[dict[str, str]]] = {}
    for row in read_table(table):
        rows.setdefault(row["estimator"], []).append(row)
    return {estimator: Line(of_estimator) for estimator, of_estimator in rows.items()}


def rows(lines: Lines, about: About, rates: Mapping[str, Rates]) -> list[str]:
    """A table of all lines, in Markdown."""
    text = [
        "| family | estimator | training (s) | 10¹² operations | derivatives | rates | best rate "
        "| seeds | steps | a step's time over backprop's | validation accuracy (%) "
        "| test accuracy (%) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, line in lines.items():
        tried, steps = rates[name].tried, line.columns["step"]
        ratio = about[name]["over_backprop"]
        value, low, high = (float(ratio[end]) for end in ("value", "low", "high"))
        clock = np.mean([float(seconds) for seconds in about[name]["clock_seconds"]])
        text.append(
            f"| {line.family} | {style.name(name)} | {line.seconds:.3g} ({clock:.3g}) "
            f"| {line.columns['flops'][0, -1] / 1e12:.3g} | {about[name]['derivatives']} "
            f"| {len(tried)} from {min(tried):g} to {max(tried):g} | {rates[name]} | {len(steps)} "
            f"| {steps[0, -1]:.0f} | {Interval(value, low, high, ratio['n'])} "
            f"| {_percent(line.columns['valid_accuracy'][:, -1])} "
            f"| {_percent(line.test_accuracy)} |"
        )
    return text


def verdicts(lines: Lines, about: About) -> list[str]:
    """What is said of each line, but for controls and the shorter runs of backprop.

    A line that has its seconds is held against those that have as many, one that has its operations
    against those that have as many of them; and any against controls of no more time.
    """
    timed = {name: line for name, line in lines.items() if about[name]["operations"] is None}
    text = []
    for name, line in lines.items():
        if _is_control(name) or (line.family == "backprop" and about[name]["like"] != name):
            continue
        wanted: Mapping[str, Any] = about[name] if about[name]["like"] == name else {}
        said = [_of_target(line, wanted.get("wanted"))]
        if name not in timed:
            others = {n: x for n, x in lines.items() if n not in timed}
            said.append(_against_controls(line, others, "flops"))
            if line.family != "backprop":
                said.append(_against_backprop(line, others))
        said.append(_against_controls(line, timed, "seconds"))
        if name in timed and line.family != "backprop":
            said += [
                _against_backprop(line, timed, wanted.get("behind")),
                _when_backprop(line, lines, wanted.get("times")),
            ]
        said.append(_without(line, lines.get(about[name]["ablates"]), about[name]["ablates"]))
        remark = f" {remark}" if (remark := about[name]["remark"]) else ""
        if any(said):
            text.append(f"- {style.name(name)}: {'; '.join(filter(None, said))}.{remark}")
    return text


def _is_control(name: str) -> bool:
    return name.startswith("control")


def _backprops(lines: Lines) -> dict[str, Line]:
    """Those that train all layers exactly."""
    return {n: x for n, x in lines.items() if x.family == "backprop" and not _is_control(n)}


def _of_target(line: Line, wanted: float | None) -> str:
    if wanted is None:
        return ""
    found = mean_interval(100 * line.test_accuracy)
    return f"{_percent(line.test_accuracy)} %, {verdict(found, at_least=100 * wanted)}"


def _against_controls(line: Line, lines: Lines, budget: str) -> str:
    """Whether the line is better than the best control that had no more."""

    def spent(x: Line) -> float:
        return float(x.columns[budget][0, -1])

    controls = {
        name: x for name, x in lines.items() if _is_control(name) and spent(x) <= 1.05 * spent(line)
    }
    if not controls:
        return ""
    best = max(controls, key=lambda name: controls[name].accuracy)
    gain = mean_interval(100 * _paired(line, controls[best]))
    verb = "of one sample, beside" if math.isnan(gain.low) else "cannot be told from"
    if gain.low > 0 or gain.high < 0:
        verb = "beats" if gain.low > 0 else "does not beat"
    kind = f"the best control of its {'time' if budget == 'seconds' else 'operations'}"
    if spent(controls[best]) < 0.95 * spent(line):
        kind = f"the best control, of {controls[best].seconds:.3g} s alone"
    valid = mean_interval(100 * _paired(line, controls[best], "valid_accuracy"))
    return (
        f"{verb} {style.name(best)}, {kind}: {_signed(gain)} points ({_signed(valid)} on the "
        "validation images)"
    )


def _against_backprop(line: Line, lines: Lines, at_most: float | None = None) -> str:
    """Points behind the backprop that is best on the validation set."""
    backprops = _backprops(lines)
    if not backprops:
        return ""
    best = max(backprops, key=lambda name: backprops[name].columns["valid_accuracy"][:, -1].mean())
    behind = mean_interval(100 * _paired(backprops[best], line))
    wanted = "" if at_most is None else f", {verdict(behind, at_most=at_most)}"
    return f"{_signed(behind)} points behind {style.name(best)}{wanted}"


def _when_backprop(line: Line, lines: Lines, at_most: float | None) -> str:
    """The line's time over that of backprop to the line's mean, between two lengths of its runs.

    The time between them is interpolated: accuracies over the logarithm of the time.
    """
    backprops = _backprops(lines)
    enough = [x for x in backprops.values() if x.accuracy >= line.accuracy]
    if not enough:
        return "no backprop has as high a mean" if backprops else ""
    soonest = min(enough, key=lambda x: x.seconds)
    too_few = [x for x in backprops.values() if x.seconds < soonest.seconds]
    if not too_few:
        return (
            f"more than {line.seconds / soonest.seconds:.3g} times backprop's time to that mean "
            f"({soonest.seconds:.3g} s)"
        )
    below = max(too_few, key=lambda x: x.accuracy)
    share = (line.accuracy - below.accuracy) / (soonest.accuracy - below.accuracy)
    seconds = below.seconds * (soonest.seconds / below.seconds) ** share
    ratio = line.seconds / seconds
    wanted = "" if at_most is None else f", {verdict(exact(ratio), at_most=at_most)}"
    return (
        f"{ratio:.3g} times backprop's time to that mean, by interpolation between "
        f"{line.seconds / soonest.seconds:.3g} (its runs of {soonest.seconds:.3g} s are as good) "
        f"and {line.seconds / below.seconds:.3g} (those of {below.seconds:.3g} s are worse){wanted}"
    )


def _without(line: Line, other: Line | None, name: str | None) -> str:
    if other is None or name is None:
        return ""
    return f"{_signed(mean_interval(100 * _paired(line, other)))} points over {style.name(name)}"


def _paired(a: Line, b: Line, of: str = "test_accuracy") -> np.ndarray:
    """Differences of the last accuracies of the same seeds."""
    ends = [x.test_accuracy if of == "test_accuracy" else x.columns[of][:, -1] for x in (a, b)]
    n = min(map(len, ends))
    return ends[0][:n] - ends[1][:n]


def _signed(x: Interval) -> str:
    return f"{x.value:+.2f}" if math.isnan(x.low) else f"{x.value:+.2f} [{x.low:.2f}, {x.high:.2f}]"


def _percent(samples: np.ndarray) -> str:
    """The mean of fractions with its interval, in per cent."""
    value, low, high, _ = mean_interval(100 * samples)
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
