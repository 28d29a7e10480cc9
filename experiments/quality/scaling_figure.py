"""The figures of `scaling_laws`: errors with theory's lines, and losses after equal work."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from experiments.common import style
from experiments.quality.scaling_fits import BUDGETS, PARAMETERS, Errors, Scaling, laws_of
from fwdgrad.measurement import mean_interval

# Line -> colour and marker; a control variate is an open mark of the colour of the line without.
_LOOKS = {
    "backprop": ("#000000", "o"),
    "weights-normal": ("#0072B2", "o"),
    "weights-low_rank": ("#D55E00", "s"),
    "weights-orthogonal": ("#CC79A7", "^"),
    "activities-rademacher": ("#0072B2", "o"),
    "layerwise": ("#D55E00", "s"),
    "layerwise-guided": ("#D55E00", "P"),
    "activity-blocks": ("#CC79A7", "^"),
    "activity-blocks-guided": ("#CC79A7", "v"),
}
_AXES = {
    PARAMETERS: "parameters, $d$ (millions)",
    "width": "width",
    "depth": "hidden layers",
    "num_tangents": "tangents or blocks, $K$",
    "rank": "rank of the tangents",
}
_BASES = {"width": 4, "depth": 2, "num_tangents": 4, "rank": 2}  # of the ticks
# Rows of the figure: the beginnings of the lines' names, and the axes of the panels.
_ROWS = {
    "weights": (("weights",), (PARAMETERS, "rank", "num_tangents")),
    "activities": (("activit", "layerwise"), ("width", "depth", "num_tangents")),
}
_SHORT = {
    "weights-normal": "dense normal",
    "weights-low_rank": "low-rank",
    "weights-orthogonal": "orthogonal",
    "activities-rademacher": "joint",
    "layerwise": "layer-wise",
    "layerwise-guided": "layer-wise,\ncontrol variate",
    "activity-blocks": "blocks",
    "activity-blocks-guided": "blocks,\ncontrol variate",
}


def draw_scaling(scaling: Scaling, folder: Path, name: str) -> None:
    """Draw errors, and, if lines were trained, losses."""
    if scaling.errors:
        _draw_errors(scaling, folder, name)
    if scaling.losses:
        _draw_losses(scaling, folder, f"{name}_training")


def _draw_errors(scaling: Scaling, folder: Path, name: str) -> None:
    figure, panels = plt.subplots(2, 3, figsize=(style.WIDTH, 6.2))
    numbers = []
    for row, (title, (starts, axes)) in zip(panels, _ROWS.items(), strict=True):
        for panel, axis in zip(row, axes, strict=True):
            lines = {
                line: errors for line, errors in scaling.errors.get(axis, {}).items()
                if line.startswith(starts)
            }  # fmt: skip
            numbers += [len(errors.error) for errors in lines.values()]
            panel.set_visible(bool(lines))
            for line, errors in lines.items():
                with_name = axis == [x for x in axes if line in scaling.errors.get(x, {})][-1]
                unit = 1e6 if axis == PARAMETERS else 1.0
                _draw_line(panel, line, errors._replace(x=errors.x / unit), with_name)
            style.log_scale(panel, "x", base=_BASES.get(axis, 10))
            style.log_scale(panel, "y")
            panel.set_xlabel(_AXES[axis])
        row[0].set_ylabel("error, $E\\|g-\\nabla f\\|^2 / \\|\\nabla f\\|^2$")
        row[0].set_title(f"noise in {title}")
    kind = "bars: 95 % intervals (Student's t)"
    caption = (
        f"Means, {style.samples(numbers, 'seeds', kind)}. Dashed: theory. Numbers: exponents, "
        "by least squares of logarithms. An MLP at its start, minibatch 64; layer-wise noise and "
        "blocks with the exact last layer."
    )
    style.save(figure, folder, name, caption)


def _draw_line(panel: Axes, line: str, errors: Errors, with_name: bool) -> None:
    colour = _LOOKS.get(line, (style.GREY, ""))[0]
    _draw_seeds(panel, line, errors.x, errors.error)
    law = style.finite(errors.law.mean(0), positive=True)
    points = np.column_stack([errors.x, law])
    segments = [points[i : i + 2] for i in range(len(points) - 1)]
    if kept := [x for x in segments if np.isfinite(x).all()]:
        panel.add_collection(LineCollection(kept, colors=colour, linestyles="--", lw=1, alpha=0.7))
    exponent = laws_of(errors)["error"].exponent.value
    text = f"{exponent:.2f}".replace("-", "−") if np.isfinite(exponent) else ""
    end = style.finite(errors.error.mean(0), positive=True)[-1]
    label = f"{_SHORT.get(line, line)}, {text}" if with_name else text
    style.end_label(panel, errors.x[-1], end, label, colour)


def _draw_seeds(panel: Axes, line: str, x: np.ndarray, y: np.ndarray) -> None:
    colour, marker = _LOOKS.get(line, (style.GREY, "o"))
    found = [mean_interval(of_point) for of_point in y.T]
    means = style.finite([interval.value for interval in found], positive=True)
    both = [[getattr(f, end) for f in found] for end in ("low", "high")]
    ends = style.finite(both, positive=True)
    look: dict[str, Any] = {"color": colour, "marker": marker, "ls": "-", "lw": 0.8}
    if line.endswith("-guided"):
        look |= {"mfc": "white"}
    style.bars(panel, x, means, ends, len(y), **look)


def _draw_losses(scaling: Scaling, folder: Path, name: str) -> None:
    figure, panels = plt.subplots(1, len(BUDGETS), figsize=(style.WIDTH, 3.6), sharey=True)
    operations = scaling.information["training"]["operations"]
    titles = (f"after {operations:.3g} operations", f"after {scaling.seconds:.3g} s")
    numbers: list[int] = []
    for panel, budget, title in zip(panels, BUDGETS, titles, strict=True):
        losses: Mapping[str, np.ndarray] = scaling.losses[budget]
        for line, of_line in losses.items():
            _draw_seeds(panel, line, scaling.widths, of_line)
            numbers.append(len(of_line))
            if panel is panels[-1]:
                _label_end(panel, line, scaling.widths, of_line)
        style.log_scale(panel, "x", base=_BASES["width"])
        style.log_scale(panel, "y")
        panel.set_title(title)
        panel.set_xlabel("width of two hidden layers")
    panels[0].set_ylabel("validation loss")
    kind = "bars: 95 % intervals (Student's t)"
    caption = (
        f"Means, {style.samples(numbers, 'seeds', kind)}. Each line at its best rate of equal "
        "operations, which is constant; time is steps times the time of a step."
    )
    style.save(figure, folder, name, caption)


def _label_end(panel: Axes, line: str, x: Sequence[float] | np.ndarray, y: np.ndarray) -> None:
    means = style.finite(y.mean(0), positive=True)
    known = np.flatnonzero(np.isfinite(means))
    if len(known):
        colour = _LOOKS.get(line, (style.GREY, ""))[0]
        style.end_label(panel, x[known[-1]], means[known[-1]], style.label(line), colour)
