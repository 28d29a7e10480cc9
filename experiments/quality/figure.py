"""The laboratory's figure: the quality of a choice of estimators against their cost."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import style
from fwdgrad.measurement import Interval

Found = Mapping[str, Mapping[str, Interval]]  # line -> quantity -> interval
_WEIGHTS, _JOINT, _LAYERWISE = "#0072B2", "#CC79A7", "#D55E00"


class _Series(NamedTuple):
    """Lines of one estimator with rising numbers of tangents, K."""

    label: str
    colour: str
    marker: str
    keys: tuple[str, ...]


# Of each kind one; all others are in the report's tables.
_SERIES = (
    _Series("backprop", "black", "o", ("backprop",)),
    _Series("forward gradient,\ndense normal", _WEIGHTS, "o",
            ("weights-normal-1", "weights-normal-8")),
    _Series("forward gradient,\nlow-rank", _WEIGHTS, "s",
            ("weights-low_rank-1", "weights-low_rank-8", "weights-low_rank-64")),
    _Series("forward gradient,\nblocks", _WEIGHTS, "D",
            ("weights-blocks-32", "weights-blocks-256")),
    _Series("activities, joint", _JOINT, "^",
            ("activities-rademacher-1", "activities-rademacher-16")),
    _Series("activities, layer-wise,\nexact last", _LAYERWISE, "o",
            ("layerwise-1", "layerwise-4", "layerwise-16")),
    _Series("… in blocks", _LAYERWISE, "D",
            ("layerwise-blocks-8", "layerwise-blocks-32", "layerwise-blocks-128")),
    _Series("… and control variate", _LAYERWISE, "P", ("layerwise-blocks-guided-32",)),
)  # fmt: skip


def quality_figure(stage: int, found: Found) -> Figure:
    """Draw cosines against time and against operations.

    Args:
      stage: the step of the training by backprop at which the estimates were made.
      found: line -> quantity -> interval.
    """
    figure, axes = plt.subplots(1, 2, figsize=(style.WIDTH, 4.4), sharey=True)
    at = "at the start" if stage == 0 else f"after {stage:,} steps of backprop"
    for axis, cost in zip(axes, ("time", "operations"), strict=True):
        for series in _SERIES:
            if keys := [key for key in series.keys if key in found]:
                _draw_series(axis, series, keys, found, cost)
        style.log_scale(axis, "xy")
        low, high = axis.get_xlim()
        style.set_limits(axis, "x", min(low, 0.8), max(high, 2.5))  # two numbers at least
        axis.set_xlabel(f"{cost} of a step, over backprop's")
    axes[0].set_ylabel("cosine with the exact gradient,\nhidden layers")
    axes[0].set_title(f"The paper's MLP, minibatch 64, {at}")
    return figure


def quality_caption(found: Found) -> str:
    """Return the caption: n, the kind of interval, and the numbers beside marks."""
    drawn = [key for series in _SERIES for key in series.keys if key in found]
    numbers = [found[key]["hidden_cosine"].n for key in drawn]
    kind = "bars: 95 % intervals of cosines (Student's t), mostly smaller than the marks"
    return (
        f"Means, {style.samples(numbers, 'seeds', kind)}. Numbers: K, the number of "
        "tangents or of blocks. All other estimators, and later stages of training: in the tables."
    )


def _draw_series(axis: Axes, series: _Series, keys: list[str], found: Found, cost: str) -> None:
    x = [found[key][cost].value for key in keys]
    cosines = [found[key]["hidden_cosine"] for key in keys]
    ends = [[cosine.low for cosine in cosines], [cosine.high for cosine in cosines]]
    y, n = [cosine.value for cosine in cosines], [cosine.n for cosine in cosines]
    look: dict[str, Any] = {"color": series.colour, "marker": series.marker, "lw": 1, "ls": "-"}
    style.bars(axis, x, y, ends, n, **look)
    numbers = [key.rpartition("-")[2] for key in keys]
    for number, a, b in [*zip(numbers, x, y, strict=True)][:-1]:
        axis.annotate(
            number, (a, b), (-4, 3), textcoords="offset points", ha="right", va="bottom",
            color=series.colour, fontsize=8,
        )  # fmt: skip
    last = f", {numbers[-1]}" if numbers[-1].isdigit() else ""
    style.end_label(axis, x[-1], y[-1], series.label + last, series.colour)
