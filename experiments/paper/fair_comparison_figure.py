"""The figure of each method at its best rate: the tuning, and the loss by operations and time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from experiments.common import style
from experiments.common.curves import Curve, plot

_SHORT = {
    "backprop": "backprop",
    "forward-normal": "dense normal",
    "forward-low_rank": "low-rank",
    "backprop-cosine": "backprop, cosine",
    "forward-low_rank-cosine-clipped": "low-rank, cosine, clipped",
}
_ROW = 0.06  # of the height of a panel, for the crosses of a line
# estimator -> the chosen rate, and rate -> the loss after tuning, not finite where a run failed
Tuned = Mapping[str, tuple[float, Mapping[float, float]]]


def draw_comparison(
    panels: Mapping[str, Mapping[str, Curve]], tuned: Mapping[str, Tuned],
    information: Mapping[str, Any], folder: Path, name: str,
) -> None:  # fmt: skip
    """Draw a row of three panels for each model.

    Args:
      panels: panel -> estimator -> curve.
      tuned: panel -> the rates that were tried.
      information: the experiment's record: `titles`, and `operations` of a step of each line.
      folder: where the files go.
      name: of the figure.
    """
    size = (style.WIDTH, 2.9 * len(panels) + 0.4)
    figure, axes = plt.subplots(len(panels), 3, figsize=size, squeeze=False)
    for row, (panel, lines) in zip(axes, panels.items(), strict=True):
        tuning, by_operations, by_time = row
        tuning.set_title(information["titles"][panel])
        _draw_tuning(tuning, tuned[panel])
        for estimator, line in lines.items():
            later = line["step"][0] > 0  # no logarithmic axis shows the start
            operations = line["step"][0] * information["operations"][panel][estimator] / 1e9
            for axis, x in ((by_operations, operations), (by_time, line["seconds"].mean(0))):
                plot(axis, x[later], line["valid_loss"][:, later], estimator, logarithmic=True)
            text = _SHORT.get(estimator, style.label(estimator))
            style.label_ends(by_time, [(text, style.colour(estimator))])
        for axis in (by_operations, by_time):
            style.log_scale(axis, "xy")
            axis.set_ylabel("validation loss (nats)")
        by_operations.set_xlabel("operations (10⁹)")
        by_time.set_xlabel("training time (s)")
    numbers = [len(line["step"]) for lines in panels.values() for line in lines.values()]
    kind = "bands: 95 % intervals (Student's t of the logarithms)"
    style.save(
        figure, folder, name,
        f"Geometric means, {style.samples(numbers, 'seeds', kind)}. Left: every rate that was "
        "tried, the chosen one filled; crosses: rates at which a run failed. Dense normal and "
        "low-rank tangents of forward gradients; dashed: cosine decay in the place of the paper's.",
    )  # fmt: skip


def _draw_tuning(axis: Axes, tuned: Tuned) -> None:
    """Draw the loss at each rate: crosses above failed rates, the chosen rate filled."""
    failed: dict[str, list[float]] = {}
    for estimator, (chosen, tried) in tuned.items():
        look: dict[str, Any] = {"color": style.colour(estimator)}
        kept = {rate: loss for rate, loss in sorted(tried.items()) if math.isfinite(loss)}
        line: dict[str, Any] = {
            "ls": style.dashes(estimator),
            "marker": "o",
            "ms": 3.5,
            "mfc": "white",
        }
        axis.plot([*kept], [*kept.values()], **line, **look)
        axis.plot(chosen, kept.get(chosen, math.nan), "o", ms=5.5, **look)
        if any(rate not in kept for rate in tried):
            failed[estimator] = [rate for rate in sorted(tried) if rate not in kept]
    axis.set(xlabel="learning rate", ylabel="validation loss after tuning")
    style.log_scale(axis, "xy")
    scale = axis.yaxis.get_transform()  # linear where no loss is positive
    bottom, top = scale.transform(axis.get_ylim())
    room = scale.inverted().transform(top + _ROW * len(failed) * (top - bottom))
    axis.set_ylim(top=float(room))
    for i, (estimator, rates) in enumerate(failed.items()):
        heights = [1 - _ROW * (i + 0.5) / (1 + _ROW * len(failed))] * len(rates)
        where = axis.get_xaxis_transform()
        axis.plot(rates, heights, "x", ms=4, color=style.colour(estimator), transform=where)
