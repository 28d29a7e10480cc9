"""The figure of descents on test functions: values against iterations and time, and the paths."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from experiments.common import style
from experiments.common.paper_facts import FACTS
from fwdgrad.problems import TEST_FUNCTIONS

# Curves that lie upon each other: each is thinner than the one below it, and the last has gaps.
_LOOKS: tuple[dict[str, Any], ...] = (
    {"lw": 3.6}, {"lw": 2.2}, {"lw": 1.4, "dashes": (2.5, 1.5)}, {"lw": 1.0, "dashes": (1, 2)},
)  # fmt: skip
_SHORT = {
    "backprop": "backprop",
    "forward-normal": "forward gradient,\ndense normal",
    "forward-rademacher": "forward gradient,\nRademacher",
}
# estimator -> column -> array (runs, rows)
Paths = Mapping[str, Mapping[str, np.ndarray]]


def draw_trajectories(
    paths: Mapping[str, Paths],
    functions: Mapping[str, Mapping[str, Any]],
    minima: Mapping[str, float],
    folder: Path,
    name: str,
) -> None:
    """Draw a row of three panels for each function.

    Args:
      paths: function -> its descents.
      functions: function -> its settings.
      minima: function -> its least value.
      folder: where the files go.
      name: of the figure.
    """
    size = (style.WIDTH, 2.9 * len(paths) + 0.4)
    figure, axes = plt.subplots(len(paths), 3, figsize=size, squeeze=False)
    for row, (function, lines) in zip(axes, paths.items(), strict=True):
        _draw_row(row, function, lines, functions[function], minima[function])
        row[0].set_title(functions[function]["title"])
    numbers = [len(line["value"]) for lines in paths.values() for line in lines.values()]
    caption = [
        f"n = {max(numbers)} runs (seeds), all of them thin and their means thick; no interval.",
        "Star: the minimum.",
        "Open diamonds: the paper's last value, an order of magnitude read off its plot.",
        "Low-rank tangents are not drawn: a vector is no matrix, so they are Rademacher tangents.",
    ]
    if not any(f"{function}.final" in FACTS for function in paths):
        caption[1:3] = ["Values that float32 does not tell from the minimum are not drawn."]
    style.save(figure, folder, name, " ".join(caption))


def _draw_row(
    axes: np.ndarray, function: str, lines: Paths, settings: Mapping[str, Any], least: float
) -> None:
    by_step, by_time, path = axes
    planar = len(settings["start"]) == 2
    for (estimator, line), look in zip(lines.items(), _LOOKS, strict=False):
        milliseconds, gap = 1e3 * line["seconds"], line["value"] - least
        gap = np.where(gap > abs(np.spacing(np.float32(least))), gap, np.nan)
        places = (line["x"], line["y"]) if planar else (line["step"], line["distance"])
        for axis, x, y in (
            (by_step, line["step"], gap), (by_time, milliseconds, gap), (path, *places),
        ):  # fmt: skip
            _draw_runs(axis, x, y, style.colour(estimator), look)
        name = _SHORT.get(estimator, style.label(estimator))
        style.label_ends(by_step, [(name, style.colour(estimator))])
    if planar:
        _draw_contours(path, TEST_FUNCTIONS[settings["function"]])
    else:
        path.set(xlabel="iteration", ylabel="distance from the minimum")
    above = "f" if least == 0 else "f − min f"
    by_step.set(xlabel="iteration", ylabel=above)
    by_step.xaxis.set_major_formatter("{x:,.0f}")
    by_time.set(xlabel="time (ms)", ylabel=above)
    for axis in (by_step, by_time):
        style.log_scale(axis)
        axis.xaxis.set_major_locator(MaxNLocator(4))
    steps = float(next(iter(lines.values()))["step"][0, -1])
    if (final := FACTS.get(f"{function}.final")) and steps == settings["full"]["num_steps"]:
        style.paper_mark(by_step, steps, final.low, final.high, style.colour("forward-normal"))


def _draw_runs(
    axis: Axes, x: np.ndarray, y: np.ndarray, colour: str, look: Mapping[str, Any]
) -> None:
    runs = [np.column_stack(run) for run in zip(x, y, strict=True)]
    axis.add_collection(LineCollection(runs, colors=colour, linewidths=0.4, alpha=0.35))
    axis.plot(x.mean(0), y.mean(0), color=colour, **look)


def _draw_contours(axis: Axes, objective: Any) -> None:
    """Draw the function's levels around the paths, and a star at its minimum."""
    minimum = np.broadcast_to(objective.argmin, 2)
    axis.plot(*minimum, "*", color="#E69F00", ms=10, mec="black", mew=0.6, zorder=5)
    axis.margins(0.15)
    (x_low, x_high), (y_low, y_high) = axis.get_xlim(), axis.get_ylim()
    x, y = np.meshgrid(np.linspace(x_low, x_high, 120), np.linspace(y_low, y_high, 120))
    points = jnp.asarray(np.stack([x.ravel(), y.ravel()], 1), jnp.float32)
    values = np.asarray(jax.vmap(objective.function)(points)).reshape(x.shape)
    levels = np.log1p(values - values.min())
    axis.contour(x, y, levels, levels=14, colors="#999999", linewidths=0.3, zorder=0)
    axis.set(xlabel="x", ylabel="y")
    axis.grid(visible=False)
