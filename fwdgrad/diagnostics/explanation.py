"""What `explain` finds: the form of each tangent, the place of each use, the costs; as a table."""

from collections.abc import Iterable
from dataclasses import dataclass

from fwdgrad.diagnostics.custom_rules import CustomRule


@dataclass(frozen=True)
class LeafExplanation:
    """What becomes of one parameter's tangent.

    Attributes:
      name, shape, dtype: of the leaf.
      rank: of the factors of its tangent, or None if there are none.
      blocks: into how many blocks its tangent is cut, or None.
      size: how many numbers are drawn for it, for all tangents; 0 if it has its exact gradient.
      used: "operation at place" of each equation that used or kept the factors or blocks.
      lost: "operation at place: reason" of each equation that had them written out.
      reason: why the tangent is dense, or there is none, or "".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rank: int | None
    blocks: int | None
    size: int
    used: tuple[str, ...]
    lost: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class SiteExplanation:
    """What a value that depends on parameters gets, so that they learn.

    Attributes:
      place: where in the user's code it is made.
      shape: of one example's noise.
      parameters: the names of those that learn by it.
      kind: noise of each example's own, noise that is one for all, or its exact derivative.
      rank, blocks, used, lost: of its noise, as a `LeafExplanation` has them.
    """

    place: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    kind: str
    rank: int | None = None
    blocks: int | None = None
    used: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """What one compiled step costs, as XLA accounts for it: a loop's body is counted once.

    Attributes:
      operations: floating-point operations.
      bytes_accessed: bytes read and written.
      temporary_bytes: memory besides the parameters and the arguments.
    """

    operations: float
    bytes_accessed: float
    temporary_bytes: float


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; printed, it is a table.

    Attributes:
      leaves: at weights, one entry for each differentiable leaf.
      sites: at activities, one for each value that gets noise, or is exact.
      why_whole: why the loss is pushed forward as a whole by `jax.jvp`, with all tangents written
        out; '' if it is not.
      estimator: the forward gradient, K and the distribution of its tangents.
      forward, backprop: the costs of a step; None where it cannot be compiled.
      examples: at activities, whether each example has a loss of its own; else ''.
      custom_rules: the `custom_vjp` functions that a tangent reaches, which are entered.
      nonfinite: with `check_nan`, where a tangent becomes NaN or infinite; else None.
    """

    leaves: tuple[LeafExplanation, ...]
    sites: tuple[SiteExplanation, ...]
    why_whole: str
    estimator: str
    forward: Cost | None
    backprop: Cost | None
    examples: str = ""
    custom_rules: tuple[CustomRule, ...] = ()
    nonfinite: str | None = None

    def __str__(self) -> str:
        tables = []
        if self.sites:
            tables.append(_aligned(_rows_of_sites(self.sites)))
        if self.leaves or not self.sites:
            tables.append(_aligned(_rows_of_leaves(self.leaves)))
        lines = [line for table in tables for line in ("", *table)][1:]
        if self.why_whole:
            lines.append(
                "All tangents are written out and pushed forward by jax.jvp of the whole loss: "
                f"{self.why_whole}."
            )
        if self.examples:
            lines += ["", f"examples: {self.examples}"]
        if self.custom_rules:
            lines += ["", "custom_vjp functions that are entered, that is, differentiated:"]
            lines += [f"  {rule}" for rule in self.custom_rules]
        if self.nonfinite is not None:
            lines += ["", f"check_nan: {self.nonfinite}"]
        costs: list[tuple[str, ...]] = [
            (f"a step, {self.estimator}, by XLA's account", "forward", "backprop", "ratio")
        ]
        for name, attribute in (
            ("operations", "operations"),
            ("bytes accessed", "bytes_accessed"),
            ("temporary bytes", "temporary_bytes"),
        ):
            pair = [c and getattr(c, attribute) for c in (self.forward, self.backprop)]
            ratio = f"{pair[0] / pair[1]:.2f}" if pair[0] and pair[1] else "—"
            costs.append((name, *("—" if x is None else f"{x:,.0f}" for x in pair), ratio))
        return "\n".join([*lines, "", *_aligned(costs, right=True)])


def _rows_of_leaves(leaves: Iterable[LeafExplanation]) -> list[tuple[str, ...]]:
    header = ("parameter", "shape", "tangent", "numbers", "where")
    rows: list[tuple[str, ...]] = [header]
    for leaf in leaves:
        where = _where(leaf.used, leaf.lost)
        where += [leaf.reason] if leaf.reason else []
        form = "dense" if leaf.blocks is None else f"{leaf.blocks} blocks"
        form = form if leaf.rank is None else f"rank {leaf.rank}"
        form = form if leaf.size else "none"
        shape = f"{leaf.dtype}{list(leaf.shape)}"
        rows.append((leaf.name, shape, form, f"{leaf.size:,}", where[0] if where else ""))
        rows += [("", "", "", "", line) for line in where[1:]]
    return rows


def _rows_of_sites(sites: Iterable[SiteExplanation]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("value at", "shape", "gets", "for")]
    for site in sites:
        form = "" if site.blocks is None else f", {site.blocks} blocks"
        form = form if site.rank is None else f", rank {site.rank}"
        kind = site.kind + form
        rows.append((site.place, str(list(site.shape)), kind, ", ".join(site.parameters)))
        rows += [("", "", line, "") for line in _where(site.used, site.lost)]
    return rows


def _where(used: Iterable[str], lost: Iterable[str]) -> list[str]:
    """Return a line for each place of use, then for each of loss."""
    return [
        *(f"used by {use}" for use in used),
        *(f"LOST, written out for {loss}" for loss in lost),
    ]


def _aligned(rows: list[tuple[str, ...]], right: bool = False) -> list[str]:
    """The rows as lines of aligned columns; all but the first to the right, if `right`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
