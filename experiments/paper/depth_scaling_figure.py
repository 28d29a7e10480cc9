"""The figure of the scaling with depth and minibatch: time and memory of a step."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiments.common import style
from experiments.common.paper_facts import FACTS

_SHORT = {
    "backprop": "backprop",
    "backprop-checkpointed": "checkpointed",
    "forward-normal": "dense normal",
    "forward-low_rank": "low-rank",
}
_PAPER = {"batch_size": 64, "width": 1024}
# The paper's facts of a row of panels: quantity -> the estimator it is of.
_FACTS = ({"R_f": "forward-normal", "R_b": "backprop"}, {"R_ratio": "forward-normal"})
_LABELS = (
    "R: time over the\nloss alone", "time over\nbackprop's", "parameters and\ntemporaries (MiB)",
    "temporaries\n(MiB)",
)  # fmt: skip


def draw_scaling(rows: pd.DataFrame, folder: Path, name: str) -> None:
    """Draw a column of panels for each axis: R, time over backprop's, and memory.

    Args:
      rows: the table of the experiment.
      folder: where the files go.
      name: of the figure.
    """
    axes_drawn = [axis for axis in ("depth", "batch_size") if (rows["axis"] == axis).any()]
    figure, panels = plt.subplots(
        4, len(axes_drawn), figsize=(style.WIDTH, 8.4), squeeze=False, sharex="col"
    )
    for column, axis in zip(panels.T, axes_drawn, strict=True):
        of_axis = rows[rows["axis"] == axis]
        _draw_column(column, of_axis, axis)
        fixed = of_axis.iloc[0]
        if axis == "depth":
            column[0].set_title(f"minibatch {fixed['batch_size']}")
            column[3].set_xlabel(f"layers of width {fixed['width']}")
            column[3].xaxis.set_major_locator(MaxNLocator(integer=True))
            if (last := int(of_axis["depth"].max())) >= 40:
                column[3].set_xticks([1, *range(20, last + 1, 20)])
            if all(fixed[key] == value for key, value in _PAPER.items()):
                _mark_the_paper(column, set(of_axis["depth"]))
        else:
            column[0].set_title(f"{fixed['depth']} layers")
            column[3].set_xlabel("minibatch (examples)")
            style.log_scale(column[3], "x", base=2)
        for panel in column[:2]:
            panel.set_ylim(0)
    for panel, label in zip(panels[:, 0], _LABELS, strict=True):
        panel.set_ylabel(label)
    n = style.samples(rows["n"], "processes", "bands: 95 % intervals")
    caption = (
        f"Times: {n}. Memory by XLA's account, which does not vary. Forward "
        "gradients with dense normal and with low-rank tangents. Open diamonds: the paper, on a "
        "GPU, with dense normal tangents."
    )
    style.save(figure, folder, name, caption)


def _draw_column(column: np.ndarray, rows: pd.DataFrame, axis: str) -> None:
    cost, ratio, total, temporary = column
    for estimator, short in _SHORT.items():
        line = rows[rows["estimator"] == estimator].set_index(axis)
        colour = style.colour(estimator)
        _draw_line(cost, line, "relative_cost", colour)
        if estimator != "backprop":
            _draw_line(ratio, line, "over_reference", colour)
        for panel, memory in ((total, line["total_bytes"]), (temporary, line["temp_bytes"])):
            panel.plot(line.index, style.finite(memory) / 2**20, ".-", ms=4, color=colour)
        for panel in column:
            if panel is not ratio or estimator != "backprop":
                style.label_ends(panel, [(short, colour)])
    ratio.axhline(1, color=style.colour("backprop"), lw=1)
    style.log_scale(total)
    style.log_scale(temporary)


def _draw_line(panel: Axes, line: pd.DataFrame, quantity: str, colour: str) -> None:
    value, low, high = (line[f"{quantity}{end}"].to_numpy() for end in ("", "_low", "_high"))
    panel.plot(line.index, style.finite(value), ".-", color=colour, ms=4)
    style.band(panel, line.index, low, high, line["n"], colour)


def _mark_the_paper(column: np.ndarray, depths: set[int]) -> None:
    for panel, facts in zip(column, _FACTS, strict=False):
        for quantity, estimator in facts.items():
            for depth in sorted(depths):
                if fact := FACTS.get(f"depth.{quantity}.{depth}"):
                    text = "paper" if depth == 100 else ""
                    colour = style.colour(estimator)
                    style.paper_mark(panel, depth, fact.low, fact.high, colour, text)
    if (fact := FACTS.get("depth.bytes.100")) and 100 in depths:
        low, high = fact.low / 2**20, fact.high / 2**20
        style.paper_mark(column[2], 100, low, high, style.GREY, "paper, both")
