"""How a loss uses each parameter as a linear map, and so along which axes to factor its tangent.

A low-rank tangent of a weight saves work only if one factor has the axes that the weight's
product contracts and the other those it keeps: for x W with W (in, out) that is in | out, for
W x with W (out, in) out | in, for a kernel output channels | everything else. The shape does
not tell: (3, 3, 64, 64) and (64, 64, 3, 3) are kernels of two conventions. So this follows
every parameter through the loss's jaxpr to the products it takes part in. A table whose rows are
looked up is the matrix of a product with one-hot rows: rows | columns.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.propagation.jaxprs import context_of, is_inexact, place
from fwdgrad.tangents.factored import Split
from fwdgrad.util.axes import axis_groups
from fwdgrad.util.jax_internals import (
    called_jaxpr,
    cond_branches,
    jax_name,
    scan_parts,
    while_parts,
)


class Use(NamedTuple):
    """An equation that reads a parameter, other than to rearrange it.

    Attributes:
      operation: the name of the primitive.
      place: where it stands in the user's code.
      split: how it uses the parameter as a matrix, or None if it does not.
    """

    operation: str
    place: str
    split: Split | None


def find_uses(jaxpr: Any) -> list[list[Use]]:
    """The uses of each input of a ClosedJaxpr, in the order of evaluation."""
    uses: list[list[Use]] = [[] for _ in jaxpr.in_avals]

    def record(parameter: int, equation: Any, split: Split | None) -> None:
        use = Use(equation.primitive.name, place(equation), split)
        if use not in uses[parameter]:
            uses[parameter].append(use)

    whole = [_whole(i, aval.shape) for i, aval in enumerate(jaxpr.in_avals)]
    for known in _walk(jaxpr.jaxpr, whole, record):
        for axes in known:
            uses[axes.parameter].append(Use("return", "the end of the loss", None))
    return uses


def choose_split(uses: Sequence[Use]) -> Split | None:
    """The split of the first use as a matrix, or None."""
    return next((use.split for use in uses if use.split is not None), None)


class _Axes(NamedTuple):
    """What a variable is of a parameter, when it is a rearranged one.

    Attributes:
      parameter: its index.
      of: for each axis of the variable, the parameter's axes that it is made of.
    """

    parameter: int
    of: tuple[frozenset[int], ...]


Record = Callable[[int, Any, Split | None], None]
Known = list[_Axes]  # of one variable: empty if it is no parameter, several if it joins some


def _whole(parameter: int, shape: Sequence[int]) -> Known:
    return [_Axes(parameter, tuple(frozenset([i]) for i in range(len(shape))))]


def _walk(jaxpr: Any, inputs: Sequence[Known], record: Record) -> list[Known]:
    """Follows parameters through a jaxpr; returns what its outputs are."""
    known: dict[Any, Known] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Known:
        return [] if isinstance(atom, jex_core.Literal) else known.get(atom, [])

    for equation in jaxpr.eqns:
        operands = [read(v) for v in equation.invars]
        if any(operands) and any(map(is_inexact, equation.outvars)):
            with context_of(equation):
                outputs = _follow(equation, operands, record)
            known.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _follow(equation: Any, operands: list[Known], record: Record) -> list[Known]:
    primitive = equation.primitive
    nothing: list[Known] = [[] for _ in equation.outvars]

    def lost(known: Sequence[Known]) -> None:
        """What is not followed: what a loop carries, and what a body returns."""
        for axes in (a for each in known for a in each):
            record(axes.parameter, equation, None)

    if (body := called_jaxpr(equation)) is not None:
        return _walk(body.jaxpr, operands, record)
    if primitive is primitives.cond_p:
        for branch in cond_branches(equation):
            lost(_walk(branch.jaxpr, operands[1:], record))
        return nothing
    if primitive is primitives.while_p:
        loop = while_parts(equation)
        n, m = loop.num_condition_consts, loop.num_body_consts
        carried: list[Known] = [[] for _ in operands[n + m :]]
        lost(operands[n + m :])
        lost(_walk(loop.body.jaxpr, [*operands[n : n + m], *carried], record))
        return nothing
    if primitive is primitives.scan_p:
        scan = scan_parts(equation)
        n, m = scan.num_consts, scan.num_consts + scan.num_carry
        carried = [[] for _ in operands[n:m]]
        slices = [[a._replace(of=a.of[1:]) for a in known] for known in operands[m:]]
        lost(operands[n:m])
        lost(_walk(scan.body.jaxpr, [*operands[:n], *carried, *slices], record))
        return nothing
    if jax_name(equation) == "split":
        return [operands[0] for _ in equation.outvars]
    if jax_name(equation) == "optimization_barrier":
        return operands
    if jax_name(equation) == "unstack":
        at = equation.params["axis"]
        part = [axes._replace(of=(*axes.of[:at], *axes.of[at + 1 :])) for axes in operands[0]]
        return [part for _ in equation.outvars]
    if rearranged := _rearranged(equation, operands):
        return [rearranged]
    for side, known in enumerate(operands):
        for axes in known:
            record(axes.parameter, equation, _split(equation, side, axes.of))
    return nothing


def _rearranged(equation: Any, operands: list[Known]) -> Known:
    """The output of an equation that only rearranges or scales parameters, else nothing."""
    primitive = equation.primitive
    if primitive in (primitives.mul_p, primitives.div_p):
        side = 0 if operands[0] else 1
        scalar = not operands[1 - side] and equation.invars[1 - side].aval.shape == ()
        return operands[side] if scalar and (side == 0 or primitive is primitives.mul_p) else []
    joined = [axes for known in operands for axes in known]
    if primitive is primitives.concatenate_p:
        return joined
    if jax_name(equation) == "stack":
        at = equation.params["axis"]
        return [axes._replace(of=(*axes.of[:at], frozenset(), *axes.of[at:])) for axes in joined]
    if primitive in (primitives.add_p, primitives.sub_p) and all(operands):
        return joined
    if primitive in _UNCHANGED or jax_name(equation) in _UNCHANGED_BY_NAME:
        return operands[0]
    if primitive in _REARRANGED:
        moved = _REARRANGED[primitive]
        return [axes._replace(of=tuple(moved(equation, axes.of))) for axes in operands[0]]
    return []


Of = Sequence[frozenset[int]]


def _transposed(equation: Any, of: Of) -> Of:
    return [of[i] for i in equation.params["permutation"]]


def _broadcast(equation: Any, of: Of) -> Of:
    axes = dict(zip(equation.params["broadcast_dimensions"], of, strict=True))
    return [axes.get(i, frozenset()) for i in range(len(equation.params["shape"]))]


def _squeezed(equation: Any, of: Of) -> Of:
    return [axes for i, axes in enumerate(of) if i not in equation.params["dimensions"]]


def _reshaped(equation: Any, of: Of) -> Of:
    old, new = equation.invars[0].aval.shape, equation.params["new_sizes"]
    result: list[frozenset[int]] = [frozenset()] * len(new)
    for before, after in axis_groups(old, new) if math.prod(old) else ():
        for j in after:
            result[j] = frozenset().union(*(of[i] for i in before))
    return result


_REARRANGED: dict[Any, Callable[[Any, Of], Of]] = {
    primitives.transpose_p: _transposed,
    primitives.broadcast_in_dim_p: _broadcast,
    primitives.squeeze_p: _squeezed,
    primitives.reshape_p: _reshaped,
}
_UNCHANGED_BY_NAME = {"tile", "xla_metadata_value", "pvary"}  # not among the public primitives
_UNCHANGED = {
    primitives.slice_p,
    primitives.dynamic_slice_p,
    primitives.rev_p,
    primitives.pad_p,
    primitives.convert_element_type_p,
    primitives.copy_p,
    primitives.name_p,
    primitives.neg_p,
    primitives.sharding_constraint_p,
}


def _split(equation: Any, side: int, of: Of) -> Split | None:
    """How a product uses an operand made of the parameter's axes `of`, or None."""
    if equation.primitive is primitives.dot_general_p:
        contract, batch = (axes[side] for axes in equation.params["dimension_numbers"])
        columns = [i for i in range(len(of)) if i not in contract and i not in batch]
        return _parted([of[i] for i in contract], [of[i] for i in columns])
    if equation.primitive is primitives.conv_general_dilated_p and side == 1:
        outputs, inputs, *spatial = equation.params["dimension_numbers"].rhs_spec
        shape = equation.invars[1].aval.shape
        # With one output channel a group a factor costs as much as the kernel.
        depthwise = shape[outputs] == equation.params["feature_group_count"]
        if depthwise or equation.params["batch_group_count"] > 1:
            return None
        return _parted([of[i] for i in (inputs, *spatial)], [of[outputs]])
    if equation.primitive is primitives.gather_p and side == 0:
        numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
        shape, looked_up = equation.invars[0].aval.shape, numbers.start_index_map
        kept = [i for i in range(len(of)) if i not in looked_up]
        if numbers.operand_batching_dims or any(sizes[i] != shape[i] for i in kept):
            return None
        return _parted([of[i] for i in looked_up], [of[i] for i in kept])
    return None


def _parted(rows: Of, columns: Of) -> Split | None:
    first, second = frozenset().union(*rows), frozenset().union(*columns)
    if not first or not second or first & second:
        return None
    return Split(tuple(sorted(first)), tuple(sorted(second)))
