"""The figure of `step_cost`: R, memory and compilation of each program, with the paper's R."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from experiments.common import style
from experiments.common.costs import LOSS
from experiments.common.end_labels import BEHIND
from experiments.common.paper_facts import FACTS
from fwdgrad.measurement import Interval

# Quantity -> its unit, and the label of the axis.
_COLUMNS = {
    "relative_cost": (1, "R: time over the loss alone"),
    "total_bytes": (2**20, "parameters, gradients,\ntemporaries (MiB)"),
    "compile_seconds": (1, "compilation (s)"),
}
_BESIDE = 1.6  # a mark of the paper so many times a number is where the number's text would be
_SHIFT = 0.17  # of the dots of two minibatches, up and down
Quantities = Mapping[str, Mapping[str, Interval]]  # line -> quantity -> interval


def draw_step_cost(
    about: Mapping[str, Mapping[str, Any]], found: Mapping[str, Quantities], folder: Path, name: str
) -> None:
    """Draw a row of panels for each model, with filled dots for its first minibatch.

    Args:
      about: panel -> its `title`, "model, minibatch size", and the model of the `paper`'s numbers
        or None.
      found: panel -> the costs of each line.
      folder: where the files go.
      name: of the figure.
    """
    models: dict[str, list[str]] = {}
    for panel in found:
        models.setdefault(about[panel]["title"].partition(", minibatch")[0], []).append(panel)
    lines = {
        model: list(dict.fromkeys(x for p in panels for x in found[p] if x != LOSS))
        for model, panels in models.items()
    }
    heights = [len(of_model) for of_model in lines.values()]
    figure, axes = plt.subplots(
        len(models), 3, figsize=(style.WIDTH, 1.1 + 0.27 * sum(heights) + 0.3 * len(models)),
        squeeze=False, sharey="row", height_ratios=heights,
    )  # fmt: skip
    for row, (model, panels) in zip(axes, models.items(), strict=True):
        row[0].set_title(model)
        for axis, quantity in zip(row, _COLUMNS, strict=True):
            for i, panel in enumerate(panels):
                _draw_dots(axis, lines[model], found[panel], quantity, i, _of_paper(about[panel]))
            axis.set_ylim(len(lines[model]) - 0.5, -0.5)
            axis.grid(axis="y", visible=False)
            style.log_scale(axis, "x")
            axis.margins(x=0.12)
        row[0].axvline(1, color=style.GREY, lw=0.8)
        row[0].set_yticks(range(len(lines[model])), [style.label(x) for x in lines[model]])
        _mark_the_paper(row[0], lines[model], [_of_paper(about[panel]) for panel in panels])
    for axis, (_, label) in zip(axes[-1], _COLUMNS.values(), strict=True):
        axis.set_xlabel(label)
    numbers = [q["seconds"].n for of_panel in found.values() for q in of_panel.values()]
    kind = "bars: 95 % intervals of R (Student's t of the logarithms)"
    sizes = list(dict.fromkeys(about[p]["title"].partition(", ")[2] for p in found))
    style.save(
        figure, folder, name,
        f"Geometric means, {style.samples(numbers, 'fresh processes', kind)}. Filled dots: "
        f"{sizes[0]}{''.join(f'; open dots: {size}' for size in sizes[1:])}; numbers are of the "
        "filled ones. Open diamonds: the paper's R, on a GPU. Memory by XLA's account; compilation "
        "is timed once in each process.",
    )  # fmt: skip


def _draw_dots(
    axis: Axes, lines: Sequence[str], costs: Quantities, quantity: str, which: int,
    paper: Mapping[str, float],
) -> None:  # fmt: skip
    unit = _COLUMNS[quantity][0]
    for height, line in enumerate(lines):
        if line not in costs:
            continue
        value, low, high = (float(x) / unit for x in style.finite(costs[line][quantity][:3]))
        # All dense tangents have one colour: each line has its name beside it.
        of_line = "forward-normal" if line == "forward-rademacher" else line
        y, colour = height - _SHIFT + 2 * _SHIFT * which, style.colour(of_line)
        style.bars(
            axis, [value], [y], [[low], [high]], costs[line]["seconds"].n, on="x", color=colour,
            mfc="white" if which else colour,
        )  # fmt: skip
        if not which:
            end = high if high > value else value  # nan is not
            mark = paper.get(line, 0.0) if quantity == "relative_cost" else 0.0
            if value < mark < _BESIDE * end:  # the number is left of the dot, away from the mark
                axis.annotate(
                    f"{value:.3g}", (low if low < value else value, y), (-6, 0), ha="right",
                    va="center", textcoords="offset points", color=colour, fontsize=8, bbox=BEHIND,
                )  # fmt: skip
            else:
                style.end_label(axis, end, y, f"{value:.3g}", colour)


def _of_paper(about: Mapping[str, Any]) -> dict[str, float]:
    """Return line -> the paper's R, of the lines of which it has one."""
    keys = {"backprop": "R_b", "forward-normal": "R_f"}
    facts = {line: FACTS.get(f"{about['paper']}.{key}") for line, key in keys.items()}
    return {line: (fact.low * fact.high) ** 0.5 for line, fact in facts.items() if fact}


def _mark_the_paper(
    axis: Axes, lines: Sequence[str], papers: Sequence[Mapping[str, float]]
) -> None:  # fmt: skip
    for which, paper in enumerate(papers):
        for line, value in paper.items():
            if line in lines:
                y = lines.index(line) - _SHIFT + 2 * _SHIFT * which
                style.paper_mark(axis, value, y, y, style.colour(line))
