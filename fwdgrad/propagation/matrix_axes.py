"""Search for the matrix as which a loss uses each parameter: the axes of its low-rank factors.

A low-rank tangent of a weight saves work only if one factor has the axes that the weight's product
contracts, and the other the axes that the product keeps: in | out for x W with W (in, out), out |
in for W x with W (out, in), output channels | the rest for a kernel. The shape does not tell: (3,
3, 64, 64) and (64, 64, 3, 3) are kernels of two conventions. So the search follows every parameter
through the loss to the products that read it. A table whose rows are looked up is the matrix of a
product with one-hot rows: rows | columns.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.propagation.facts import axes_of, fact_of, linear_operands
from fwdgrad.propagation.interpreter import rules_of
from fwdgrad.tangents.factored import Factored, Split
from fwdgrad.util.jax_internals import Equation, Program, read_program
from fwdgrad.util.layouts import cond_branches, scan_parts, while_parts
from fwdgrad.util.source_info import place


class Use(NamedTuple):
    """An equation that reads a parameter, other than to rearrange it.

    Attributes:
      equation: the equation; None for the end of the loss, which returns the parameter.
      split: the axes of the parameter as a matrix in the equation, or None if it is none there.
    """

    equation: Equation | None
    split: Split | None = None

    def __str__(self) -> str:
        if self.equation is None:
            return "return at the end of the loss"
        return f"{self.equation.primitive.name} at {place(self.equation)}"


def find_uses(program: Program) -> list[list[Use]]:
    """Return the uses of each input of a program, in the order of evaluation."""
    uses: list[list[Use]] = [[] for _ in program.invars]

    def record(parameter: int, equation: Equation, split: Split | None) -> None:
        uses[parameter].append(Use(equation, split))

    whole = [_whole(i, v.aval.shape) for i, v in enumerate(program.invars)]
    for known in _walk(program, whole, record):
        for axes in known:
            uses[axes.parameter].append(Use(None))
    return uses


def choose_split(uses: Sequence[Use]) -> Split | None:
    """Return the split of the first use as a matrix, or None."""
    return next((use.split for use in uses if use.split is not None), None)


class _Axes(NamedTuple):
    """A variable that is a rearranged parameter.

    Attributes:
      parameter: the index of the parameter.
      of: for each axis of the variable, the parameter's axes that it is made of.
    """

    parameter: int
    of: tuple[frozenset[int], ...]


Record = Callable[[int, Any, Split | None], None]
Known = list[_Axes]  # of one variable: empty if it is no parameter, several if it joins some


def _whole(parameter: int, shape: Sequence[int]) -> Known:
    return [_Axes(parameter, tuple(frozenset([i]) for i in range(len(shape))))]


def _walk(program: Program, inputs: Sequence[Known], record: Record) -> list[Known]:
    """Follow parameters through a program; return how its outputs are made of them."""
    known: dict[Any, Known] = dict(zip(program.invars, inputs, strict=True))

    def read(atom: Any) -> Known:
        return [] if isinstance(atom, jex_core.Literal) else known.get(atom, [])

    for equation in program.eqns:
        operands = [read(v) for v in equation.invars]
        if any(operands) and equation.is_inexact:
            outputs = _follow(equation, operands, record)
            known.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in program.outvars]


def _follow(equation: Equation, operands: list[Known], record: Record) -> list[Known]:
    primitive = equation.primitive
    nothing: list[Known] = [[] for _ in equation.outvars]

    def lost(known: Sequence[Known]) -> None:
        """Record uses that end the search: values that a loop carries or a body returns."""
        for axes in (a for each in known for a in each):
            record(axes.parameter, equation, None)

    if equation.body is not None:
        return _walk(read_program(equation.body, equation), operands, record)
    if primitive is primitives.cond_p:
        for branch in cond_branches(equation):
            lost(_walk(read_program(branch, equation), operands[1:], record))
        return nothing
    if primitive is primitives.while_p:
        loop = while_parts(equation)
        n, m = loop.num_condition_consts, loop.num_body_consts
        carried: list[Known] = [[] for _ in operands[n + m :]]
        lost(operands[n + m :])
        lost(_walk(read_program(loop.body, equation), [*operands[n : n + m], *carried], record))
        return nothing
    if primitive is primitives.scan_p:
        scan = scan_parts(equation)
        n, m = scan.num_consts, scan.num_consts + scan.num_carry
        carried = [[] for _ in operands[n:m]]
        slices = [[a._replace(of=a.of[1:]) for a in known] for known in operands[m:]]
        lost(operands[n:m])
        lost(_walk(read_program(scan.body, equation), [*operands[:n], *carried, *slices], record))
        return nothing
    if followed := _followed(equation, operands):
        return followed
    matrix = fact_of(equation.primitive).matrix
    for side, known in enumerate(operands):
        parts = matrix(equation, side) if known and matrix is not None else None
        for axes in known:
            split = None if parts is None else _split(*([axes.of[i] for i in p] for p in parts))
            record(axes.parameter, equation, split)
    return nothing


def _followed(equation: Any, operands: list[Known]) -> list[Known]:
    """Return the outputs of an equation that rearranges, scales or adds parameters, [] of others.

    Parameters are followed as far as rules keep the factors of their tangents.
    """
    if equation.name == "optimization_barrier":
        return operands
    fact = fact_of(equation.primitive)
    rearranges = fact.matrix is None and (fact.selects or fact.elementwise)
    rules = rules_of(equation) if rearranges else None
    if rules is None or Factored not in rules.by_form:
        return []
    kept = linear_operands(equation, [False if known else None for known in operands])
    held = [i for i in range(len(operands)) if i not in kept]
    # Beside a number that scales it a parameter is followed, beside an array it is used.
    if fact.elementwise and any(
        operands[i] or equation.invars[i].aval.shape or not fact.multiplies for i in held
    ):
        return []
    joined = [axes for i in kept for axes in _moved(equation, i, operands[i])]
    return [joined for _ in equation.outvars] if joined else []


def _moved(equation: Any, position: int, known: Known) -> Known:
    """Return the axes of the operand at a position, as the outputs have them."""
    if (moved := axes_of(equation, position)) is None:
        return []
    return [
        each._replace(of=tuple(frozenset().union(*(each.of[i] for i in own)) for own in moved.of))
        for each in known
    ]


def _split(rows: Sequence[frozenset[int]], columns: Sequence[frozenset[int]]) -> Split | None:
    """Return the split of a parameter with these axes, or None if rows and columns share one."""
    first, second = frozenset().union(*rows), frozenset().union(*columns)
    if not first or not second or first & second:
        return None
    return Split(tuple(sorted(first)), tuple(sorted(second)))
