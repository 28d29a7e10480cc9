"""The paper's numbers, and the comparison of ours with them.

*Gradients without Backpropagation*, Baydin, Pearlmutter, Syme, Wood, Torr (2022). A number's mark
says how sure it is: F, read off the paper's own figure or caption; Q, quoted or used by several
independent replications; U, remembered, with no source found to confirm it.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.common.curves import Unreached
from experiments.common.verdicts import (
    ABSENT,
    LEAST_SAMPLES,
    NARROW_PLOT,
    NONE,
    NOT_REPRODUCED,
    PLOT,
    REPRODUCED,
    TIMES,
    UNCHECKED,
    UNDECIDED,
    Estimate,
    Samples,
    estimate,
    judge,
)
from fwdgrad.measurement import Interval, significant


class Fact(NamedTuple):
    """A number of the paper.

    Attributes:
      where: the figure and the panel.
      quantity: the name of the quantity.
      value: the number as the paper writes it.
      mark: F, Q or U.
      low, high: the number as a range; if one of them is infinite, the claim is one-sided.
      margin: relative to low and high, one of `verdicts`.
      below, above: reasons why ours may be lower, and higher.
      unchecked: the reason why the number cannot be checked, if it cannot.
    """

    where: str
    quantity: str
    value: str
    mark: str
    low: float = math.nan
    high: float = math.nan
    margin: float = NONE
    below: str = ""
    above: str = ""
    unchecked: str = ""


class Finding(NamedTuple):
    """The comparison of a fact with ours.

    Attributes:
      key: of `FACTS`.
      ours: by the paper's estimator, dense normal tangents, or by backprop; None if not measured.
      low_rank: by low-rank tangents.
      verdict: one of `verdicts.VERDICTS`, on `ours`.
      why: the reason, in a few words.
    """

    key: str
    ours: Estimate | None
    low_rank: Estimate | None
    verdict: str
    why: str


_DENSE = "as many products as backprop, and tangents to draw"
_ENGINE = "a compiled step has no operator overloading"
_TIMES = {"margin": TIMES}
_SECONDS = {"unchecked": "seconds are of the paper's machine"}
_OPEN = {"unchecked": "the paper leaves open how pixels are scaled and weights initialised"}
# The quantities of a panel: name, format, and more of the fact.
_QUANTITIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "R_f": ("R_f", "{:g}", {**_TIMES, "above": _DENSE, "below": _ENGINE}),
    "R_b": ("R_b", "{:g}", {**_TIMES, "below": _ENGINE, "above": "the loss alone is fused better"}),
    "R_ratio": ("R_f/R_b", "{:g}", {**_TIMES, "above": _DENSE}),
    "T_f": ("T_f", "{:g} s", _SECONDS),
    "T_b": ("T_b", "{:g} s", _SECONDS),
    "T_ratio": ("T_f/T_b by the clock", "{:g}", {**_TIMES, "above": "its steps take longer"}),
    "steps_ratio": (
        "T_f/T_b in iterations", "{:.3g}",
        {**_TIMES, "above": "it needs more iterations"},
    ),
    "loss_f": ("final loss (forward)", "about {:g}", _OPEN),
    "loss_b": ("final loss (backprop)", "about {:g}", _OPEN),
    "loss_ratio": ("final loss, forward over backprop", "about {:.2g}", {"margin": PLOT}),
    "error_f": ("final error rate (forward)", "about {:g}", _OPEN),
    "error_b": ("final error rate (backprop)", "about {:g}", _OPEN),
    "error_ratio": ("final error rate, forward over backprop", "about {:.2g}", {"margin": PLOT}),
}  # fmt: skip


def _panel(
    name: str, where: str, mark: str, **numbers: float | tuple[float, float]
) -> dict[str, Fact]:
    """Return the facts of a panel, from its quantities' keys to their numbers or ranges."""
    facts = {}
    for key, number in numbers.items():
        quantity, text, more = _QUANTITIES[key]
        low, high = number if isinstance(number, tuple) else (number, number)
        value = text.format(low) if low == high else f"{low:g}–{high:g}"
        facts[f"{name}.{key}"] = Fact(where, quantity, value, mark, low, high, **more)
    return facts


def _depth(quantity: str, depth: int, low: float, high: float) -> dict[str, Fact]:
    """Return a fact of Figure 6."""
    text = f"about {low:g}" if low == high else f"{low:g}–{high:g}"
    name, _, more = _QUANTITIES[quantity]
    where = f"Figure 6, depth {depth}"
    return {f"depth.{quantity}.{depth}": Fact(where, name, text, "F", low, high, **more)}


def _row(name: str, where: str, low: float, high: float) -> dict[str, Fact]:
    """Return the facts of a row of Figure 2."""
    middle, time = f"near {significant((low * high) ** 0.5)}", "forward over backprop time"
    drawn = "drawing numbers takes longer than a step"
    order = "not within a decade of it"
    return {
        f"{name}.final": Fact(where, "final value", middle, "F", low, high, NONE, order, order),
        f"{name}.time": Fact(where, time, "0.75–0.9", "F", 0.75, 0.9, TIMES, above=drawn),
    }


_LOW, _HIGH = "Figure 4, η₀ = 2e-5", "Figure 4, η₀ = 2e-4"
_MLP, _AT_BEST = "Replications, MLP", "best rate of each: "
_OTHERS = "the best of others' settings; the races have ours"
FACTS: dict[str, Fact] = {
    **_row("beale", "Figure 2, Beale", 1e-5, 1e-3),
    **_row("rosenbrock", "Figure 2, Rosenbrock", 1e-6, 1e-4),
    **_panel("logistic", "Figure 3", "U", R_f=2.435, R_b=4.389, R_ratio=0.555),
    **_panel("logistic", "Figure 3", "F", T_f=197.326, T_b=356.756, T_ratio=0.553),
    **_panel("logistic", "Figure 3", "U", steps_ratio=0.553 / 0.555),
    **_panel("logistic", "Figure 3", "F", loss_f=0.5, loss_b=0.5, loss_ratio=1),
    # One program, timed twice.
    **_panel(
        "mlp", "Figure 4", "F", R_f=(2.329, 2.607), R_b=(3.971, 4.359), R_ratio=(0.586, 0.598)
    ),
    **_panel(
        "mlp_2e-5", _LOW, "F",
        T_f=165.842, T_b=292.359, T_ratio=0.567, steps_ratio=0.567 / 0.586,
        loss_f=2.2, loss_b=2.2, error_f=0.72, error_b=0.72, error_ratio=1,
    ),
    "mlp_2e-5.loss_ratio": Fact(
        _LOW, "final loss, forward over backprop", "about 1", "F", 1, 1, NARROW_PLOT
    ),
    **_panel(
        "mlp_2e-4", _HIGH, "F",
        T_f=68.014, T_b=296.957, T_ratio=0.229, steps_ratio=0.229 / 0.598, loss_f=0.52, loss_b=0.88,
        loss_ratio=0.52 / 0.88, error_f=0.13, error_b=0.17, error_ratio=0.13 / 0.17,
    ),
    **_panel(
        "cnn", "Figure 5", "U",
        R_f=1.434, R_b=2.211, R_ratio=0.649, T_ratio=0.514, steps_ratio=0.514 / 0.649,
    ),
    **_depth("R_f", 1, 2.5, 2.5),
    **_depth("R_b", 1, 4.5, 5),
    **_depth("R_ratio", 1, 0.56, 0.56),
    **_depth("R_ratio", 10, 0.61, 0.61),
    **_depth("R_f", 100, 4.2, 4.2),
    **_depth("R_b", 100, 4.5, 5),
    **_depth("R_ratio", 100, 0.85, 0.85),
    "depth.bytes.100": Fact(
        "Figure 6, depth 100", "memory, parameters included, forward", "about 1.25e9 bytes", "F",
        1.25e9, 1.25e9, PLOT, below="a compiled step updates parameters in place",
    ),
    "depth.memory.100": Fact(
        "Figure 6, depth 100", "memory, parameters included, forward over backprop", "1", "F",
        1, 1, PLOT,
        above="compiled backprop holds one layer's gradient at a time",
    ),
    "depth.checkpointed.100": Fact(
        "Replications, depth 100", "temporary memory, checkpointed backprop over forward",
        "at most about 1", "Q", -math.inf, 1 + PLOT, NONE,
        above="a segment's gradients are held beside its activations",
    ),
    "replications.slower": Fact(
        _MLP, "R_f/R_b", "above 1", "Q", 1, math.inf, NONE,
        below="their engines do more work for each step",
    ),
    "replications.backprop_wins": Fact(
        _MLP, f"{_AT_BEST}backprop's final loss over forward's", "below 1", "Q",
        -math.inf, 1, NONE,
    ),
    "replications.rates": Fact(
        _MLP, f"{_AT_BEST}backprop's over forward's", "200–1000", "Q", 200, 1000, NONE,
        below="it depends on the schedule and the number of steps",
        above="it depends on the schedule and the number of steps",
    ),
    "replications.weights": Fact(
        _MLP, "lowest published error rate, perturbed weights", "0.0856–0.0925", "Q",
        unchecked=_OTHERS,
    ),
    "replications.activities": Fact(
        _MLP, "the same, perturbed activities and local losses", "0.0255", "Q", unchecked=_OTHERS
    ),
    "replications.backprop": Fact(
        _MLP, "error rate of backprop beside that", "0.0241", "Q", unchecked=_OTHERS
    ),
    "replications.cifar": Fact(
        "Replications, CIFAR-10", "lowest published error rate: perturbed weights; activities",
        "0.527–0.56; 0.307", "Q", unchecked="CIFAR-10 is not among the data sets",
    ),
}  # fmt: skip


def compare(
    key: str, ours: Interval | Unreached, low_rank: Interval | Unreached | str = "", *,
    of: Samples, differs: str = "", note: str = "",
) -> Finding | None:  # fmt: skip
    """Return the finding for one fact, or None if the paper has no such number.

    Args:
      key: of `FACTS`.
      ours: with dense normal tangents, or of backprop. An exact number is an interval of no width.
      low_rank: with low-rank tangents; "" if the number is not theirs.
      of: the kind of the samples, unless numbers are exact. Intervals have its confidence.
      differs: differences of our setting from the paper's on which the number depends; then there
        is no verdict.
      note: added to the reason.
    """
    if key not in FACTS:
        return None
    fact = FACTS[key]
    found = _estimate(ours, of)
    verdict, why = _verdict(fact, found, differs)
    other = None if isinstance(low_rank, str) else _estimate(low_rank, of)
    return Finding(key, found, other, verdict, "; ".join(filter(None, (why, note))))


def compare_costs(
    model: str, costs: Mapping[str, Mapping[str, Interval]], *, of: Samples, differs: str
) -> list[Finding]:
    """Return the findings on the step of a model of the paper.

    Args:
      model: `logistic`, `mlp` or `cnn`.
      costs: line -> quantity -> interval; `relative_cost` is R, `over_reference` R over backprop's.
      of, differs: as in `compare`.
    """
    forward = [costs[name] for name in ("forward-normal", "forward-low_rank") if name in costs]
    numbers = {
        "R_f": [cost["relative_cost"] for cost in forward],
        "R_b": [costs["backprop"]["relative_cost"]],
        "R_ratio": [cost["over_reference"] for cost in forward],
    }
    keys = {f"{model}.{key}": pair for key, pair in numbers.items() if pair}
    if model == "mlp" and forward:
        keys["replications.slower"] = numbers["R_ratio"]
    found = [compare(key, *pair, of=of, differs=differs) for key, pair in keys.items()]
    return [finding for finding in found if finding is not None]


def _estimate(x: Interval | Unreached, of: Samples) -> Estimate:
    if isinstance(x, Unreached):
        return estimate(x.least, of, x.n - x.reached)
    return estimate(x, of)


def _verdict(fact: Fact, ours: Estimate, differs: str) -> tuple[str, str]:
    if fact.unchecked:
        return UNCHECKED, fact.unchecked
    if differs:
        return ABSENT, differs
    if not math.isfinite(ours.value):
        return UNDECIDED, "a run has diverged"
    if math.isnan(ours.low):
        return UNDECIDED, f"no interval of fewer than {LEAST_SAMPLES} {ours.of}"
    verdict = judge(ours, fact.low, fact.high, fact.margin)
    if verdict == REPRODUCED:
        return verdict, ""
    if verdict == NOT_REPRODUCED:
        higher = ours.low > fact.high
        if ours.unreached:
            return verdict, "the estimate's noise keeps the loss above backprop's lowest"
        return verdict, (fact.above or "ours is higher") if higher else (
            fact.below or "ours is lower"
        )
    if ours.unreached:
        return verdict, "runs end before backprop's lowest loss is reached"
    return verdict, f"{ours.n} {ours.of} are too few"


def not_found(key: str) -> Finding:
    """Return the finding of a fact that no experiment of a preset measures."""
    reason = FACTS[key].unchecked
    return Finding(key, None, None, UNCHECKED if reason else ABSENT, reason)
