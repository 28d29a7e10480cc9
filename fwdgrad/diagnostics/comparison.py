"""The result of `compare`: a row for each estimator, and a recommendation; printed as a table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fwdgrad.diagnostics.estimate_quality import UNKNOWN
from fwdgrad.diagnostics.explanation import aligned
from fwdgrad.util.intervals import Interval, significant

_EXACT = 1e-3  # the largest error of a gradient that counts as exact
_AS_FAST = 1.1  # the most times the fastest one's time that counts as equally fast
_ROUNDING = 1e-9  # a relative error that is printed as 0


@dataclass(frozen=True)
class EstimatorRow:
    """The quality and the cost of one estimator; a number that is not known is nan.

    Intervals are 95 %, Student's t over n groups of keys.

    Attributes:
      name: the name in `estimators`.
      cosine: the mean of ⟨g, ∇f⟩ / ‖g‖ ‖∇f‖.
      slope: E⟨g, ∇f⟩ / ‖∇f‖², 1 without bias.
      bias: ‖E g − ∇f‖² / ‖∇f‖², an estimate without bias: it may be below zero.
      variance: E‖g − E g‖² / ‖∇f‖²; if ∇f is not known, E‖g − E g‖².
      num_keys: the number of keys in all groups.
      seconds: of a step, the estimate and the update p − η g; a median over turns.
      relative_time: R, the time of a step over the time of the loss alone in the same turn.
      operations, total_bytes, temporary_bytes: of a step by XLA's account; the total is parameters,
        gradients and temporaries.
      compile_seconds: of a step.
      note: the reason for which numbers are not known, or how to read them; else "".
    """

    name: str
    cosine: Interval = UNKNOWN
    slope: Interval = UNKNOWN
    bias: Interval = UNKNOWN
    variance: Interval = UNKNOWN
    num_keys: int = 0
    seconds: float = math.nan
    relative_time: float = math.nan
    operations: float = math.nan
    total_bytes: float = math.nan
    temporary_bytes: float = math.nan
    compile_seconds: float = math.nan
    note: str = ""

    @property
    def is_exact(self) -> bool:
        """True if the estimates are ∇f but for rounding."""
        return self.bias.value + self.variance.value < _EXACT  # nan is not

    @property
    def merit(self) -> float:
        """The squared cosine for a second; if ∇f is not known, 1 over variance times seconds.

        A step of the best length along g lowers a quadratic loss by a share in proportion to the
        squared cosine, and the mean of K estimates has 1/K of the variance in K times the time.
        """
        if not math.isnan(self.cosine.value):
            return self.cosine.value**2 / self.seconds
        cost = self.variance.value * self.seconds
        return math.inf if cost <= 0 else 1 / cost  # below zero by rounding alone


@dataclass(frozen=True)
class EstimatorComparison:
    """The result of `compare`, which prints as a table and a recommendation.

    Attributes:
      rows: an entry for each estimator; `result[name]` is that of a name.
      loss_seconds: the time of the loss alone, a median over turns.
      num_turns: in each of which the loss and every step were timed once.
      gradient_note: the reason for which there is no exact gradient to compare with; else "".
    """

    rows: tuple[EstimatorRow, ...]
    loss_seconds: float
    num_turns: int
    gradient_note: str = ""

    def __getitem__(self, name: str) -> EstimatorRow:
        for row in self.rows:
            if row.name == name:
                return row
        names = ", ".join(repr(row.name) for row in self.rows)
        raise KeyError(f"no estimator {name!r} was compared; there are {names}")

    @property
    def recommendation(self) -> str:
        """The estimator to use, in one sentence with the reason."""
        measured = [row for row in self.rows if not math.isnan(row.merit)]
        if not measured:
            return "No estimator could be measured; the notes say why."
        estimates = [row for row in measured if not row.is_exact]
        exact = [row for row in measured if row.is_exact]
        if exact:
            fastest = min(row.seconds for row in exact)
            as_fast = [row for row in exact if row.seconds <= _AS_FAST * fastest]
            best = min(as_fast, key=lambda row: row.total_bytes)
            return (
                f"Use {best.name}: it is exact and fits into memory ({_mebibytes(best)} MiB in "
                f"total), at R = {significant(best.relative_time)}{_beside(best, estimates)}."
            )
        best = max(estimates, key=lambda row: row.merit)
        cost = f"at R = {significant(best.relative_time)}"
        if self.gradient_note:
            return (
                f"Use {best.name}: it has the least variance for its time, "
                f"{significant(best.variance.value)} {cost}; there is no exact gradient to compare "
                "it with."
            )
        return (
            f"Use {best.name} of these: it has the largest squared cosine for its time, "
            f"{significant(best.cosine.value)}² {cost}; but the loss has an exact gradient by "
            "fwdgrad.backprop_value_and_grad, with which to compare it."
        )

    def __str__(self) -> str:
        first = ("estimator", "cosine", "slope", "bias", "variance", "keys")
        header = (*first, "R", "MiB", "operations", "compile s")
        lines = aligned([header, *map(_cells, self.rows)])
        return "\n".join([*lines, "", self.legend, *self.notes, "", self.recommendation])

    @property
    def notes(self) -> list[str]:
        """The notes of the rows, each once, after the names of its rows."""
        names: dict[str, list[str]] = {}
        for row in self.rows:
            names.setdefault(row.note, []).append(row.name)
        return [f"{'; '.join(found)}: {note}" for note, found in names.items() if note]

    @property
    def legend(self) -> str:
        """The meaning of the columns of the table, n and the kind of interval."""
        numbers = [row.variance.n for row in self.rows if row.variance.n] or [0]
        groups = " to ".join(str(n) for n in sorted({min(numbers), max(numbers)}))
        quality = (
            "variance E‖g − E g‖², not over ‖∇f‖², since there is no exact gradient "
            f"({self.gradient_note.rstrip('.')})"
            if self.gradient_note
            else "cosine of g and ∇f, slope ⟨g, ∇f⟩/‖∇f‖² (1 without bias), bias ‖E g − ∇f‖²/‖∇f‖² "
            "(may be below zero), variance E‖g − E g‖²/‖∇f‖²"
        )
        return (
            f"{quality[0].upper()}{quality[1:]}. Means with 95 % intervals (Student's t) over n = "
            f"{groups} groups of keys. R: time of a step over the loss alone "
            f"({significant(1e3 * self.loss_seconds)} ms), a median over n = {self.num_turns} "
            "turns of one process, without an interval. MiB: parameters, gradients and temporaries "
            "of a step by XLA's account, which counts a loop's body once in the operations."
        )


def _beside(best: EstimatorRow, estimates: Sequence[EstimatorRow]) -> str:
    """Return the clause on the best one of the estimates that are not exact."""
    if not estimates:
        return ""
    other = max(estimates, key=lambda row: row.merit)
    return (
        f"; the best estimate ({other.name}) has a cosine of {significant(other.cosine.value)} at "
        f"{significant(other.seconds / best.seconds)} of its time"
    )


def _cells(row: EstimatorRow) -> tuple[str, ...]:
    is_relative = not math.isnan(row.cosine.value)

    def interval(found: Interval) -> str:
        if math.isnan(found.value):
            return "—"
        if is_relative and abs(found.value) < _ROUNDING:
            return "0"
        return str(found)

    def number(value: float) -> str:
        return "—" if math.isnan(value) else significant(value)

    return (
        row.name,
        *(interval(found) for found in (row.cosine, row.slope, row.bias, row.variance)),
        str(row.num_keys or "—"),
        number(row.relative_time),
        _mebibytes(row),
        number(row.operations),
        number(row.compile_seconds),
    )


def _mebibytes(row: EstimatorRow) -> str:
    return "—" if math.isnan(row.total_bytes) else significant(row.total_bytes / 2**20)
