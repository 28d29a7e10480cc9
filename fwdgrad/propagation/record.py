"""The record of an evaluation: the forms of tangents, what uses them, and where they are lost.

The interpreter and the spaces write to the record that `recording` has opened, if any. So a record
covers every evaluation that is made meanwhile, by whatever space, and costs nothing otherwise.

    with recording() as record:
        value_and_grad(key, params, *args)
    record.lost["params['w']"]
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.forms import Tangent
from fwdgrad.util.source_info import place
from fwdgrad.util.trees import Array


class Form(NamedTuple):
    """The form in which the K tangents of a leaf, or of a site, come in.

    Attributes:
      rank: of the factors, or None.
      blocks: the number of blocks, or None.
      size: the number of entries of all K tangents in this form.
      parts: the parts of a structured tangent, such as "factors"; None of a dense one.
    """

    rank: int | None = None
    blocks: int | None = None
    size: int = 0
    parts: str | None = None

    def __str__(self) -> str:
        if self.rank is not None:
            return f"rank {self.rank}"
        return f"{self.blocks} blocks" if self.blocks is not None else self.parts or "dense"


@dataclass
class Record:
    """A record, by the name of a leaf (`params['w']`) or of a site (`site 0`).

    Attributes:
      forms: in which form the tangents came in.
      used: "operation at place" of each equation that used or kept the structure of a tangent, in
        the order of evaluation (the keys of a dict).
      lost: "operation at place: reason" of each that had a tangent written out.
      exact: the leaves whose gradient was taken exactly.
      sites: at activities, the place, shape, parameters (indices) and kind of each site.
      why_whole: why a loss was pushed forward by `jax.jvp` as a whole, '' if none was.
    """

    forms: dict[str, Form] = field(default_factory=dict)
    used: dict[str, dict[str, None]] = field(default_factory=dict)
    lost: dict[str, dict[str, None]] = field(default_factory=dict)
    exact: dict[str, None] = field(default_factory=dict)
    sites: list[tuple[str, tuple[int, ...], list[int], str]] | None = None
    why_whole: str = ""

    def enter(self, name: str, tangent: Array | StructuredTangent) -> None:
        """Record the form of the tangents of a leaf or a site."""
        if isinstance(tangent, StructuredTangent):
            rank, blocks = (getattr(tangent, name, None) for name in ("rank", "num_blocks"))
            form = Form(rank, blocks, tangent.num_entries, tangent.parts)
        else:
            form = Form(size=tangent.size)
        self.forms[name] = form

    def use(self, names: Sequence[str], operation: str) -> None:
        """Record an operation that used or kept the structure of a tangent."""
        for name in names:
            self.used.setdefault(name, {})[operation] = None

    def lose(self, names: Sequence[str], operation: str, reason: str) -> None:
        """Record an operation that had a tangent written out, and the reason."""
        for name in names:
            self.lost.setdefault(name, {})[f"{operation}: {reason}"] = None


_current: ContextVar[Record | None] = ContextVar("fwdgrad_record", default=None)


@contextmanager
def recording() -> Iterator[Record]:
    """Open a record of all evaluations inside of the `with`."""
    record = Record()
    token = _current.set(record)
    try:
        yield record
    finally:
        _current.reset(token)


current_record = _current.get  # () -> the record that is open, or None


def described(equation: Any) -> str:
    """Return name and place of an equation, as records have it."""
    return f"{equation.primitive.name} at {place(equation)}"


def reason_of_loss(
    equation: Any, tangents: Sequence[Tangent], lost: StructuredTangent, *, has_rule: bool
) -> str:
    """Return why an equation has one of its operands' tangents written out.

    Args:
      equation: the equation.
      tangents: of its operands.
      lost: the one that is written out.
      has_rule: whether any rule for tangents of this form is known for the primitive.
    """
    name = equation.primitive.name
    others = [t for t in tangents if t is not None and t is not lost]
    if not has_rule:
        return f"no rule for `{name}` keeps {lost.parts}"
    alike = [t for t in others if isinstance(t, type(lost))]
    if len(alike) < len(others):
        return "another operand has a tangent that is dense, or of another form"
    if reason := lost.reason_not_kept(name, alike):
        return reason
    if others:
        return "both operands have a tangent"
    if any(getattr(v.aval, "shape", ()) != () for v in equation.invars[1:]):
        return f"`{name}` with an array is no operation on the factors"
    return f"the factors after `{name}` would be no smaller than the array, or are none"
