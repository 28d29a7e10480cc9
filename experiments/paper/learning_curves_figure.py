"""The figure of the learning curves: a row of four panels for each model."""

import math
from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.common import style
from experiments.common.curves import Curve, mean_over_seeds, plot, time_to
from fwdgrad.measurement import Interval

Costs = Mapping[str, Mapping[str, Interval]]  # estimator (or `loss`) -> quantity -> interval


def learning_curves_figure(
    panels: Mapping[str, Mapping[str, Curve]], costs: Mapping[str, Costs], titles: Mapping[str, str]
) -> Figure:
    """Draw losses, time and accuracy against iterations and time.

    Args:
      panels: panel -> estimator -> curve.
      costs: panel -> the costs of a step; panels without are drawn without R.
      titles: panel -> title.
    """
    figure, axes = plt.subplots(len(panels), 4, figsize=(11, 2.6 * len(panels)), squeeze=False)
    for row, (panel, lines) in zip(axes, panels.items(), strict=True):
        _draw_row(row, lines, costs.get(panel, {}))
        row[0].set_title(titles[panel], loc="left", fontweight="bold")
    handles, labels = axes[0, 2].get_legend_handles_labels()
    for label, ls in (("validation", "-"), ("training", ":")):
        handles.append(Line2D([], [], color="#777777", ls=ls))
        labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _draw_row(axes: np.ndarray, lines: Mapping[str, Curve], costs: Costs) -> None:
    by_step, by_time, cost, accuracy = axes
    means = {estimator: mean_over_seeds(line) for estimator, line in lines.items()}
    target = float(means["backprop"]["valid_loss"].min())
    times = {estimator: time_to(target, mean) for estimator, mean in means.items()}
    for estimator, line in lines.items():
        steps, seconds = line["step"][0], line["seconds"].mean(0)
        plot(by_step, steps, line["valid_loss"], estimator)
        # The first row is the loss of one minibatch, the others means over many.
        trained = style.finite(line["train_loss"]).mean(0)[1:]
        by_step.plot(steps[1:], trained, color=style.colour(estimator), ls=":", lw=0.9)
        plot(by_time, seconds, line["valid_loss"], estimator)
        plot(cost, steps, line["seconds"], estimator)
        plot(accuracy, seconds, line["valid_accuracy"], estimator)
        if math.isfinite(time := times[estimator]):
            by_time.plot(time, target, "o", ms=4, color=style.colour(estimator))
    steps = lines["backprop"]["step"][0]
    if costs:
        base = float(style.finite(costs["loss"]["seconds"].value))
        cost.plot(steps, base * steps, color="#777777", ls="--", label="Loss alone")
        _write_beside(cost, lines, [_cost_text(e, costs) for e in lines])
    by_time.axhline(target, color=style.colour("backprop"), lw=0.6, ls="--")
    _write_beside(by_time, lines, [_time_text(e, times) for e in lines])
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(5))
    by_step.set(xlabel="iteration", ylabel="loss (nats)")
    by_time.set(xlabel="training time (s)", ylabel="validation loss (nats)")
    cost.set(xlabel="iteration", ylabel="training time (s)")
    accuracy.set(xlabel="training time (s)", ylabel="validation accuracy")


def _time_text(estimator: str, times: Mapping[str, float]) -> str:
    time, reference = times[estimator], times["backprop"]
    if estimator == "backprop":
        return f"$T_b$ {reference:.3g} s"
    if not math.isfinite(time):
        return "$T_f$ not reached"
    over = f"{time / reference:.3f}" if reference > 0 else "–"
    return f"$T_f$ {time:.3g} s, $T_f/T_b$ {over}"


def _cost_text(estimator: str, costs: Costs) -> str:
    relative = costs[estimator]["relative_cost"].value
    if estimator == "backprop":
        return f"$R_b$ {relative:.3g}"
    return f"$R_f$ {relative:.3g}, $R_f/R_b$ {costs[estimator]['over_reference'].value:.3f}"


def _write_beside(axis: Axes, estimators: Iterable[str], texts: Iterable[str]) -> None:
    """Write a line for each estimator, in its colour, above the panel."""
    for i, (estimator, text) in enumerate(zip(estimators, texts, strict=True)):
        axis.annotate(
            text, (1, 1), (0, 2 + 8 * (2 - i)), xycoords="axes fraction",
            textcoords="offset points", ha="right", va="bottom", fontsize=6.5,
            color=style.colour(estimator),
        )  # fmt: skip
