"""The figure of a race: the final test error of every line, and errors against operations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.common import style
from experiments.races.results import Line, equal_operations, family_of
from fwdgrad.measurement import mean_interval

# Families in the order of the panel: name, colour, marker.
_FAMILIES = {
    "backprop": ("backprop", "#000000", "o"),
    "control": ("controls", style.GREY, "s"),
    "local": ("local losses", "#CC79A7", "D"),
    "activity": ("activities", "#0072B2", "^"),
    "feedback": ("feedback", "#009E73", "P"),
    "weight": ("weights", "#D55E00", "v"),
    "values": ("losses alone", "#E69F00", "X"),
}

# Beside their colours, which some readers cannot tell apart.
_DASHES = {"control": "--", "feedback": "-.", "values": ":"}


def draw_race(lines: Mapping[str, Line], folder: Path, name: str) -> None:
    """Draw test errors, sorted in each family, and validation errors of its best line.

    Args:
      lines: the lines to draw.
      folder: where the files go.
      name: of the figure.
    """
    families = {
        family: sorted(names, key=lambda x: -lines[x].accuracy)
        for family in _FAMILIES
        if (names := [x for x in lines if family_of(x, lines[x]) == family])
    }
    size = (style.WIDTH, 1.7 + 0.23 * len(lines))
    figure, (ends, course) = plt.subplots(1, 2, figsize=size, width_ratios=(3, 2))
    _draw_ends(ends, lines, families)
    ends.set_title("at the end")
    for family, names in families.items():
        _draw_course(course, lines[names[0]], family)
    course.set(xlabel="operations (10¹²)", ylabel="validation error (%)")
    course.set_title("the best of each family")
    style.log_scale(course, "xy")
    numbers = [len(line.test_accuracy) for line in lines.values()]
    kind = "bars and bands: 95 % intervals over seeds (Student's t), for this one test set"
    caption = f"Means, {style.samples(numbers, 'seeds', kind)}. {_lengths(list(lines.values()))}"
    style.save(figure, folder, name, caption)


def _lengths(lines: Sequence[Line]) -> str:
    """Say what the runs have in common, operations, steps or seconds."""
    if equal_operations(lines):
        operations = np.mean([line.operations for line in lines])
        return f"Every run makes {operations / 1e12:.2g} · 10¹² operations."
    steps = [int(line.columns["step"][0, -1]) for line in lines]
    if (fewest := min(steps)) == sorted(steps)[len(steps) // 2]:  # most have the same
        longer = ", or the multiple that its name says" if max(steps) > fewest else ""
        return f"Every run makes {fewest:,} steps{longer}."
    seconds = [line.seconds for line in lines]
    least, most = min(seconds), max(seconds)
    if most <= 1.1 * least:
        return f"Every run trains for {np.mean(seconds):.3g} s."
    return f"Runs train for {least:.3g} to {most:.3g} s."


def _draw_ends(
    axis: Axes, lines: Mapping[str, Line], families: Mapping[str, Sequence[str]]
) -> None:
    names = [(family, name) for family, members in families.items() for name in members]
    for i, (family, name) in enumerate(names):
        _, colour, marker = _FAMILIES[family]
        error = mean_interval(100 * (1 - lines[name].test_accuracy))
        ends = [[error.low], [error.high]]
        style.bars(axis, [error.value], [i], ends, error.n, on="x", color=colour, marker=marker)
        style.end_label(axis, max(np.nan_to_num(error[:3])), i, f"{error.value:.2f}", colour)
    axis.set_yticks(range(len(names)), [style.label(name) for _, name in names])
    for tick, (family, _) in zip(axis.get_yticklabels(), names, strict=True):
        tick.set_color(_FAMILIES[family][1])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("error on the test images at the end (%)")
    style.log_scale(axis, "x")


def _draw_course(axis: Axes, line: Line, family: str) -> None:
    """Draw the validation error, a geometric mean over the seeds, without the start."""
    name, colour, _ = _FAMILIES[family]
    errors = 100 * (1 - line.columns["valid_accuracy"][:, 1:])
    intervals = [mean_interval(np.log(np.maximum(column, 1e-2))) for column in errors.T]
    mean, low, high, _ = np.array(intervals).T
    x = line.columns["flops"].mean(0)[1:] / 1e12
    axis.plot(x, np.exp(mean), color=colour, ls=_DASHES.get(family, "-"))
    style.band(axis, x, np.exp(low), np.exp(high), len(errors), colour)
    style.label_ends(axis, [(name, colour)])
