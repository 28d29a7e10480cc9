"""The style of every figure: a colour for each estimator, sizes for a two-column page."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot is imported anywhere: no display is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.common.vocabulary import label as label

# Of Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = {
    "backprop": "#000000",
    "forward-normal": "#0072B2",
    "forward-rademacher": "#CC79A7",
    "forward-sphere": "#009E73",
    "forward-low_rank": "#D55E00",
    "backprop-checkpointed": "#56B4E9",
}

plt.rcParams.update(
    {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "axes.grid": True,
        "grid.linewidth": 0.3,
        "grid.alpha": 0.6,
        "lines.linewidth": 1.2,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 200,
    }
)


def colour(estimator: str) -> str:
    """Return the colour of an estimator's label, or grey."""
    return COLOURS.get(estimator, "#777777")


def finite(values: Any, *, positive: bool = False) -> np.ndarray:
    """Return an array with nan, which is not drawn, for each value that the axis cannot show.

    >>> finite([1, 0, np.inf], positive=True).tolist()
    [1.0, nan, nan]
    """
    array = np.asarray(values, float)
    return np.where(np.isfinite(array) & ((array > 0) | (not positive)), array, np.nan)


def log_scale(axes: Axes, which: str = "y", **options: Any) -> None:
    """Make axes logarithmic once all is drawn; axes without a positive number stay linear.

    Args:
      axes: a panel.
      which: "x", "y" or "xy".
      options: of `set_xscale` and `set_yscale`.
    """
    for name in which:
        shared = getattr(axes, f"get_shared_{name}_axes")().get_siblings(axes)
        low = min(getattr(panel.dataLim, f"minpos{name}") for panel in shared)
        if not np.isfinite(low):
            continue
        if low >= max(getattr(panel.dataLim, f"{name}max") for panel in shared):
            set_limits(axes, name, low / 2, low * 2)  # one number alone
        getattr(axes, f"set_{name}scale")("log", **options)


def set_limits(axes: Axes, which: str, low: float, high: float) -> None:
    """Set the limits of the axis "x" or "y", unless they are no interval of its scale."""
    is_log = getattr(axes, f"get_{which}scale")() == "log"
    if np.isfinite([low, high]).all() and low < high and (low > 0 or not is_log):
        getattr(axes, f"set_{which}lim")(low, high)


def fit_lines(axis: Axes) -> None:
    """Set the height of an axis by its lines; the intervals of few seeds may reach out of it."""
    heights = np.concatenate([np.asarray(line.get_ydata()) for line in axis.lines])
    heights = finite(heights, positive=axis.get_yscale() == "log")
    heights = heights[np.isfinite(heights)]
    if len(heights) == 0 or heights.min() == heights.max():
        return
    low, high = axis.transData.transform([(1, heights.min()), (1, heights.max())])[:, 1]
    margin = 0.1 * (high - low)
    edges = axis.transData.inverted().transform([(0, low - margin), (0, high + margin)])
    axis.set_ylim(edges[0, 1], edges[1, 1])


def plain_numbers(axis: Axis, leading: tuple[float, ...]) -> None:
    """Label a logarithmic axis at the numbers with these leading digits alone."""
    if axis.get_scale() != "log":
        return
    axis.set_major_locator(LogLocator(subs=leading))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, folder: Path, stem: str) -> None:
    """Write `stem`.png and `stem`.pdf, the same bytes for the same figure, and close it."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()  # lays it out, once for both files
    figure.set_layout_engine("none")
    figure.savefig(folder / f"{stem}.png", metadata={"Software": None})
    figure.savefig(folder / f"{stem}.pdf", metadata={"CreationDate": None})
    plt.close(figure)
