"""The style of every figure, at the size of a README.

A figure is at most `WIDTH` inches wide, which is 900 pixels at 96 to an inch, and has no text below
8 points. Lines are labelled at their ends, the paper's numbers are open diamonds, and the caption
below a figure states n and the kind of interval.
"""

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot is imported anywhere: no display is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator, NullFormatter

from experiments.common import end_labels
from experiments.common.end_labels import end_label as end_label
from experiments.common.end_labels import label_ends as label_ends
from experiments.common.vocabulary import label as label

WIDTH = 9.375
FEWEST = 3  # samples of an interval that is drawn
GREY = "#777777"
# Of Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = {
    "backprop": "#000000",
    "forward-normal": "#0072B2",
    "forward-rademacher": "#CC79A7",
    "forward-sphere": "#009E73",
    "forward-low_rank": "#D55E00",
    "backprop-checkpointed": "#56B4E9",
    "backprop-noise": "#882255",
    "backprop-grown": "#009E73",
    "noise": "#CC79A7",
}
MORE_COLOURS = ("#E69F00", "#56B4E9", "#882255", "#999933")  # of lines that have none, in turns

plt.rcParams.update(
    {
        "font.size": 8.5,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "axes.grid": True,
        "grid.linewidth": 0.3,
        "grid.alpha": 0.6,
        "lines.linewidth": 1.4,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 192,  # twice the pixels of a README
        "svg.hashsalt": "fwdgrad",
    }
)


def colour(estimator: str) -> str:
    """Return the colour of a line, which variants of it share; grey for other lines.

    >>> colour("backprop-cosine") == colour("backprop"), colour("mine") == GREY
    (True, True)
    """
    known = [name for name in COLOURS if estimator == name or estimator.startswith(f"{name}-")]
    return COLOURS[max(known, key=len)] if known else GREY


def dashes(estimator: str) -> str:
    """Return the style of a line: dashed for a variant of one that has a colour of its own."""
    return "-" if estimator in COLOURS else "--"


def finite(values: Any, *, positive: bool = False) -> np.ndarray:
    """Return an array with nan, which is not drawn, for each value that the axis cannot show.

    >>> finite([1, 0, np.inf], positive=True).tolist()
    [1.0, nan, nan]
    """
    array = np.asarray(values, float)
    return np.where(np.isfinite(array) & ((array > 0) | (not positive)), array, np.nan)


class _LogTicks(LogLocator):
    """Ticks at powers of ten; at 1, 2 and 5 times them where there are fewer than two decades."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        decades = math.log10(vmax / vmin) if 0 < vmin < vmax else 1.0
        leading = (1.0,) if decades >= 2 else (1.0, 2.0, 5.0) if decades > 0.6 else _FINE
        self.set_params(subs=leading)
        return super().tick_values(vmin, vmax)


_FINE = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)


class _LogLabels(Formatter):
    """Plain numbers; powers of ten on an axis that reaches further than they can be read."""

    def __call__(self, x: float, pos: Any = None) -> str:
        axis: Any = self.axis
        low, high = sorted(axis.get_view_interval())
        if low < 1e-4 or high > 1e7:
            return f"$10^{{{round(math.log10(x))}}}$" if x > 0 else ""
        return f"{x:,.10g}"


def log_scale(axes: Axes, which: str = "y", *, base: float = 10) -> None:
    """Make axes logarithmic once all is drawn; axes without a positive number stay linear.

    Args:
      axes: a panel.
      which: "x", "y" or "xy".
      base: of the ticks.
    """
    for name in which:
        shared = getattr(axes, f"get_shared_{name}_axes")().get_siblings(axes)
        low = min(getattr(panel.dataLim, f"minpos{name}") for panel in shared)
        if not np.isfinite(low):
            continue
        if low >= max(getattr(panel.dataLim, f"{name}max") for panel in shared):
            set_limits(axes, name, low / 2, low * 2)  # one number alone
        getattr(axes, f"set_{name}scale")("log", base=base)
        axis = getattr(axes, f"{name}axis")
        most = 6 if name == "x" and base == 10 else 8
        few: Any = _LogTicks(numticks=most) if base == 10 else LogLocator(base, numticks=most)
        axis.set_major_locator(few)
        axis.set_major_formatter(_LogLabels())
        axis.set_minor_formatter(NullFormatter())


def set_limits(axes: Axes, which: str, low: float, high: float) -> None:
    """Set the limits of the axis "x" or "y", unless they are no interval of its scale."""
    is_log = getattr(axes, f"get_{which}scale")() == "log"
    if np.isfinite([low, high]).all() and low < high and (low > 0 or not is_log):
        getattr(axes, f"set_{which}lim")(low, high)


def band(axes: Axes, x: Any, low: Any, high: Any, n: Any, colour: str) -> None:
    """Shade intervals between `low` and `high`; none of fewer than `FEWEST` samples.

    Args:
      axes: a panel.
      x, low, high: arrays of one length.
      n: the number of samples, of all or of each.
      colour: of the line that the band is of.
    """
    shown = np.isfinite([x, low, high]).all(0) & (np.asarray(n) >= FEWEST)
    if shown.any():
        axes.fill_between(x, low, high, where=shown, color=colour, alpha=0.18, lw=0)


def bars(axes: Axes, x: Any, y: Any, ends: Any, n: Any, *, on: str = "y", **options: Any) -> None:
    """Draw points with their intervals; no interval of fewer than `FEWEST` samples.

    Args:
      axes: a panel.
      x, y: coordinates.
      ends: the lower and the upper ends of the intervals, along the axis `on`.
      n: the number of samples, of all or of each.
      on: "x" or "y".
      options: of `Axes.errorbar`.
    """
    middle = np.asarray(y if on == "y" else x, float)
    lengths = np.abs(np.asarray(ends, float) - middle)
    known = np.isfinite(lengths) & (np.asarray(n) >= FEWEST)
    error = {f"{on}err": np.where(known, lengths, 0)} if known.any() else {}
    axes.errorbar(x, y, **{"ls": "", "marker": "o", "ms": 4, "elinewidth": 1, **error, **options})


def paper_mark(axes: Axes, x: float, low: float, high: float, colour: str, text: str = "") -> None:
    """Mark a number of the paper, or its range, by an open diamond, and a text beside it."""
    middle = (low * high) ** 0.5 if axes.get_yscale() == "log" else (low + high) / 2
    if low < high:
        axes.plot([x, x], [low, high], color=colour, lw=1, zorder=5)
    axes.plot(x, middle, "D", color=colour, mfc="white", mew=1.2, ms=5.5, zorder=6, clip_on=False)
    if text:
        end_label(axes, x, middle, text, colour)


def samples(numbers: Iterable[int], unit: str, interval: str) -> str:
    """Return the part of a caption that states n and the kind of interval.

    >>> samples([5, 5], "seeds", "bands: 95 % intervals"), samples([1], "seeds", "bands")
    ('n = 5 seeds; bands: 95 % intervals', 'n = 1 seeds; no interval below n = 3')
    """
    low, high = min(numbers := [*numbers]), max(numbers)
    said = f"n = {low} {unit}" if low == high else f"n = {low} to {high} {unit}"
    none = f"no interval below n = {FEWEST}"
    if high < FEWEST:
        return f"{said}; {none}"
    return f"{said}; {interval}" if low >= FEWEST else f"{said}; {interval}, {none}"


def save(figure: Figure, folder: Path, stem: str, caption: str) -> None:
    """Write `stem`.png and `stem`.svg, the same bytes for the same figure, and close it.

    Args:
      figure: the figure, laid out here.
      folder: where the files go.
      stem: their name.
      caption: written below the figure: n, the kind of interval, and the meaning of marks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(textwrap.wrap(caption, int(15.5 * figure.get_figwidth())))
    figure.supxlabel(text, x=0.004, ha="left", fontsize=8, color="#444444")
    for axes in figure.axes:
        end_labels.bring_inside(axes)
    figure.draw_without_rendering()  # lays it out, once for both files
    figure.set_layout_engine("none")
    for axes in figure.axes:
        end_labels.move_apart(axes)
    figure.savefig(folder / f"{stem}.png", metadata={"Software": None})
    figure.savefig(folder / f"{stem}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
