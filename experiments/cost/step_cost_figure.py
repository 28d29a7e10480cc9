"""The figure of `step_cost`: R and memory of each program, with the paper's R as marks."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.common import style
from experiments.common.costs import LOSS
from experiments.common.paper_facts import FACTS
from fwdgrad.measurement import Interval


def step_cost_figure(
    about: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Mapping[str, Mapping[str, Interval]]],
) -> Figure:
    """Draw R and the total memory of each program, a row of panels for each model.

    Args:
      about: panel -> its `title`, and the model of the `paper`'s numbers or None.
      found: panel -> line -> quantity -> interval.
    """
    columns = {"relative_cost": 1, "total_bytes": 2**20}  # and their units
    figure, axes = plt.subplots(
        len(found), 2, figsize=(7.2, 0.4 + 1.6 * len(found)), squeeze=False, sharey="row"
    )
    for row, (panel, of_panel) in zip(axes, found.items(), strict=True):
        row[0].set_title(about[panel]["title"], loc="left", fontweight="bold")
        lines = [line for line in of_panel if line != LOSS][::-1]
        for axis, (quantity, unit) in zip(row, columns.items(), strict=True):
            _dots(axis, [of_panel[line][quantity] for line in lines], unit, lines)
        row[0].set_yticks(range(len(lines)), [style.label(line) for line in lines])
        row[0].axvline(1, color=style.colour(LOSS), lw=0.8)
        for line, key in (("backprop", "R_b"), ("forward-normal", "R_f")):
            if (fact := FACTS.get(f"{about[panel]['paper']}.{key}")) and line in lines:
                x, y = [fact.low, fact.high], [lines.index(line)] * 2
                row[0].plot(x, y, "|-", color="#777777", ms=9, mew=2)
    for axis in axes[:, 0]:
        axis.set_xlim(0)
    for axis in axes[:, 1]:
        style.log_scale(axis, "x")
        style.plain_numbers(axis.xaxis, (1, 2, 5))
        axis.margins(x=0.15)
    axes[-1, 0].set_xlabel("R: time over the loss alone")
    axes[-1, 1].set_xlabel("parameters, gradients, temporaries (MiB)")
    n = max(interval["seconds"].n for of_panel in found.values() for interval in of_panel.values())
    measured = f"measured (mean and 95 % interval over {n} processes)" if n > 2 else "measured"
    handles = [
        Line2D([], [], color="#000000", ls="", marker="o", ms=4, label=measured),
        Line2D([], [], color="#777777", ls="", marker="|", ms=9, mew=2, label="the paper (GPU)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _dots(axis: Axes, intervals: list[Interval], unit: float, lines: list[str]) -> None:
    """Draw a dot at each height, with the interval if it has one, and its number."""
    for height, (interval, line) in enumerate(zip(intervals, lines, strict=True)):
        value, low, high = (float(style.finite(x)) / unit for x in interval[:3])
        error = np.maximum(np.nan_to_num([[value - low], [high - value]]), 0)
        axis.errorbar(value, height, xerr=error, fmt="o", color=style.colour(line), ms=4, lw=1)
        axis.annotate(
            f"{value:.3g}", (value, height), (0, 4), textcoords="offset points", ha="center"
        )
    axis.set_ylim(-0.6, len(lines) - 0.2)
    axis.grid(axis="y", visible=False)
