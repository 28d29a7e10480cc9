"""Figure and section of `perturbed_weights`: the law beside the errors that were measured."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.common import style, tables
from experiments.quality.perturbed_weights_law import BASE, CONTROL, AtErrors, Measured
from fwdgrad.measurement import (
    Interval,
    geometric_mean_interval,
    mean_interval,
    significant,
)

_LOOKS = {
    BASE: ("#000000", "o"),
    CONTROL: (style.GREY, "o"),
    "weights-low_rank": ("#D55E00", "s"),
    "weights-low_rank-16": ("#CC79A7", "^"),
    "weights-normal": ("#0072B2", "x"),
    "weights-low_rank-momentum": ("#009E73", "v"),
}
_OF_LAW = ("#D55E00", "#CC79A7", "#0072B2")  # for each K, of the line with low-rank tangents
_SHORT = {
    "weights-low_rank": "low-rank, K = 1",
    "weights-low_rank-16": "low-rank, K = 16",
    "weights-normal": "dense normal, K = 1",
    "weights-low_rank-momentum": "low-rank, K = 1, momentum",
}
_SHOWN = (
    "line", "steps", "test error (%)", "validation error (%)", "best rate",
    "steps / the law's", "sum of rates / backprop's", "M tr H / backprop's",
)  # fmt: skip
_LAW = """\
To second order of the loss, at the best rates, a step with K normal tangents has 1/S_K of the
decrease of a step of backprop, S_K = 1 + 1/K + M tr H/(K Q), with M the mean ‖g‖² and Q the mean
gᵀHg of gradients g on minibatches.""".replace("\n", " ")


def _numbers(measured: Measured) -> list[int]:
    return sorted({*measured.num_tangents.values()})


def _laws(measured: Measured) -> dict[int, AtErrors]:
    """Return K -> the law's steps; none without the paths of backprop."""
    return {k: measured.law(k) for k in _numbers(measured)} if measured.lengths else {}


def draw_perturbed_weights(measured: Measured, folder: Path, name: str) -> None:
    """Draw S_K along backprop's longest run, and test errors against steps."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(style.WIDTH, 3.9), width_ratios=(1, 1.7), layout="constrained"
    )
    _draw_slowdowns(left, measured)
    _draw_errors(right, measured)
    numbers = [len(runs) for of_line in measured.runs.values() for runs in of_line.values()]
    kind = "bars: 95 % intervals (Student's t)"
    caption = (
        f"Means, {style.samples(numbers, 'seeds', kind)}. Each point is a training of its own, at "
        "its best rate. Dashed: backprop's points, moved by the law to the steps that K tangents "
        "need; S_K is left out where Q is not positive with every seed. Dotted: the control. "
        "Diamond: published for another network; its steps are not compared."
    )
    style.save(figure, folder, name, caption)


def _draw_slowdowns(panel: Axes, measured: Measured) -> None:
    if measured.lengths:
        longest = measured.lengths[-1]
        for k, colour in zip(_numbers(measured), _OF_LAW, strict=False):
            steps, values = measured.slowdowns(longest, k)
            found = [geometric_mean_interval(x) for x in values.T[steps > 0]]
            _points(panel, steps[steps > 0], found, color=colour)
            _label(panel, steps[-1:], found[-1:], f"K = {k}", colour)
        panel.set_title(f"along backprop's {longest:,} steps")
    style.log_scale(panel, "xy")
    panel.set(xlabel="step", ylabel="steps that are worth one of backprop, $S_K$")


def _draw_errors(panel: Axes, measured: Measured) -> None:
    for line, runs in measured.runs.items():
        steps = np.array(sorted(runs), float)
        found = [mean_interval(measured.errors(line, int(n))) for n in steps]
        colour, marker = _LOOKS.get(line, (style.GREY, "o"))
        _points(panel, steps, found, color=colour, marker=marker)
        _label(panel, steps, found, _SHORT.get(line, style.label(line)), colour)
    for (k, law), colour in zip(_laws(measured).items(), _OF_LAW, strict=False):
        found = [geometric_mean_interval(x) for x in law.values.T]
        steps = style.finite([x.value for x in found], positive=True)
        errors = style.finite(law.errors.mean(0), positive=True)
        panel.plot(steps, errors, color=colour, ls="--", lw=1)
        style.end_label(panel, steps[-1], errors[-1], f"law, K = {k}", colour)
    if CONTROL in measured.runs and (error := measured.last(CONTROL)[1].mean()) > 0:
        panel.axhline(error, color=style.GREY, ls=":", lw=1)
    published = measured.about["published_error"]
    style.paper_mark(panel, 2 * panel.dataLim.x1, published, published, "#000000", "published")
    style.log_scale(panel, "xy")
    panel.set(xlabel="steps", ylabel="test error (%)", title="errors, and those of the law")


def _points(panel: Axes, x: np.ndarray, found: list[Interval], **look: Any) -> None:
    columns = np.array(found).T
    values, ends = (style.finite(y, positive=True) for y in (columns[0], columns[1:3]))
    style.bars(panel, x, values, ends, columns[3], ls="-", lw=0.8, **look)


def _label(panel: Axes, x: np.ndarray, found: list[Interval], text: str, colour: str) -> None:
    if found[-1].value > 0:
        style.end_label(panel, x[-1], found[-1].value, text, colour)


def section(measured: Measured, name: str) -> str:
    """Return the section in Markdown: at most six sentences, and a table."""
    about, rule = measured.about, measured.about["tuning"]
    seeds = max(len(runs) for of_line in measured.runs.values() for runs in of_line.values())
    said = [
        f"Each line tries {rule['num_rates']} rates at full length, falling along half a cosine, "
        f"with {len(rule['seeds'])} seed and takes the one of the least validation error; then "
        f"n = {seeds} other seeds read the test images once (means, with 95 % intervals over "
        "seeds, Student's t).",
        *_on_the_law(measured),
        *_on_errors(measured),
    ]  # fmt: skip
    failed = [f"{style.label(line)} with {n:,} steps" for line, n in about["failed"]]
    return "\n".join([
        "## Perturbed weights: the steps that few directional derivatives need (not in the paper)",
        "", f"![The law, and test errors against steps]({name}.png)", "", " ".join(said), "",
        *tables.markdown(_SHOWN, _rows(measured)),
        *(["", f"No rate works for {', '.join(failed)}."] if failed else []),
    ])  # fmt: skip


def _on_the_law(measured: Measured) -> Iterator[str]:
    """Yield sentences: the law, S_K along the longest path, and the steps to two errors."""
    laws = _laws(measured)
    if not laws:
        return
    longest, ranges = measured.lengths[-1], []
    for k in laws:
        _, values = measured.slowdowns(longest, k)
        means = [geometric_mean_interval(x) for x in values.T]
        known = [x for x in means if np.isfinite(x.value)]
        if known:
            ends = (str(f(known, key=lambda x: x.value)) for f in (min, max))
            ranges.append(f"S_{k} is {' to '.join(dict.fromkeys(ends))}")
    yield f"{_LAW} Along backprop's {longest:,} steps {'; '.join(ranges) or 'it is not known'}."
    published = float(measured.about["published_error"])
    targets = {f"the published {published:g} %": published}
    if CONTROL in measured.runs:
        num_steps, errors = measured.last(CONTROL)
        error = float(errors.mean())
        targets[f"the control's {significant(error)} % (after {num_steps:,} steps)"] = error
    reached = []
    for target, error in targets.items():
        steps = [f"{_reached(law, error)} with K = {k}" for k, law in laws.items()]
        reached.append(f"to {target}, {' and '.join(steps)}")
    yield f"The law predicts these numbers of steps: {'; '.join(reached)}."


def _reached(law: AtErrors, error: float) -> str:
    found = law.at(np.full(len(law.values), error))
    if np.isfinite(found).all():
        return str(geometric_mean_interval(found))
    return "not reached by backprop's runs"


def _on_errors(measured: Measured) -> Iterator[str]:
    """Yield sentences: the best line of perturbed weights, and its steps over the law's."""
    every = [(line, n) for line in measured.num_tangents for n in measured.runs[line]]
    if every:
        line, num_steps = min(every, key=lambda x: measured.errors(*x).mean())
        best = (
            f"The least test error with perturbed weights is "
            f"{mean_interval(measured.errors(line, num_steps))} % "
            f"({style.label(line)}, {num_steps:,} steps)"
        )
        if CONTROL in measured.runs:
            best += f"; the control has {mean_interval(measured.last(CONTROL)[1])} %"
        yield f"{best}."
    ratios = [[x.value for x in _ratios(measured, *run)] for run in every]
    known = [_range(values) for values in zip(*ratios, strict=True)]
    if known and all(known):
        yield (
            f"At equal errors they make {known[0]} times the law's steps; their sums of rates are "
            f"{known[1]} times backprop's, and M tr H, which the law takes from backprop's path, "
            f"is {known[2]} times backprop's at their ends."
        )


def _range(values: Iterable[float]) -> str:
    known = [x for x in values if math.isfinite(x)]
    ends = (significant(end(known)) for end in (min, max)) if known else ()
    return " to ".join(dict.fromkeys(ends))


def _ratios(measured: Measured, line: str, num_steps: int) -> list[Interval]:
    """Return a line's steps over the law's, sum of rates and M tr H over backprop's.

    These are at equal errors; nan where backprop has none such.
    """
    if line not in measured.num_tangents or not measured.lengths:
        return [Interval(math.nan, math.nan, math.nan, 0)] * 3
    errors = measured.errors(line, num_steps)
    rates = measured.runs[line][num_steps]["learning_rate"].to_numpy()
    momentum = measured.about["momentum"].get(line, 0.0)
    pairs = (
        (num_steps, measured.law(measured.num_tangents[line])),
        (num_steps * rates / (1 - momentum), measured.sums_of_rates()),
        (measured.noise(line, num_steps), measured.noises()),
    )
    return [geometric_mean_interval(value / of_base.at(errors)) for value, of_base in pairs]


def _rows(measured: Measured) -> Iterator[list[object]]:
    for line, of_line in measured.runs.items():
        for num_steps, runs in of_line.items():
            test, valid = (
                mean_interval(100 * (1 - runs[f"{name}_accuracy"].to_numpy()))
                for name in ("test", "valid")
            )
            yield [
                style.label(line), f"{num_steps:,}", test, valid,
                significant(runs["learning_rate"].iloc[0]),
                *map(_known, _ratios(measured, line, num_steps)),
            ]  # fmt: skip


def _known(interval: Interval) -> str:
    return "–" if math.isnan(interval.value) else str(interval)
