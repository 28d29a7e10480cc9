"""The figure of a race: errors against time and operations, and at the end of runs."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import style
from experiments.races.results import About, Line, Lines
from fwdgrad.measurement import mean_interval

# The colour maps of families, and of controls.
FAMILIES = {
    "backprop": "Greys", "control": "Purples", "activity": "Blues", "local": "Greens",
    "weight": "Oranges",
}  # fmt: skip


def race_figure(lines: Lines, about: About) -> Figure:
    """Draw errors while training, by time and by operations, and at the end of runs."""
    figure, (by_time, by_operations, ends) = plt.subplots(1, 3, figsize=(11, 4))
    by_operations.sharey(by_time)
    colours = _colours(lines, about)
    budgeted = [name for name in lines if about[name]["operations"] is not None]
    for name, line in lines.items():
        colour = colours[about[name]["like"]]
        if about[name]["like"] == name:
            _draw_run(by_time, line, "seconds", 1, colour, name)
        if name in (budgeted or colours):
            _draw_run(by_operations, line, "flops", 1e12, colour, name)
    for i, (name, colour) in enumerate(colours.items()):
        lengths = [line for n, line in lines.items() if about[n]["like"] == name]
        # Beside each other, also where they have the same length.
        _draw_lengths(ends, lengths, 1 + 0.012 * (i - len(colours) / 2), colour, name)
    by_time.set(xlabel="training time (s)", ylabel="error (%)")
    style.log_scale(by_time)
    by_operations.set(xlabel="operations (10¹²)")
    ends.set(xlabel="training time of the whole run (s)")
    least = min(100 * (1 - line.accuracy) for line in lines.values())
    style.set_limits(ends, "y", 0.9 * least, 2.5 * least)  # where it is decided
    lengths_of_all = [line.seconds for line in lines.values()]
    titles = ("validation, while training",) * 2 + ("test, at a run's end, the best",)
    for panel, title in zip((by_time, by_operations, ends), titles, strict=True):
        style.log_scale(panel, "x")
        panel.set_title(title, loc="left", fontweight="bold")
        style.plain_numbers(panel.xaxis, (1, 2, 5))
    style.set_limits(ends, "x", 0.7 * min(lengths_of_all), 1.4 * max(lengths_of_all))
    style.plain_numbers(by_time.yaxis, (1, 1.5, 2, 3, 4, 6, 8))
    by_operations.tick_params(labelleft=False)
    figure.legend(*by_time.get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def _colours(lines: Lines, about: About) -> dict[str, Any]:
    """Return for every estimator a shade of its family's colour; controls have their own."""
    shades = {}
    for family, colour_map in FAMILIES.items():
        names = [about[n]["like"] for n in lines if _family(n, lines[n]) == family]
        names = list(dict.fromkeys(names))
        for i, estimator in enumerate(names):
            shades[estimator] = plt.get_cmap(colour_map)(0.9 - 0.55 * i / max(1, len(names)))
    return shades


def _family(name: str, line: Line) -> str:
    return "control" if name.startswith("control") else line.family


def _draw_run(
    panel: Axes, line: Line, column: str, unit: float, colour: Any, estimator: str
) -> None:
    error = 100 * (1 - line.columns["valid_accuracy"])
    logarithms = [mean_interval(np.log(np.maximum(e, 1e-2))) for e in error.T]
    mean, low, high = (np.exp([x[k] for x in logarithms])[1:] for k in range(3))
    x = line.columns[column].mean(0)[1:] / unit
    dashes = "--" if estimator.startswith("control") else "-"
    panel.plot(x, mean, dashes, color=colour, label=style.label(estimator))
    panel.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


def _draw_lengths(
    panel: Axes, lines: list[Line], shift: float, colour: Any, estimator: str
) -> None:
    lines = sorted(lines, key=lambda line: line.seconds)
    errors = [mean_interval(100 * (1 - line.test_accuracy)) for line in lines]
    ends = [[e.value - e.low for e in errors], [e.high - e.value for e in errors]]
    is_control = estimator.startswith("control")
    panel.errorbar(
        [shift * line.seconds for line in lines], [e.value for e in errors],
        np.maximum(np.nan_to_num(ends), 0), color=colour, marker="o", ms=3, elinewidth=0.8, lw=0.8,
        ls="--" if is_control else "-", mfc="white" if is_control else None,
    )  # fmt: skip
