"""Labels at the ends of lines, moved apart where they would lie upon each other."""

import itertools
from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import IdentityTransform

BEHIND = {"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5}  # the box behind a text


class EndLabel(Annotation):
    """A label beside the end of a line; `style.save` moves those of a panel apart."""


def end_label(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Write a label to the right of a point, in the colour of its line."""
    if np.isfinite([x, y]).all():
        options: Any = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
        options |= {"transform": IdentityTransform(), "clip_on": False}  # as `Axes.annotate` has it
        axes.add_artist(
            EndLabel(text, (x, y), (6, 0), color=colour, fontsize=8, bbox=BEHIND, **options)
        )


def label_ends(axes: Axes, names: Iterable[tuple[str, str]]) -> None:
    """Label the last lines of a panel, as many as there are names, at their last points.

    Args:
      axes: a panel.
      names: the text and the colour of each line.
    """
    names = list(names)
    for line, (text, of_line) in zip(axes.lines[-len(names) :], names, strict=True):
        points = np.asarray(line.get_xydata(), float)
        drawn = points[np.isfinite(points).all(1)]
        if len(drawn):
            end_label(axes, drawn[-1, 0], drawn[-1, 1], text, of_line)


def bring_inside(axes: Axes) -> None:
    """Move the labels of points beyond the limits of a panel to its edge, before it is laid out."""
    low, high = sorted(axes.get_ylim())  # sets the limits, on which the room for labels depends
    for text in _end_labels(axes):
        text.xy = (text.xy[0], min(max(text.xy[1], low), high))


def move_apart(axes: Axes) -> None:
    """Move labels that overlap up and down, by as little as possible, but not out of the panel."""
    bottom, top = axes.bbox.y0, axes.bbox.y1
    for column in _columns(_end_labels(axes)):
        column.sort(key=lambda x: x.get_window_extent().y0)
        boxes = [x.get_window_extent() for x in column]
        middles, heights = [(b.y0 + b.y1) / 2 for b in boxes], [b.height for b in boxes]
        spread = _spread(middles, heights, bottom, top)
        for text, box, y in zip(column, boxes, spread, strict=True):
            x, old = text.xyann
            text.xyann = (x, old + (y - (box.y0 + box.y1) / 2) * 72 / plt.rcParams["figure.dpi"])


def _end_labels(axes: Axes) -> list[EndLabel]:
    return [text for text in axes.texts if isinstance(text, EndLabel)]


def _columns(labels: list[EndLabel]) -> list[list[EndLabel]]:
    """Group labels whose boxes share some abscissas."""
    columns: list[tuple[float, list[EndLabel]]] = []  # right end of the column, its labels
    for text in sorted(labels, key=lambda x: x.get_window_extent().x0):
        box = text.get_window_extent()
        if columns and box.x0 < columns[-1][0]:
            right, column = columns.pop()
            columns.append((max(right, box.x1), [*column, text]))
        else:
            columns.append((box.x1, [text]))
    return [column for _, column in columns]


def _spread(middles: list[float], heights: list[float], bottom: float, top: float) -> list[float]:
    """Return the nearest middles, in least squares, at which rising intervals do not overlap.

    >>> _spread([0.0, 1.0, 20.0], [4.0, 4.0, 4.0], -10.0, 30.0)
    [-1.5, 2.5, 20.0]
    >>> _spread([0.0, 1.0, 20.0], [4.0, 4.0, 4.0], 0.0, 20.0)
    [2.0, 6.0, 18.0]
    """
    offsets = np.cumsum([0.0, *((a + b) / 2 for a, b in itertools.pairwise(heights))])
    pools: list[list[float]] = []  # isotonic regression by pooling adjacent violators
    for value in np.array(middles) - offsets:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    levels = np.array([np.mean(pool) for pool in pools for _ in pool])
    least, most = bottom + heights[0] / 2, top - heights[-1] / 2 - offsets[-1]
    return (np.clip(levels, least, max(least, most)) + offsets).tolist()
