"""The figures of the learning curves: losses and errors against iterations and time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiments.common import style
from experiments.common.curves import Curve, mean_over_seeds, paired, plot, time_to
from experiments.common.end_labels import BEHIND
from experiments.common.paper_facts import FACTS, Fact

_FIRST = "mlp_2e-4"
_LINE = 11  # points from one line of text to the next
_ROOM = 0.6  # of a panel's width, for a line of text
_SHORT = {
    "backprop": "backprop",
    "forward-normal": "forward gradient,\ndense normal",
    "forward-low_rank": "forward gradient,\nlow-rank",
}


def draw_figures(
    panels: Mapping[str, Mapping[str, Curve]], information: Mapping[str, Any], folder: Path,
    name: str,
) -> None:  # fmt: skip
    """Draw the model of the paper's main claim in the figure `name`, the others in `name`_models.

    Args:
      panels: panel -> estimator -> curve.
      information: the experiment's record: `titles`, `shortened` and `changed` of each panel.
      folder: where the files go.
      name: of the first figure.
    """
    shortened = information["shortened"]
    titles = {
        panel: f"{title} ({shortened[panel]} iterations)" if panel in shortened else title
        for panel, title in information["titles"].items()
    }
    comparable = {x for x in panels if x not in shortened and not information["changed"][x]}
    first, *others = in_two_figures(panels)
    _draw({first: panels[first]}, titles, comparable, 3.4, folder, name)
    if others:
        at_chance = [titles[panel] for panel in panels if panel not in (first, *others)]
        left_out = "".join(f" At chance, not drawn: {title}." for title in at_chance)
        shown = {panel: panels[panel] for panel in others}
        _draw(shown, titles, comparable, 2.3, folder, f"{name}_models", left_out)


def in_two_figures(panels: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Return the panel of the first figure, and those of the second, in which something is learnt.

    A panel of which no line classifies one image in four is at chance, and not drawn.
    """
    first = _FIRST if _FIRST in panels else next(iter(panels))
    accuracies = {
        panel: max(line["valid_accuracy"][:, -1].mean() for line in lines.values())
        for panel, lines in panels.items()
    }
    return [first, *(x for x in panels if x != first and accuracies[x] >= 0.25)]


def _draw(
    panels: Mapping[str, Mapping[str, Curve]], titles: Mapping[str, str], comparable: set[str],
    height: float, folder: Path, name: str, remark: str = "",
) -> None:  # fmt: skip
    """Draw a row of three panels for each model: loss by iterations, loss and error by time."""
    size = (style.WIDTH, height * len(panels) + 0.4)
    figure, axes = plt.subplots(len(panels), 3, figsize=size, squeeze=False)
    for row, (panel, lines) in zip(axes, panels.items(), strict=True):
        _draw_row(row, panel, lines, panel in comparable)
        row[0].set_title(titles[panel])
    numbers = [len(line["step"]) for lines in panels.values() for line in lines.values()]
    if any(len(line["step"]) < len(lines["backprop"]["step"])
           for lines in panels.values() for line in lines.values()):  # fmt: skip
        remark = f" Where a run diverged, T is of the seeds that both lines have.{remark}"
    kind = "bands: 95 % intervals (Student's t) of the paired differences to backprop"
    caption = (
        f"Means, {style.samples(numbers, 'seeds', kind)}. Validation loss and error; dotted: "
        "training loss. Open diamonds: the paper's values at its last iteration. T (dots): time at "
        f"which the mean loss reaches the lowest of backprop's.{remark}"
    )
    style.save(figure, folder, name, caption)


def _draw_row(
    axes: np.ndarray, panel: str, lines: Mapping[str, Curve], is_comparable: bool
) -> None:
    by_step, by_time, errors = axes
    every = len(lines["backprop"]["step"])
    pairs = {name: paired(line, lines["backprop"]) for name, line in lines.items()}
    pairs = {name: pair for name, pair in pairs.items() if len(pair[0]["step"])}
    lines = {name: line for name, (line, _) in pairs.items()}
    for estimator, line in lines.items():
        steps, seconds, reference = line["step"][0], line["seconds"].mean(0), pairs[estimator][1]
        for axis, x in ((by_step, steps), (by_time, seconds)):
            plot(axis, x, line["valid_loss"], estimator, beside=reference["valid_loss"])
        # A seed with which a line diverged is missing: the mean is not beside that of all seeds.
        lost = "" if (n := len(line["step"])) == every else f"\n({n} of {every} seeds)"
        style.label_ends(by_step, [(_SHORT[estimator] + lost, style.colour(estimator))])
        wrong, beside = (100 * (1 - curve["valid_accuracy"]) for curve in (line, reference))
        plot(errors, seconds, wrong, estimator, beside=beside)
        if is_comparable:
            _mark_the_paper(axes, panel, estimator, float(steps[-1]), float(seconds[-1]))
    for estimator, line in lines.items():
        # The first row is the loss of one minibatch, the others means over many.
        trained = style.finite(line["train_loss"]).mean(0)[1:]
        by_step.plot(line["step"][0][1:], trained, color=style.colour(estimator), ls=":", lw=0.9)
    _mark_times(by_time, pairs, FACTS.get(f"{panel}.T_ratio") if is_comparable else None)
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(4))
    by_step.xaxis.set_major_formatter("{x:,.0f}")
    by_step.set(xlabel="iteration", ylabel="loss (nats)")
    by_time.set(xlabel="training time (s)", ylabel="validation loss (nats)")
    errors.set(xlabel="training time (s)", ylabel="validation error (%)")
    style.log_scale(errors)


def _mark_the_paper(
    axes: np.ndarray, panel: str, estimator: str, steps: float, seconds: float
) -> None:
    """Mark the paper's last loss and error of a dense forward gradient or of backprop."""
    of = {"backprop": "b", "forward-normal": "f"}.get(estimator)
    colour = style.colour(estimator)
    if loss := FACTS.get(f"{panel}.loss_{of}"):
        style.paper_mark(axes[0], steps, loss.low, loss.high, colour)
        style.paper_mark(axes[1], seconds, loss.low, loss.high, colour)
    if error := FACTS.get(f"{panel}.error_{of}"):
        style.paper_mark(axes[2], seconds, 100 * error.low, 100 * error.high, colour)


def _mark_times(
    axis: Axes, pairs: Mapping[str, tuple[Curve, Curve]], paper: Fact | None
) -> None:  # fmt: skip
    """Draw T of each estimator: a vertical line as in the paper, and its number.

    Args:
      axis: the panel of losses by time.
      pairs: estimator -> its curve and backprop's, of the seeds that both have.
      paper: the paper's ratio, if the runs have its settings.
    """
    texts, points = [], []
    for estimator, pair in pairs.items():
        mean, reference = (mean_over_seeds(curve) for curve in pair)
        target = float(reference["valid_loss"].min())
        time, own = time_to(target, mean), time_to(target, reference)
        texts.append((_time_text(estimator, time, own), style.colour(estimator)))
        points.append((time, target, style.colour(estimator)))
    axis.axhline(points[[*pairs].index("backprop")][1], color=style.GREY, lw=0.6)
    if paper is not None:
        texts.append((f"paper: $T_f/T_b$ = {paper.value}", style.GREY))
    low = axis.get_ylim()[0]
    for time, target, colour in points:
        if math.isfinite(time):
            axis.plot([time, time], [low, target], color=colour, lw=0.8, ls="--")
            axis.plot(time, target, "o", ms=4, color=colour)
    axis.set_ylim(low)
    _write_in_a_corner(axis, texts)


def _write_in_a_corner(axis: Axes, texts: Sequence[tuple[str, str]]) -> None:
    """Write lines of text at the upper right, or at the lower left if fewer lines pass there."""
    inches = axis.get_position().height * axis.figure.get_size_inches()[1]  # type: ignore
    height = _LINE * len(texts) / (72 * inches)
    passing = {"right": 0, "left": 0}
    for line in axis.lines[:]:
        ends = axis.transData.transform(np.asarray(line.get_xydata(), float))
        x, y = axis.transAxes.inverted().transform(ends).T
        if line.get_transform() == axis.transData:  # not the line across the panel
            passing["right"] += int(((x > 1 - _ROOM) & (y > 1 - height)).sum())
            passing["left"] += int(((x < _ROOM) & (y < height)).sum())
    is_left = passing["left"] < passing["right"]
    for i, (text, colour) in enumerate(texts):
        down = _LINE * (len(texts) - 1 - i) if is_left else -_LINE * i
        axis.annotate(
            text, (0.02, 0.02) if is_left else (1, 1), (0, down), xycoords="axes fraction",
            textcoords="offset points", ha="left" if is_left else "right",
            va="bottom" if is_left else "top", color=colour, fontsize=8, bbox=BEHIND,
        )  # fmt: skip


def _time_text(estimator: str, time: float, reference: float) -> str:
    if estimator == "backprop":
        return f"$T_b$ = {reference:.3g} s"
    if not math.isfinite(time):
        return "$T_f$ not reached"
    over = f", $T_f/T_b$ = {time / reference:.3g}" if reference > 0 else ""
    return f"$T_f$ = {time:.3g} s{over}"
