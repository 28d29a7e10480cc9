"""The results of a race: its lines, and the differences between them."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import style, tables
from experiments.common.targets import verdict
from experiments.common.tuning import Rates
from fwdgrad.measurement import Interval, mean_interval

COLUMNS: tables.Columns = {
    "family": str, "estimator": str, "seed": int, "step": int, "seconds": float, "flops": float,
    "valid_accuracy": float, "test_accuracy": tables.gaps,
}  # fmt: skip
# Of the report's table.
_SHOWN = (
    "family", "estimator", "training (s)", "10¹² operations", "derivatives", "minibatch", "rates",
    "best rate", "seeds", "steps", "a step's time over backprop's", "validation accuracy (%)",
    "test accuracy (%)",
)  # fmt: skip


class Line:
    """The results of an estimator.

    Attributes:
      family: the family of estimators.
      columns: name -> array (seeds, rows) of `step`, `seconds`, `flops`, `valid_accuracy`.
      test_accuracy: array (seeds,), from the last rows.
    """

    def __init__(self, rows: pd.DataFrame):
        self.family = rows["family"].iloc[0]
        self.columns = tables.by_seed(rows, ("step", "seconds", "flops", "valid_accuracy"))
        self.test_accuracy = tables.by_seed(rows, ["test_accuracy"])["test_accuracy"][:, -1]

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


def read(table: Path) -> dict[str, Line]:
    """Return estimator -> its results, from the table of a race."""
    rows = tables.read(table, COLUMNS)
    tables.check_same_steps(table, rows, ["estimator"])
    return {estimator: Line(line) for estimator, line in rows.groupby("estimator", sort=False)}


def markdown_table(lines: Lines, about: About, rates: Mapping[str, Rates]) -> list[str]:
    """Return a table of all lines, in Markdown."""
    shown = []
    for name, line in lines.items():
        tried, steps = rates[name].tried, line.columns["step"]
        ratio = about[name]["over_backprop"]
        value, low, high = (float(ratio[end]) for end in ("value", "low", "high"))
        clock = np.mean([float(seconds) for seconds in about[name]["clock_seconds"]])
        shown.append([
            line.family, style.label(name), f"{line.seconds:.3g} ({clock:.3g})",
            f"{line.columns['flops'][0, -1] / 1e12:.3g}", about[name]["derivatives"],
            about[name]["batch_size"], _range(tried), rates[name], len(steps),
            steps[0, -1], Interval(value, low, high, ratio["n"]),
            _percent(line.columns["valid_accuracy"][:, -1]), _percent(line.test_accuracy),
        ])  # fmt: skip
    return tables.markdown(_SHOWN, shown)


def comparisons(lines: Lines, about: About) -> list[str]:
    """Compare each line with backprop and controls; controls and short backprops are left out.

    Lines of a number of seconds are compared at equal seconds, lines of a number of operations at
    equal operations; and every line with controls of no more time.
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
            said += _against_controls(name, line, others, about, "flops")
            if line.family != "backprop":
                said.append(_against_backprop(line, others, "flops"))
        said += _against_controls(name, line, timed, about, "seconds")
        if name in timed and line.family != "backprop":
            said += [
                _against_backprop(line, timed, "seconds", wanted.get("behind")),
                _when_backprop(line, lines, wanted.get("times")),
            ]
        said.append(_without(line, lines.get(about[name]["ablates"]), about[name]["ablates"]))
        remark = f" {remark}" if (remark := about[name]["remark"]) else ""
        if any(said):
            text.append(f"- {style.label(name)}: {'; '.join(filter(None, said))}.{remark}")
    return text


def _is_control(name: str) -> bool:
    return name.startswith("control")


def _backprops(lines: Lines) -> dict[str, Line]:
    """Return the lines that train all layers exactly."""
    return {n: x for n, x in lines.items() if x.family == "backprop" and not _is_control(n)}


def _of_target(line: Line, wanted: float | None) -> str:
    if wanted is None:
        return ""
    found = mean_interval(100 * line.test_accuracy)
    return f"{_percent(line.test_accuracy)} %, {verdict(found, at_least=100 * wanted)}"


def _against_controls(name: str, line: Line, lines: Lines, about: About, budget: str) -> list[str]:
    """Compare a line with the best control of at most the same time or operations.

    If the best control has another optimizer, compare also with the best one of the same optimizer.
    """

    def spent(x: Line) -> float:
        return float(x.columns[budget][0, -1])

    controls = {n: x for n, x in lines.items() if _is_control(n) and spent(x) <= 1.05 * spent(line)}
    if not controls:
        return []
    alike = {n: x for n, x in controls.items() if _momentum(about[n]) == _momentum(about[name])}
    best = _best(controls)
    kind = f"the best control of its {'time' if budget == 'seconds' else 'operations'}"
    if spent(controls[best]) < 0.95 * spent(line):
        kind = f"the best control, of {controls[best].seconds:.3g} s alone"
    said = [_held_against(line, controls[best], best, kind)]
    if alike and (best_alike := _best(alike)) != best:
        kind = "the best of those with its optimizer"
        said.append(_held_against(line, controls[best_alike], best_alike, kind))
    return said


def _best(lines: Lines) -> str:
    return max(lines, key=lambda name: lines[name].accuracy)


def _momentum(about: Mapping[str, Any]) -> list[str]:
    return [x for x in about["overrides"] or () if x.startswith("optimizer.momentum=")]


def _held_against(line: Line, other: Line, name: str, kind: str) -> str:
    gain = mean_interval(100 * _paired(line, other))
    verb = "of one sample, beside" if math.isnan(gain.low) else "cannot be told from"
    if gain.low > 0 or gain.high < 0:
        verb = "beats" if gain.low > 0 else "is behind"
    valid = mean_interval(100 * _paired(line, other, "valid_accuracy"))
    return (
        f"{verb} {style.label(name)}, {kind}: {_signed(gain)} points ({_signed(valid)} on the "
        "validation images)"
    )


def _against_backprop(line: Line, lines: Lines, budget: str, at_most: float | None = None) -> str:
    """Return the points behind the backprop line that is best on the validation set."""
    backprops = _backprops(lines)
    if not backprops:
        return ""
    best = max(backprops, key=lambda name: backprops[name].columns["valid_accuracy"][:, -1].mean())
    spent, most = (float(x.columns[budget][0, -1]) for x in (backprops[best], line))
    shorter = f", of {backprops[best].seconds:.3g} s alone" if spent < 0.95 * most else ""
    behind = mean_interval(100 * _paired(backprops[best], line))
    wanted = "" if at_most is None else f", {verdict(behind, at_most=at_most)}"
    return f"{_signed(behind)} points behind {style.label(best)}{shorter}{wanted}"


def _when_backprop(line: Line, lines: Lines, at_most: float | None) -> str:
    """Return a line's time over backprop's to the line's mean, between two lengths of its runs.

    The interval is of means resampled by Student's law, of this line and of each length of
    backprop; `scipy.stats.bootstrap` has too narrow ones of few seeds.
    """
    backprops = list(_backprops(lines).values())
    if not backprops:
        return ""
    below, above = _around(line.accuracy, [(x.seconds, x.accuracy) for x in backprops])
    if above is None:
        return f"no backprop, of {max(x.seconds for x in backprops):.3g} s at most, is as good"
    if below is None:
        return (
            f"more than {line.seconds / above[0]:.3g} times backprop's time to that mean "
            f"({above[0]:.3g} s)"
        )
    generator = np.random.default_rng(0)

    def anew(x: Line) -> float:
        n = len(x.test_accuracy)
        if n == 1:
            return x.accuracy
        return x.accuracy + x.test_accuracy.std(ddof=1) / n**0.5 * generator.standard_t(n - 1)

    def ratio(of: Callable[[Line], float]) -> float:
        return line.seconds / _seconds_to(of(line), [(x.seconds, of(x)) for x in backprops])

    value, n = ratio(lambda x: x.accuracy), len(line.test_accuracy)
    low, high = np.quantile([ratio(anew) for _ in range(2000)], (0.025, 0.975)) if n > 1 else _OPEN
    found = Interval(value, float(low), float(high), n)
    wanted = "" if at_most is None else f", {verdict(found, at_most=at_most)}"
    return (
        f"{_number(found)} times backprop's time to that mean, which is between {below[0]:.3g} s, "
        f"whose runs are worse, and {above[0]:.3g} s{wanted}"
    )


_OPEN = (math.nan, math.nan)
_Point = tuple[float, float]  # seconds, and the accuracy after so long


def _around(accuracy: float, points: list[_Point]) -> tuple[_Point | None, _Point | None]:
    """Return the best line that is too short for an accuracy, and the soonest that has it."""
    above = min((p for p in points if p[1] >= accuracy), default=None)
    shorter = [p for p in points if above is None or p[0] < above[0]]
    return max(shorter, key=lambda p: p[1], default=None), above


def _seconds_to(accuracy: float, points: list[_Point]) -> float:
    """Interpolate the time to an accuracy over log time, within the times that there are.

    >>> round(_seconds_to(0.5, [(1.0, 0.4), (4.0, 0.6)]), 9), _seconds_to(0.7, [(1.0, 0.4)])
    (2.0, 1.0)
    """
    below, above = _around(accuracy, points)
    if above is None:
        return max(points)[0]
    if below is None:
        return above[0]
    share = (accuracy - below[1]) / (above[1] - below[1])
    return below[0] * (above[0] / below[0]) ** share


def _without(line: Line, other: Line | None, name: str | None) -> str:
    if other is None or name is None:
        return ""
    return f"{_signed(mean_interval(100 * _paired(line, other)))} points over {style.label(name)}"


def _paired(a: Line, b: Line, of: str = "test_accuracy") -> np.ndarray:
    """Return differences of final accuracies, paired by seed."""
    ends = [x.test_accuracy if of == "test_accuracy" else x.columns[of][:, -1] for x in (a, b)]
    n = min(map(len, ends))
    return ends[0][:n] - ends[1][:n]


def _range(tried: Mapping[float, float]) -> str:
    lowest, highest = min(tried), max(tried)
    return "one, given" if lowest == highest else f"{len(tried)} from {lowest:g} to {highest:g}"


def _number(x: Interval) -> str:
    return f"{x.value:.3g}" if math.isnan(x.low) else f"{x.value:.3g} [{x.low:.3g}, {x.high:.3g}]"


def _signed(x: Interval) -> str:
    return f"{x.value:+.2f}" if math.isnan(x.low) else f"{x.value:+.2f} [{x.low:.2f}, {x.high:.2f}]"


def _percent(samples: np.ndarray) -> str:
    """Return the mean of fractions with its interval, in per cent."""
    value, low, high, _ = mean_interval(100 * samples)
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
