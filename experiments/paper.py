"""What the paper says in numbers, and how a number of ours is held against one of them.

*Gradients without Backpropagation*, Baydin, Pearlmutter, Syme, Wood, Torr (2022). A number's mark
says how sure it is: F, read off the paper's own figure or caption; Q, quoted or used by several
independent replications; U, remembered, with no source found to confirm it.
"""

import math
from typing import NamedTuple

from fwdgrad.work import Interval

REPRODUCED, CONTRADICTED, UNCHECKED = "reproduced", "contradicted", "cannot be checked here"

# Numbers are read off plots, from runs on another machine: they agree if they are that close.
TOLERANCE = 0.1


class Fact(NamedTuple):
    """A number of the paper.

    Attributes:
      where: the figure and the panel.
      quantity: what it is.
      value: as the paper has it.
      mark: F, Q or U.
      low, high: the number as a range.
      contradicted: why ours may differ.
      unchecked: why it cannot be checked here, if it cannot.
    """

    where: str
    quantity: str
    value: str
    mark: str
    low: float = math.nan
    high: float = math.nan
    contradicted: str = ""
    unchecked: str = ""


class Finding(NamedTuple):
    """What was found of a fact: ours with the paper's estimator and with low-rank tangents."""

    key: str
    ours: str
    low_rank: str
    verdict: str
    why: str


_DENSE = (
    "with a dense tangent a step has three products where the loss has one, as backprop has, and "
    "draws a normal number for each parameter"
)
_ENGINE = "a compiled step has none of the overhead of the paper's operator-overloading engine"
_SCALE = "it depends on how the pixels are scaled and the weights initialised, which it leaves open"
_NOISE = "the estimate's noise keeps the loss above the lowest of backprop's"
_ORDER = "the order of magnitude is read off a plot"
_ABSOLUTE = {"unchecked": "absolute times belong to the paper's machine"}
# The quantities of a panel: what each is called, how it is written, and why ours may differ.
_OF_PANELS: dict[str, tuple[str, str, dict[str, str]]] = {
    "R_f": ("R_f", "{:g}", {"contradicted": _DENSE}),
    "R_b": ("R_b", "{:g}", {"contradicted": _ENGINE}),
    "R_ratio": ("R_f/R_b", "{:g}", {"contradicted": _DENSE}),
    "T_f": ("T_f", "{:g} s", _ABSOLUTE),
    "T_b": ("T_b", "{:g} s", _ABSOLUTE),
    "T_ratio": ("T_f/T_b", "{:g}", {"contradicted": _DENSE}),
    "loss_f": ("final loss, forward", "about {:g}", {"contradicted": _SCALE}),
    "loss_b": ("final loss, backprop", "about {:g}", {"contradicted": _SCALE}),
    "accuracy_f": ("final validation accuracy, forward", "about {:g}", {"contradicted": _SCALE}),
    "accuracy_b": ("final validation accuracy, backprop", "about {:g}", {"contradicted": _SCALE}),
}


def _panel(name: str, where: str, mark: str, **numbers: float) -> dict[str, Fact]:
    """The facts of a panel, from its quantities' keys to their numbers."""
    facts = {}
    for key, number in numbers.items():
        quantity, text, reasons = _OF_PANELS[key]
        facts[f"{name}.{key}"] = Fact(
            where, quantity, text.format(number), mark, number, number, **reasons
        )
    return facts


def _depth(quantity: str, depth: int, low: float, high: float, why: str) -> dict[str, Fact]:
    """A fact of Figure 6."""
    text = f"about {low:g}" if low == high else f"{low:g}–{high:g}"
    where = f"Figure 6, depth {depth}"
    name = _OF_PANELS[quantity][0]
    return {f"depth.{quantity}.{depth}": Fact(where, name, text, "F", low, high, why)}


def _row(name: str, where: str, low: float, high: float) -> dict[str, Fact]:
    """The facts of a row of Figure 2."""
    middle = f"near {(low * high) ** 0.5:.0e}"
    time = "forward over backprop time"
    return {
        f"{name}.final": Fact(where, "final value", middle, "F", low, high, _ORDER),
        f"{name}.time": Fact(where, time, "0.75–0.9", "F", 0.75, 0.9, _ENGINE),
    }


_MLP = "Replications, MLP"
FACTS: dict[str, Fact] = {
    **_row("beale", "Figure 2, Beale", 1e-5, 1e-3),
    **_row("rosenbrock", "Figure 2, Rosenbrock", 1e-6, 1e-4),
    **_panel(
        "logistic", "Figure 3", "F",
        T_f=197.326, T_b=356.756, T_ratio=0.553, loss_f=0.5, loss_b=0.5,
    ),
    **_panel("logistic", "Figure 3", "U", R_f=2.435, R_b=4.389, R_ratio=0.555),
    **_panel(
        "mlp_2e-5", "Figure 4, η₀ = 2e-5", "F",
        R_f=2.329, R_b=3.971, R_ratio=0.586, T_f=165.842, T_b=292.359, T_ratio=0.567,
        loss_f=2.2, loss_b=2.2, accuracy_f=0.28, accuracy_b=0.28,
    ),
    **_panel(
        "mlp_2e-4", "Figure 4, η₀ = 2e-4", "F",
        R_f=2.607, R_b=4.359, R_ratio=0.598, T_f=68.014, T_b=296.957, T_ratio=0.229,
        loss_f=0.52, loss_b=0.88, accuracy_f=0.87, accuracy_b=0.83,
    ),
    **_panel("cnn", "Figure 5", "U", R_f=1.434, R_b=2.211, R_ratio=0.649, T_ratio=0.514),
    **_depth("R_f", 1, 2.5, 2.5, _DENSE),
    **_depth("R_f", 100, 4.2, 4.2, _DENSE),
    **_depth("R_b", 1, 4.5, 5, _ENGINE),
    **_depth("R_b", 100, 4.5, 5, _ENGINE),
    **_depth("R_ratio", 1, 0.56, 0.56, _DENSE),
    **_depth("R_ratio", 10, 0.61, 0.61, _DENSE),
    **_depth("R_ratio", 100, 0.85, 0.85, _DENSE),
    "depth.bytes.100": Fact(
        "Figure 6, depth 100", "memory, parameters included", "about 1.25e9 bytes", "F",
        1.25e9, 1.25e9, "it is about three copies of the parameters, of which a compiled step "
        "that updates them in place needs fewer",
    ),
    "depth.memory.100": Fact(
        "Figure 6, depth 100", "memory, parameters included, forward over backprop", "1", "F",
        1, 1, "a compiled step of backprop with SGD holds one layer's gradient at a time, where "
        "the paper's holds all; a dense tangent is held as a whole either way",
    ),
    "depth.checkpointed.100": Fact(
        "Replications, depth 100", "temporary memory, checkpointed backprop over forward",
        "at most about 1", "Q", 0, 1, "a segment's gradients are held beside its activations",
    ),
    "replications.slower": Fact(
        _MLP, "R_f/R_b with a dense tangent", "above 1", "Q", 1 + TOLERANCE, math.inf,
        "a compiled step with a dense tangent is cheaper than with the replications' engines",
    ),
    "replications.backprop_wins": Fact(
        _MLP, "best rate of each: backprop's final loss over the forward gradient's", "below 1",
        "Q", 0, 1 - TOLERANCE, "the runs are too short for backprop's higher rate to pay",
    ),
    "replications.rates": Fact(
        _MLP, "best rate of each: backprop's over the forward gradient's", "200–1000", "Q",
        200, 1000, "it depends on the schedule, and on the grid of rates",
    ),
    "replications.accuracy": Fact(
        _MLP, "best published test accuracy, perturbed weights", "0.909–0.914", "Q", 0.909, 0.914,
        "another number of iterations, at another rate",
    ),
    "replications.mnist": Fact(
        _MLP, "best published test accuracy, perturbed activities and local losses", "0.9745",
        "Q", 0.9745, 0.9745, unchecked="no estimator here perturbs activities",
    ),
    "replications.cifar": Fact(
        "CIFAR-10", "best published test accuracy: perturbed weights; activities",
        "0.44–0.47; 0.693", "Q", unchecked="CIFAR-10 is not among the data sets",
    ),
}  # fmt: skip


def compare(
    key: str, ours: Interval | str, low_rank: Interval | str = "", *, shortened: str = ""
) -> Finding | None:
    """The finding for one fact, or None if the paper has no such number.

    It is reproduced if the interval of the paper's estimator, widened by `TOLERANCE`, overlaps the
    paper's number.

    Args:
      key: of `FACTS`.
      ours: with dense normal tangents, or of backprop; words if there is no number since a loss
        was not reached.
      low_rank: with low-rank tangents.
      shortened: after how many iterations of how many, if the number depends on that.
    """
    if key not in FACTS:
        return None
    fact = FACTS[key]
    found = (key, str(ours), str(low_rank))
    if shortened or fact.unchecked:
        after = f"after {shortened} iterations" if shortened else ""
        return Finding(*found, UNCHECKED, _sentence(after, fact.unchecked))
    if isinstance(ours, str):
        return Finding(*found, CONTRADICTED, _sentence(_NOISE))
    low, high = (ours.value if math.isnan(x) else x for x in (ours.low, ours.high))
    if low <= fact.high and high >= fact.low:
        return Finding(*found, REPRODUCED, _sentence("our interval holds it"))
    if low * (1 - TOLERANCE) <= fact.high and high * (1 + TOLERANCE) >= fact.low:
        return Finding(*found, REPRODUCED, _sentence(f"within {TOLERANCE:.0%} of our interval"))
    return Finding(*found, CONTRADICTED, _sentence(fact.contradicted))


def not_found(key: str) -> Finding:
    """What is said of a fact that no experiment of a preset has a finding for."""
    if reason := FACTS[key].unchecked:
        return Finding(key, "", "", UNCHECKED, _sentence(reason))
    return Finding(key, "", "", "not in this preset", "")


def _sentence(*parts: str) -> str:
    text = "; ".join(part for part in parts if part)
    return text[:1].upper() + text[1:] + "." if text else ""
