"""The five lines at the top of a report, made of the findings alone."""

from collections.abc import Iterable

from experiments.common.claims import DEVICES, Claim
from experiments.common.paper_facts import FACTS
from experiments.common.verdicts import ABSENT, Estimate

# Title, the claims that the line names, and whether it is of low-rank tangents.
_LINES: tuple[tuple[str, dict[str, str], bool], ...] = (
    (
        "A step of the forward gradient over one of backprop (R_f/R_b)",
        {"MLP": "mlp.R_ratio", "CNN": "cnn.R_ratio"}, False,
    ),
    (
        "Time to backprop's lowest loss, over backprop's (T_f/T_b)",
        {"MLP, η₀ = 2e-4": "mlp_2e-4.T_ratio", "CNN": "cnn.T_ratio"}, False,
    ),
    ("The same in iterations", {"MLP, η₀ = 2e-4": "mlp_2e-4.steps_ratio"}, False),
    (
        "With low-rank tangents, which the paper lacks",
        {"R_f/R_b of the MLP": "mlp.R_ratio", "of the CNN": "cnn.R_ratio",
         "T_f/T_b of the MLP, η₀ = 2e-4": "mlp_2e-4.T_ratio"}, True,
    ),
    (
        "Each at its best rate, backprop's final loss over the forward gradient's (MLP)",
        {"": "replications.backprop_wins"}, False,
    ),
)  # fmt: skip


def headlines(found: Iterable[Claim]) -> list[str]:
    """Return five lines: for each the paper's number, and ours with its verdict."""
    of_key = {claim.key: claim for claim in found}
    lines = []
    for title, keys, low_rank in _LINES:
        parts = [
            f"{name}{': ' if name else ''}{_numbers(of_key[key], low_rank)}"
            for name, key in keys.items()
        ]
        lines.append(f"- **{title}.** {'; '.join(parts)}.")
    return lines


def _numbers(claim: Claim, low_rank: bool) -> str:
    numbers = []
    for device in DEVICES:
        finding = claim.finding(device)
        ours = finding.low_rank if low_rank else finding.ours
        if ours is not None and finding.verdict != ABSENT:
            said = "; ".join([*([] if low_rank else [finding.verdict]), _side(ours)])
            numbers.append(f"{device.upper()} {ours} ({said})")
    fact = FACTS[claim.key]
    source = "the paper" if fact.where.startswith("Figure") else "replications"
    paper = [] if low_rank else [f"{source} {fact.value}"]
    return ", ".join([*paper, *(numbers or [ABSENT])])


def _side(ours: Estimate) -> str:
    """Return on which side of 1 an interval is."""
    if ours.high < 1 and not ours.unreached:
        return "below 1"
    return "above 1" if ours.low > 1 else "not told from 1"
