"""The result of `explain`: forms of tangents, places of use and loss, costs; printed as a table."""

from collections.abc import Iterable
from dataclasses import dataclass

from fwdgrad.diagnostics.custom_rules import CustomRule
from fwdgrad.util.costs import Cost


@dataclass(frozen=True)
class LeafExplanation:
    """The form of one parameter's tangent, and the equations that use or lose its structure.

    Attributes:
      name, shape, dtype: the leaf of the parameters.
      rank: the rank of a low-rank tangent, else None.
      blocks: the number of blocks of a block-sparse tangent, else None.
      size: the number of sampled entries, for all K tangents; 0 for an exact gradient.
      used: "operation at place" of each equation that used or kept the structure.
      lost: "operation at place: reason" of each equation that materialised the tangent.
      reason: the reason for which the tangent is dense or missing, else "".
      form: the form as text, such as "rank 1", "8 blocks" or "dense".
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
    form: str = "dense"


@dataclass(frozen=True)
class SiteExplanation:
    """A site of activity perturbation: a value that depends on parameters, and its noise.

    Attributes:
      place: the place in the user's code that computes the value.
      shape: the shape of one example's noise.
      parameters: the names of the parameters that learn by the site.
      kind: the noise as text: independent for each example, one for all, or an exact derivative.
      rank, blocks, used, lost: the form of the noise, as in `LeafExplanation`.
      form: the form as text, or "" of dense noise.
    """

    place: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    kind: str
    rank: int | None = None
    blocks: int | None = None
    used: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    form: str = ""


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`, which prints as a table.

    Attributes:
      leaves: at weights, one entry for each differentiable leaf.
      sites: at activities, one entry for each value that is perturbed or has its exact derivative.
      why_whole: the reason for which `jax.jvp` of the whole loss pushes all tangents forward,
        materialised; else ''.
      estimator: K, the distribution and the space as text.
      forward, backprop: the cost of a step; None for a step that cannot be compiled.
      examples: at activities, the check that each example has a loss of its own; else ''.
      custom_rules: the `custom_vjp` functions that a tangent reaches, which are entered.
      nonfinite: with `check_nan`, the places where a tangent becomes NaN or infinite; else None.
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
            tables.append(aligned(_rows_of_sites(self.sites)))
        if self.leaves or not self.sites:
            tables.append(aligned(_rows_of_leaves(self.leaves)))
        lines = [line for table in tables for line in ("", *table)][1:]
        if self.why_whole:
            lines.append(
                "All tangents are materialised and pushed forward by jax.jvp of the whole loss: "
                f"{self.why_whole}."
            )
        if self.examples:
            lines += ["", f"examples: {self.examples}"]
        if self.custom_rules:
            lines += ["", "custom_vjp functions that forward mode enters and differentiates:"]
            lines += [f"  {rule}" for rule in self.custom_rules]
        if self.nonfinite is not None:
            lines += ["", f"check_nan: {self.nonfinite}"]
        costs: list[tuple[str, ...]] = [
            (f"a step, {self.estimator}, by XLA's analysis", "forward", "backprop", "ratio")
        ]
        for name, attribute in (
            ("operations", "operations"),
            ("bytes accessed", "bytes_accessed"),
            ("temporary bytes", "temporary_bytes"),
        ):
            pair = [c and getattr(c, attribute) for c in (self.forward, self.backprop)]
            ratio = f"{pair[0] / pair[1]:.2f}" if pair[0] and pair[1] else "—"
            costs.append((name, *("—" if x is None else f"{x:,.0f}" for x in pair), ratio))
        return "\n".join([*lines, "", *aligned(costs, right=True)])


def _rows_of_leaves(leaves: Iterable[LeafExplanation]) -> list[tuple[str, ...]]:
    """Return the rows of the table of leaves, with a row for each further place."""
    header = ("parameter", "shape", "tangent", "numbers", "where")
    rows: list[tuple[str, ...]] = [header]
    for leaf in leaves:
        where = _where(leaf.used, leaf.lost)
        where += [leaf.reason] if leaf.reason else []
        form = leaf.form if leaf.size else "none"
        shape = f"{leaf.dtype}{list(leaf.shape)}"
        rows.append((leaf.name, shape, form, f"{leaf.size:,}", where[0] if where else ""))
        rows += [("", "", "", "", line) for line in where[1:]]
    return rows


def _rows_of_sites(sites: Iterable[SiteExplanation]) -> list[tuple[str, ...]]:
    """Return the rows of the table of sites, with a row for each place."""
    rows: list[tuple[str, ...]] = [("value at", "shape", "gets", "for")]
    for site in sites:
        kind = f"{site.kind}, {site.form}" if site.form else site.kind
        rows.append((site.place, str(list(site.shape)), kind, ", ".join(site.parameters)))
        rows += [("", "", line, "") for line in _where(site.used, site.lost)]
    return rows


def _where(used: Iterable[str], lost: Iterable[str]) -> list[str]:
    """Return a line for each use, then for each loss of structure."""
    return [
        *(f"used by {use}" for use in used),
        *(f"LOST, materialised for {loss}" for loss in lost),
    ]


def aligned(rows: list[tuple[str, ...]], right: bool = False) -> list[str]:
    """Return rows as lines of aligned columns; `right` aligns all columns but the first right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
