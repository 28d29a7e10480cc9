"""The figure of each method at its best rate: the tuning, and the loss by operations and time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from experiments.common import style
from experiments.common.curves import Curve, plot

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
    figure, axes = plt.subplots(len(panels), 3, figsize=(9, 2.9 * len(panels)), squeeze=False)
    for row, (panel, lines) in zip(axes, panels.items(), strict=True):
        tuning, by_operations, by_time = row
        tuning.set_title(information["titles"][panel])
        _draw_tuning(tuning, tuned[panel])
        for estimator, line in lines.items():
            operations = line["step"][0] * information["operations"][panel][estimator] / 1e9
            for axis, x in ((by_operations, operations), (by_time, line["seconds"].mean(0))):
                plot(axis, x, line["valid_loss"], estimator, logarithmic=True)
        for axis in (by_operations, by_time):
            style.log_scale(axis, "xy")
            axis.set_ylabel("validation loss (nats)")
        by_operations.set_xlabel("operations (10⁹)")
        by_time.set_xlabel("training time (s)")
    handles, names = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    style.save(figure, folder, name)


def _draw_tuning(axis: Axes, tuned: Tuned) -> None:
    """Draw the loss at each rate: crosses above failed rates, the chosen rate filled."""
    for i, (estimator, (chosen, tried)) in enumerate(tuned.items()):
        colour = style.colour(estimator)
        kept = {rate: loss for rate, loss in sorted(tried.items()) if math.isfinite(loss)}
        axis.plot([*kept], [*kept.values()], "o-", color=colour, ms=3, mfc="white")
        axis.plot(chosen, kept.get(chosen, math.nan), "o", color=colour, ms=5)
        failed = [rate for rate in sorted(tried) if rate not in kept]
        where: Any = {"transform": axis.get_xaxis_transform(), "clip_on": False}
        axis.plot(failed, [1.02 + 0.035 * i] * len(failed), "x", color=colour, ms=4, **where)
    axis.set(xlabel="learning rate", ylabel="validation loss after tuning")
    style.log_scale(axis, "xy")
