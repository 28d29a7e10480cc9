"""The paper's numbers, and the comparison of ours with them.

*Gradients without Backpropagation*, Baydin, Pearlmutter, Syme, Wood, Torr (2022). A number's mark
says how sure it is: F, read off the paper's own figure or caption; Q, quoted or used by several
independent replications; U, remembered, with no source found to confirm it.
"""

import math
from typing import Any, NamedTuple

from experiments.common.curves import Unreached
from fwdgrad.measurement import Interval

REPRODUCED, CONTRADICTED, UNCHECKED = "reproduced", "contradicted", "cannot be checked here"

# Numbers are read off plots, from runs on another machine: they agree if they are that close.
TOLERANCE = 0.1
# An interval that reaches further than this part of its value says too little to agree with one.
WIDEST = 0.25


class Fact(NamedTuple):
    """A number of the paper.

    Attributes:
      where: the figure and the panel.
      quantity: the name of the quantity.
      value: the number as the paper writes it.
      mark: F, Q or U.
      low, high: the number as a range; if one of them is infinite, the claim is one-sided,
        without a tolerance.
      below, above: reasons why ours may be lower, and higher.
      unchecked: the reason why the number cannot be checked here, if it cannot.
      tolerance: the relative error of reading the number off a plot.
    """

    where: str
    quantity: str
    value: str
    mark: str
    low: float = math.nan
    high: float = math.nan
    below: str = ""
    above: str = ""
    unchecked: str = ""
    tolerance: float = TOLERANCE


class Finding(NamedTuple):
    """The comparison of a fact with ours: the paper's estimator, and low-rank tangents."""

    key: str
    ours: str
    low_rank: str
    verdict: str
    why: str


_DENSE = (
    "on this CPU drawing a normal number for each parameter takes longer than the rest of the "
    "step, and a dense tangent has as many products as backprop"
)
_ENGINE = "a compiled step has none of the overhead of the paper's operator-overloading engine"
_SCALE = "it depends on how the pixels are scaled and the weights initialised, which it leaves open"
_ORDER = "the order of magnitude is read off a plot"
_RIGHT_SCALE = {"below": _SCALE, "above": _SCALE}
_ABSOLUTE = {"unchecked": "absolute times belong to the paper's machine"}
# The quantities of a panel: name, format, and reasons why ours may differ.
_OF_PANELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "R_f": ("R_f", "{:g}", {"above": _DENSE, "below": _ENGINE}),
    "R_b": ("R_b", "{:g}", {"below": _ENGINE}),
    "R_ratio": ("R_f/R_b", "{:g}", {"above": _DENSE}),
    "T_f": ("T_f", "{:g} s", _ABSOLUTE),
    "T_b": ("T_b", "{:g} s", _ABSOLUTE),
    "T_ratio": ("T_f/T_b", "{:g}", {"above": _DENSE}),
    "loss_f": ("final loss, forward", "about {:g}", _RIGHT_SCALE),
    "loss_b": ("final loss, backprop", "about {:g}", _RIGHT_SCALE),
    "loss_ratio": ("final loss, forward over backprop", "about {:.2g}", {}),
    "accuracy_f": ("final validation accuracy, forward", "about {:g}", _RIGHT_SCALE),
    "accuracy_b": ("final validation accuracy, backprop", "about {:g}", _RIGHT_SCALE),
}


def _panel(
    name: str, where: str, mark: str, tolerance: float = TOLERANCE, **numbers: float
) -> dict[str, Fact]:
    """Return the facts of a panel, from its quantities' keys to their numbers."""
    facts = {}
    for key, number in numbers.items():
        quantity, text, reasons = _OF_PANELS[key]
        fact = Fact(where, quantity, text.format(number), mark, number, number, **reasons)
        facts[f"{name}.{key}"] = fact._replace(tolerance=tolerance)
    return facts


def _depth(quantity: str, depth: int, low: float, high: float) -> dict[str, Fact]:
    """Return a fact of Figure 6."""
    text = f"about {low:g}" if low == high else f"{low:g}–{high:g}"
    name, _, reasons = _OF_PANELS[quantity]
    where = f"Figure 6, depth {depth}"
    return {f"depth.{quantity}.{depth}": Fact(where, name, text, "F", low, high, **reasons)}


def _row(name: str, where: str, start: float, low: float, high: float) -> dict[str, Fact]:
    """Return the facts of a row of Figure 2."""
    middle = f"near {(low * high) ** 0.5:.0e}"
    time = "forward over backprop time"
    drawn = (
        "a compiled step on two variables is a few operations, and drawing random numbers, normal "
        "or signs, costs more than they do"
    )
    return {
        f"{name}.start": Fact(where, "value at the start", f"{start:g}", "F", start, start),
        f"{name}.final": Fact(where, "final value", middle, "F", low, high, _ORDER, _ORDER),
        f"{name}.time": Fact(where, time, "0.75–0.9", "F", 0.75, 0.9, above=drawn),
    }


_MLP = "Replications, MLP"
FACTS: dict[str, Fact] = {
    **_row("beale", "Figure 2, Beale", 14.2, 1e-5, 1e-3),
    **_row("rosenbrock", "Figure 2, Rosenbrock", 104, 1e-6, 1e-4),
    **_panel(
        "logistic", "Figure 3", "F",
        T_f=197.326, T_b=356.756, T_ratio=0.553, loss_f=0.5, loss_b=0.5, loss_ratio=1,
    ),
    **_panel("logistic", "Figure 3", "U", R_f=2.435, R_b=4.389, R_ratio=0.555),
    **_panel(
        "mlp_2e-5", "Figure 4, η₀ = 2e-5", "F",
        R_f=2.329, R_b=3.971, R_ratio=0.586, T_f=165.842, T_b=292.359, T_ratio=0.567,
        accuracy_f=0.28, accuracy_b=0.28,
    ),
    # The plot is of 2.2 to 2.3, where it begins: there 10 % would be all of it.
    **_panel(
        "mlp_2e-5", "Figure 4, η₀ = 2e-5", "F", tolerance=0.02,
        loss_f=2.2, loss_b=2.2, loss_ratio=1,
    ),
    **_panel(
        "mlp_2e-4", "Figure 4, η₀ = 2e-4", "F",
        R_f=2.607, R_b=4.359, R_ratio=0.598, T_f=68.014, T_b=296.957, T_ratio=0.229,
        loss_f=0.52, loss_b=0.88, loss_ratio=0.52 / 0.88, accuracy_f=0.87, accuracy_b=0.83,
    ),
    **_panel("cnn", "Figure 5", "U", R_f=1.434, R_ratio=0.649, T_ratio=0.514),
    "cnn.R_b": Fact(
        "Figure 5", "R_b", "2.211", "U", 2.211, 2.211, _ENGINE,
        "on this CPU the loss alone is fused into fast kernels, which its backward pass is not",
    ),
    **_depth("R_f", 1, 2.5, 2.5),
    **_depth("R_f", 100, 4.2, 4.2),
    **_depth("R_b", 1, 4.5, 5),
    **_depth("R_b", 100, 4.5, 5),
    **_depth("R_ratio", 1, 0.56, 0.56),
    **_depth("R_ratio", 10, 0.61, 0.61),
    **_depth("R_ratio", 100, 0.85, 0.85),
    "depth.bytes.100": Fact(
        "Figure 6, depth 100", "memory, parameters included", "about 1.25e9 bytes", "F",
        1.25e9, 1.25e9, below="it is about three copies of the parameters, of which a compiled "
        "step that updates them in place needs fewer",
    ),
    "depth.memory.100": Fact(
        "Figure 6, depth 100", "memory, parameters included, forward over backprop", "1", "F",
        1, 1, above="a compiled step of backprop with SGD holds one layer's gradient at a time, "
        "where the paper's holds all; a dense tangent is held as a whole either way",
    ),
    "depth.checkpointed.100": Fact(
        "Replications, depth 100", "temporary memory, checkpointed backprop over forward",
        "at most about 1", "Q", -math.inf, 1 + TOLERANCE,
        above="a segment's gradients are held beside its activations",
    ),
    "replications.slower": Fact(
        _MLP, "R_f/R_b with a dense tangent", "above 1", "Q", 1, math.inf,
        below="a compiled step with a dense tangent is cheaper than with the replications' engines",
    ),
    "replications.backprop_wins": Fact(
        _MLP, "best rate of each: backprop's final loss over the forward gradient's", "below 1",
        "Q", -math.inf, 1,
    ),
    "replications.rates": Fact(
        _MLP, "best rate of each: backprop's over the forward gradient's", "200–1000", "Q",
        200, 1000, "it depends on the schedule, and on the grid of rates",
        "it depends on the schedule, and on the grid of rates",
    ),
    "replications.accuracy": Fact(
        _MLP, "best published test accuracy, perturbed weights", "0.909–0.914", "Q", 0.909, 0.914,
        unchecked="it is the best of others' settings; what ours reach, see the race of the MLP",
    ),
    "replications.backprop_accuracy": Fact(
        _MLP, "test accuracy of backprop beside that", "0.9759", "Q", 0.9759, 0.9759,
    ),
    "replications.mnist": Fact(
        _MLP, "best published test accuracy, perturbed activities and local losses", "0.9745",
        "Q", 0.9745, 0.9745,
        unchecked="it is the best of others' settings; what ours reach, see the race of the MLP",
    ),
    "replications.cifar": Fact(
        "CIFAR-10", "best published test accuracy: perturbed weights; activities",
        "0.44–0.47; 0.693", "Q", unchecked="CIFAR-10 is not among the data sets",
    ),
}  # fmt: skip


def compare(
    key: str, ours: Interval | Unreached, low_rank: Interval | Unreached | str = "", *,
    differs: str = "",
) -> Finding | None:  # fmt: skip
    """Return the finding for one fact, or None if the paper has no such number.

    A number of the paper holds within a tolerance, since it is read off a plot; a one-sided claim,
    such as "above 1", holds as it is. Our number, by the paper's estimator,

    - contradicts the paper's, if no part of our interval is within the tolerance;
    - reproduces it, if all of our interval is in the paper's range, or, unless the claim is
      one-sided, if our interval is narrow (at most `WIDEST` of the value to either side), and holds
      the number or has its middle within the tolerance;
    - else cannot be checked: there are too few runs.

    Args:
      key: of `FACTS`.
      ours: with dense normal tangents, or of backprop. An exact number is an interval of no width.
      low_rank: with low-rank tangents.
      differs: differences of our setting from the paper's on which the number depends.
    """
    if key not in FACTS:
        return None
    fact = FACTS[key]

    def finding(verdict: str, *why: str) -> Finding:
        return Finding(key, _text(ours), _text(low_rank), verdict, _sentence(*why))

    if differs or fact.unchecked:
        return finding(UNCHECKED, differs, fact.unchecked)
    if isinstance(ours, Unreached):
        if ours.reached or ours.n < 2:
            return finding(UNCHECKED, "not every seed reaches that loss, or there is but one")
        return finding(CONTRADICTED, "the estimate's noise keeps the loss above it")
    value, low, high, _ = ours
    if not math.isfinite(value):
        return finding(UNCHECKED, "a run has diverged")
    if math.isnan(low):
        return finding(UNCHECKED, "too few samples for an interval")
    of_a_side = math.isinf(fact.low) or math.isinf(fact.high)
    slack = 0 if of_a_side else fact.tolerance
    least, most = fact.low * (1 - slack), fact.high * (1 + slack)
    if high < least:
        return finding(CONTRADICTED, fact.below or "ours is lower")
    if low > most:
        return finding(CONTRADICTED, fact.above or "ours is higher")
    if fact.low <= low and high <= fact.high:
        return finding(REPRODUCED, "ours is all where it should be" if low < high else "it is that")
    if of_a_side:
        return finding(UNCHECKED, "our interval lies on both sides: too few runs")
    if max(high - value, value - low) > WIDEST * abs(value):
        return finding(UNCHECKED, "our interval is too wide: too few runs")
    if low <= fact.high and high >= fact.low:
        return finding(REPRODUCED, "our interval holds it")
    if least <= value <= most:
        return finding(REPRODUCED, f"within {slack:.0%} of ours")
    return finding(UNCHECKED, f"within {slack:.0%} of a part of our interval only: too few runs")


def _text(x: Interval | Unreached | str) -> str:
    return f"{x} (n = {x.n})" if isinstance(x, Interval) and x.low < x.high else str(x)


def not_found(key: str) -> Finding:
    """Return the finding of a fact that no experiment of a preset measures."""
    if reason := FACTS[key].unchecked:
        return Finding(key, "", "", UNCHECKED, _sentence(reason))
    return Finding(key, "", "", "not in this preset", "")


def _sentence(*parts: str) -> str:
    text = "; ".join(part for part in parts if part)
    return text[:1].upper() + text[1:] + "." if text else ""
