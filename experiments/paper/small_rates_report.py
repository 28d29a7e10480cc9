"""The section of the report on `small_rates`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import style, tables
from experiments.paper.small_rates_predictions import (
    DENSE,
    LOW_RANK,
    NAME,
    PREDICTIONS,
    Paths,
    Prediction,
    checked,
    orders,
    read_paths,
    read_rates,
    steps_ratio,
)
from fwdgrad.measurement import Interval, mean_interval, significant
from fwdgrad.records import read_json

_SHOWN = (
    "line", "validation loss", "iterations to backprop's lowest loss, over backprop's", "‖θ − θ₀‖",
    "matrices' norms over those at the start", "‖∇L‖²", "largest eigenvalue of H", "tr H",
)  # fmt: skip
_PARTS = (0.25, 0.5, 1.0)  # of the length of a run


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the finding, the figure, and tables."""
    paths, about = read_paths(folder), read_json(folder / f"{NAME}.json")
    found = checked(paths)
    numbered = [
        (i, prediction.text, _range(prediction), interval, interval.n, verdict)
        for i, prediction, interval, verdict in found
    ]
    lines = list(paths["valid_loss"])
    length = paths["valid_loss"][lines[0]]["step"][0, -1]
    text = [
        "## Why faster at equal small rates? (not in the paper)",
        "",
        f"![Noise, norms and descent]({NAME}.png)",
        "",
        f"{about['title']}, {length:,} iterations at the rate {about['learning_rate']:g} with the "
        f"paper's decay. {_finding(found)} {_equivalent_rate(folder, paths, about)}".rstrip(),
        "",
        "The *advantage* of a line is log(backprop's final validation loss / its own), seed by "
        "seed; with norms held, over backprop with norms held. A prediction is *refuted* if the "
        "95 % interval over the seeds (Student's t) lies outside its range. Predictions and "
        "their reasons: `experiments/paper/small_rates.py`.",
        "",
        *tables.markdown(
            ("", "number", "predicted", "measured", "seeds", "verdict"), numbered
        ),
        "",
        f"At the end; L is the loss on {about['examples']} fixed minibatches of the training set, "
        "H its Hessian:",
        "",
        *tables.markdown(_SHOWN, [_row(paths, line) for line in lines]),
        "",
        *_orders(paths),
        *_lengths(paths),
    ]  # fmt: skip
    for line, seed in about["diverged"]:
        text += ["", f"{style.label(line)} diverged with seed {seed}, which is left out."]
    return "\n".join(text).rstrip()


def _range(prediction: Prediction) -> str:
    if math.isinf(prediction.high):
        return f"at least {prediction.low:g}"
    if math.isinf(prediction.low):
        return f"at most {prediction.high:g}"
    return f"{prediction.low:g} to {prediction.high:g}"


def _finding(found: Sequence[tuple[int, Prediction, Interval, str]]) -> str:
    """State what was found, from the verdicts alone."""
    verdicts = [verdict for *_, verdict in found]
    if verdicts.count("as predicted") == len(PREDICTIONS):
        state = "holds in all its predictions"
    else:
        state = "is refuted in a part" if "refuted" in verdicts else "is not decided by these runs"
    sentences = [
        "The hypothesis, that the noise of the forward gradient lengthens the weights, and with "
        f"them the gradient, so that it acts as a larger learning rate, {state}."
    ]
    for i, prediction, interval, verdict in found:
        if verdict == "not decided":
            sentences.append(f"({i}) Not decided: {prediction.text}, {interval}.")
        else:
            text = prediction.holds if verdict == "as predicted" else prediction.fails
            sentences.append(f"({i}) {text.format(interval)}")
    return " ".join(sentences)


def _equivalent_rate(folder: Path, paths: Paths, about: Mapping[str, Any]) -> str:
    """Return the sentence on the rate at which backprop ends where the forward gradient does."""
    tried = read_rates(folder).get("backprop", {})
    losses = {rate: x.mean() for rate, x in tried.items() if np.isfinite(x).all()}
    if not losses or DENSE not in paths["valid_loss"]:
        return ""
    target = float(paths["valid_loss"][DENSE]["value"][:, -1].mean())
    rates = sorted(losses)
    above = next((rate for rate in rates if losses[rate] <= target), None)
    below = [rate for rate in rates if above is not None and rate < above]
    if above is None or not below:
        return ""
    ends = [below[-1], above]
    of_ends = [math.log(losses[rate]) for rate in ends]
    share = (of_ends[0] - math.log(target)) / (of_ends[0] - of_ends[1])
    rate = ends[0] * (ends[1] / ends[0]) ** share
    best = min(rates, key=lambda x: losses[x])
    times = significant(rate / about["learning_rate"])
    return (
        f"Backprop ends at the forward gradient's loss at {times} times this rate (interpolated), "
        f"and is at its best, of the rates that were tried, at {best:g}, where its loss is "
        f"{significant(losses[best])} against {significant(target)} "
        f"(means, n = {min(map(len, tried.values()))})."
    )


def _row(paths: Paths, line: str) -> list[Any]:
    def last(quantity: str) -> Interval:
        return mean_interval(paths[quantity][line]["value"][:, -1])

    norms = [
        mean_interval(x["value"][:, -1] / style.finite(x["value"][:, 0], positive=True))
        for name, lines in paths.items()
        if name.startswith("norm_") and (x := lines[line])
    ]
    ratio = "1" if line == "backprop" else "–"
    if line != "backprop" and "backprop" in paths["valid_loss"]:
        ratio = str(steps_ratio(paths, line, "backprop"))
    return [
        style.label(line), last("valid_loss"), ratio, last("distance"),
        ", ".join(significant(x.value) for x in norms),
        *(last(name) for name in ("squared_gradient", "sharpness", "trace")),
    ]  # fmt: skip


def _orders(paths: Paths) -> list[str]:
    """Return a table of the change of the loss by theory, of all lines that follow the gradient."""
    rows = []
    for line in (x for x in paths["loss"] if x != "noise"):
        change, first, second = orders(paths, line)
        rest = change - first - np.nan_to_num(second)
        known = "–" if np.isnan(second).any() else mean_interval(second)
        rows.append((style.label(line), mean_interval(change), mean_interval(first), known,
                     mean_interval(rest)))  # fmt: skip
    heading = ("line", "change of L", "sum of −η‖∇L‖²", "sum of η²/2 E[gᵀHg]", "rest")
    below = (
        "The rest is of higher orders, of the kinks of ReLU, where there is no H, and of the one "
        "path of the noise; with norms held or grown also the change of L by scaling what has been "
        "learned."
    )
    return [*tables.markdown(heading, rows), "", below, ""]


def _lengths(paths: Paths) -> list[str]:
    """Return a table of T_f/T_b in iterations for shorter runs, the starts of the long ones."""
    lines = [line for line in (DENSE, LOW_RANK) if line in paths["valid_loss"]]
    if "backprop" not in paths["valid_loss"] or not lines:
        return []
    length = paths["valid_loss"]["backprop"]["step"][0, -1]
    rows = [
        (style.label(line), *(steps_ratio(paths, line, "backprop", part) for part in _PARTS))
        for line in lines
    ]
    heading = ("T_f/T_b in iterations, of runs of", *(f"{length * part:,.0f}" for part in _PARTS))
    return tables.markdown(heading, rows)
