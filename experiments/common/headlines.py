"""The five lines at the top of a report, made of the findings alone."""

from collections.abc import Iterable
from typing import NamedTuple

from experiments.common.claims import DEVICES, Claim
from experiments.common.paper_facts import FACTS
from experiments.common.verdicts import ABSENT, Estimate

_COST, _TIME = ("cheaper", "dearer"), ("sooner", "later")
_LOSS = ("backprop is better", "backprop is worse")


class _Part(NamedTuple):
    """A claim that a line names.

    Attributes:
      name: of the part of the line.
      key: of the claim.
      sides: what a ratio below 1 means, and one above.
    """

    name: str
    key: str
    sides: tuple[str, str]


# Title, the claims that the line names, and whether it is of low-rank tangents.
_LINES: tuple[tuple[str, tuple[_Part, ...], bool], ...] = (
    (
        "A step of the forward gradient over one of backprop (R_f/R_b)",
        (_Part("MLP", "mlp.R_ratio", _COST), _Part("CNN", "cnn.R_ratio", _COST)), False,
    ),
    (
        "Time to backprop's lowest loss over backprop's (T_f/T_b), at the paper's rate 2e-4",
        (_Part("MLP", "mlp_2e-4.T_ratio", _TIME), _Part("CNN", "cnn.T_ratio", _TIME)), False,
    ),
    ("The same in iterations", (_Part("MLP", "mlp_2e-4.steps_ratio", _TIME),), False),
    (
        "With low-rank tangents, which the paper lacks",
        (
            _Part("R_f/R_b of the MLP", "mlp.R_ratio", _COST),
            _Part("of the CNN", "cnn.R_ratio", _COST),
            _Part("T_f/T_b of the MLP", "mlp_2e-4.T_ratio", _TIME),
        ), True,
    ),
    (
        "Each at its best rate, backprop's final loss over the forward gradient's",
        (_Part("MLP", "replications.backprop_wins", _LOSS),), False,
    ),
)  # fmt: skip


def headlines(found: Iterable[Claim]) -> list[str]:
    """Return five lines: for each the paper's number, and ours with its verdict."""
    of_key = {claim.key: claim for claim in found}
    return [
        f"- **{title}.** "
        + "; ".join(f"{part.name}: {_numbers(of_key[part.key], part, low_rank)}" for part in parts)
        + "."
        for title, parts, low_rank in _LINES
    ]


def _numbers(claim: Claim, part: _Part, low_rank: bool) -> str:
    numbers = []
    for device in DEVICES:
        finding = claim.finding(device)
        ours = finding.low_rank if low_rank else finding.ours
        if ours is not None and finding.verdict != ABSENT:
            said = [*([] if low_rank else [finding.verdict]), _side(ours, part)]
            numbers.append(f"{device.upper()} {ours} ({'; '.join(said)})")
    fact = FACTS[claim.key]
    source = "the paper" if fact.where.startswith("Figure") else "replications"
    paper = [] if low_rank else [f"{source} {fact.value}"]
    return ", ".join([*paper, *(numbers or [ABSENT])])


def _side(ours: Estimate, part: _Part) -> str:
    """Return on which side of 1 an interval is, in words."""
    below, above = part.sides
    if ours.high < 1 and not ours.unreached:
        return below
    return above if ours.low > 1 else "cannot be told from equal"
