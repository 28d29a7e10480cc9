"""The laboratory's figure: the quality of each estimator against its cost, and the frontier."""

import itertools
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import style
from fwdgrad.measurement import Interval

# A colour for each space, a marker for each variant in it.
_COLOURS = {
    "backprop": "#000000", "weights": "#D55E00", "activities": "#0072B2", "layer-wise": "#009E73",
}  # fmt: skip
_OTHER_COLOUR = "#CC79A7"  # without tangents
_MARKERS = "*osD^v<P>Xphx+d8"

Found = Mapping[str, Mapping[str, Interval]]  # line -> quantity -> interval


def quality_figure(stages: Mapping[int, Found], information: Mapping[str, Any]) -> Figure:
    """Draw cosines against time and operations, a column for each stage of the training.

    Args:
      stages: step of the training -> line -> quantity -> interval.
      information: the experiment's record: `group`, `learnt` and `uncounted` of each line.
    """
    figure, axes = plt.subplots(
        2, len(stages), figsize=(3.6 * len(stages), 6.4), sharey=True, squeeze=False
    )
    for column, (stage, found) in zip(axes.T, stages.items(), strict=True):
        title = "at the start" if stage == 0 else f"after {stage:,} steps of backprop"
        column[0].set_title(title, loc="left", fontweight="bold")
        for axis, cost in zip(column, ("time", "operations"), strict=True):
            _draw_costs(axis, found, information, cost)
            axis.set_xlabel(f"{cost} of a step, over backprop's")
    figure.supylabel("cosine of estimate and exact gradient, hidden layers", fontsize=8)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center", ncols=len(stages) + 1, fontsize=7,
    )  # fmt: skip
    return figure


def _draw_costs(axis: Axes, found: Found, information: Mapping[str, Any], cost: str) -> None:
    groups = information["group"]
    variants = dict.fromkeys(_space_and_variant(group)[1] for group in groups.values())
    markers = dict(zip(variants, itertools.cycle(_MARKERS), strict=False))
    points = []
    for group in dict.fromkeys(groups.values()):
        space, variant = _space_and_variant(group)
        names = [name for name in found if groups[name] == group]
        learnt = any(information["learnt"][name] for name in names)
        x = [found[name][cost].value for name in names]
        y = [found[name]["hidden_cosine"] for name in names]
        uncounted = cost == "operations" and any(information["uncounted"][name] for name in names)
        if not (learnt or uncounted or group == "backprop"):
            points += [(a, b.value) for a, b in zip(x, y, strict=True)]
        ends = [[b.value - b.low for b in y], [b.high - b.value for b in y]]
        axis.errorbar(
            x, [b.value for b in y], np.maximum(np.nan_to_num(ends), 0),
            color=_COLOURS.get(space, _OTHER_COLOUR), marker=markers[variant],
            mfc="white" if learnt else None, ms=4, lw=0.8, elinewidth=0.6,
            label=f"{group} (learned before)" if learnt else group,
        )  # fmt: skip
    frontier = frontier_of(points)
    axis.step(
        *zip(*frontier, strict=True), where="post", color="black", lw=0.8, ls=":", zorder=0,
        label="frontier, without backprop",
    )  # fmt: skip
    style.log_scale(axis, "xy")
    style.plain_numbers(axis.xaxis, (1, 2, 5))
    low, high = axis.get_xlim()
    style.set_limits(axis, "x", min(low, 0.8), max(high, 2.5))  # two numbers at least


def _space_and_variant(group: str) -> tuple[str, str]:
    """Split the name of a group into space and variant.

    >>> _space_and_variant("activities, joint, blocks"), _space_and_variant("weights, blocks")
    (('activities', 'blocks'), ('weights', 'blocks'))
    """
    space, _, variant = group.partition(", ")
    return space, variant.removeprefix("joint").removeprefix(", ") or space


def frontier_of(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no cheaper point equals or exceeds.

    >>> frontier_of([(2.0, 0.5), (1.0, 0.2), (3.0, 0.4)])
    [(1.0, 0.2), (2.0, 0.5)]
    """
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best
