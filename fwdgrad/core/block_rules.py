"""Rules for tangents with disjoint supports: where the blocks stay, and where they pay.

An operation that treats the entries along the cut axis each for itself keeps the blocks: it is
pushed forward once, by `value`, for all K tangents. A product that contracts the axis ends them,
and is where they pay: [v_1; …; v_K] W is K products with a K-th of the rows of W each. Anything
else has them written out.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.core.axes import axis_groups, merge_axes
from fwdgrad.core.blocks import Blocks, by_blocks
from fwdgrad.core.contractions import Dot, shares
from fwdgrad.core.devices import has_explicit_axes
from fwdgrad.core.elementwise import ELEMENTWISE, is_elementwise
from fwdgrad.core.factored import Factored
from fwdgrad.core.forms import Tangent, add, dense
from fwdgrad.core.jax_internals import bind
from fwdgrad.core.jaxprs import body_of, variables
from fwdgrad.core.propagation import Context, Rule, jvp
from fwdgrad.core.trees import Array


def along_the_axis(
    context: Context, equation: Any, primals: list[Any], tangents: list[Tangent]
) -> Any:
    """The rule of an operation that keeps the axis apart, if it does."""
    cut = {i: t for i, t in enumerate(tangents) if isinstance(t, Blocks)}
    first = next(iter(cut.values()))
    if len(cut) < sum(t is not None for t in tangents) or has_explicit_axes():
        return NotImplemented
    if len({(t.number, t.num_rows, t.shape[t.axis]) for t in cut.values()}) > 1:
        return NotImplemented
    axes = {equation.invars[i]: t.axis for i, t in cut.items()}
    if (after := _axes_after(equation, axes, first.number)) is None:
        return NotImplemented

    def push(rows: list[Array | None], number: int) -> tuple[list[Any], list[Tangent]]:
        return jvp(lambda xs: bind(equation, xs), primals, rows, number)

    positions = range(len(tangents))
    outputs, values = push([cut[i].value[None] if i in cut else None for i in positions], 1)
    origin = tuple(dict.fromkeys(name for t in cut.values() for name in t.origin))
    before: list[Array | None] = [None] * len(outputs)
    if first.before is not None:
        rows = [cut[i].before if i in cut else None for i in positions]
        before = [None if t is None else dense(t) for t in push(rows, len(first.before))[1]]
    return outputs, [
        None if v is None else Blocks(dense(v)[0], axis, first.number, b, origin)
        for v, b, axis in zip(values, before, after, strict=True)
    ]


def _axes_after(equation: Any, axes: dict[Any, int], number: int) -> list[int] | None:
    """Which axis of each output is the cut one, or None if the blocks do not stay.

    Args:
      axes: of the operands that are cut, the axis.
      number: K, of blocks along each of them.
    """
    if equation.primitive is primitives.custom_jvp_call_p:
        return _axes_of_elementwise(equation, axes)
    if (body := body_of(equation)) is not None:
        named = zip(body.invars, _hashable(equation.invars), strict=True)
        return _axes_of_body(body, {v: axes[w] for v, w in named if w in axes}, number)
    name = equation.primitive.name
    if name in ELEMENTWISE:
        return _axes_of_elementwise(equation, axes)
    if name in _MOVES and len(axes) == 1 and equation.invars[0] in axes:
        after = _MOVES[name](equation, axes[equation.invars[0]], number)
        return None if after is None else [after]
    return None


def _axes_of_elementwise(equation: Any, axes: dict[Any, int]) -> list[int] | None:
    (axis, *others) = set(axes.values())
    whole = equation.outvars[0].aval.shape
    if others or not is_elementwise(equation):
        return None
    same = all(v.aval.shape[axis] == whole[axis] for v in axes)
    return [axis] * len(equation.outvars) if same else None


def _hashable(atoms: list[Any]) -> list[Any]:
    return [None if isinstance(v, jex_core.Literal) else v for v in atoms]


def _axes_of_body(jaxpr: Any, axes: dict[Any, int], number: int) -> list[int] | None:
    for equation in jaxpr.eqns:
        cut = {v: axes[v] for v in variables(equation.invars) if v in axes}
        if not cut:
            continue
        if (after := _axes_after(equation, cut, number)) is None:
            return None
        axes.update(zip(equation.outvars, after, strict=True))
    outputs = _hashable(jaxpr.outvars)
    return [axes[v] for v in outputs] if all(v in axes for v in outputs) else None


def _transposed(equation: Any, axis: int, number: int) -> int:
    return list(equation.params["permutation"]).index(axis)


def _broadcast(equation: Any, axis: int, number: int) -> int | None:
    after = equation.params["broadcast_dimensions"][axis]
    return after if equation.params["shape"][after] == equation.invars[0].aval.shape[axis] else None


def _removed(equation: Any, axis: int, number: int) -> int | None:
    """A sum, a maximum or a squeeze over other axes."""
    removed = equation.params.get("axes", equation.params.get("dimensions"))
    return None if axis in removed else axis - sum(i < axis for i in removed)


def _reshaped(equation: Any, axis: int, number: int) -> int | None:
    """The blocks stay runs of an axis if it leads those it is merged with or made into.

    And if their size there is the one that K blocks of that axis have, which it is not where K
    does not divide it: 10 channels of 49 pixels in 4 blocks are runs of 147, 490 entries in 4 of
    123.
    """
    old, new = equation.invars[0].aval.shape, equation.params["new_sizes"]
    if 0 in old or equation.params.get("dimensions") is not None:
        return None
    for before, after in axis_groups(old, new):
        if axis in before:
            wide = [i for i in before if old[i] > 1]
            if not after or (wide and wide[0] != axis):
                return None
            after = [j for j in after if new[j] > 1] or after[:1]
            inner = 1
            for j in after[1:]:
                inner *= new[j]
            run = -(-old[axis] // number)  # of the merged axis
            for i in wide[1:]:
                run *= old[i]
            return after[0] if run == inner * -(-new[after[0]] // number) else None
    return None


def _cut(equation: Any, axis: int, number: int) -> int | None:
    """A slice or a padding of other axes."""
    padding = equation.params.get("padding_config")
    same = equation.outvars[0].aval.shape[axis] == equation.invars[0].aval.shape[axis]
    return axis if same and (padding is None or padding[axis] == (0, 0, 0)) else None


_MOVES: dict[str, Callable[[Any, int, int], int | None]] = {
    primitives.transpose_p.name: _transposed,
    primitives.broadcast_in_dim_p.name: _broadcast,
    primitives.squeeze_p.name: _removed,
    primitives.reduce_sum_p.name: _removed,
    primitives.reduce_max_p.name: _removed,
    primitives.reshape_p.name: _reshaped,
    primitives.slice_p.name: _cut,
    primitives.pad_p.name: _cut,
}


def _dot_general(
    context: Context, equation: Any, primals: list[Any], tangents: list[Tangent]
) -> Any:
    sharded = equation.params.get("out_sharding") is not None or has_explicit_axes()
    if sharded or any(isinstance(t, Factored) for t in tangents):
        return NotImplemented
    dot = Dot(equation)
    outputs: list[Any] | None = None
    total: Tangent = None
    for side, v in enumerate(tangents):
        if v is None:
            continue
        x, other = primals[side], primals[1 - side]
        rows = v.before if isinstance(v, Blocks) else dense(v)
        if rows is None:
            of_rows = None
        elif outputs is None and shares(x, rows, other):
            both = dot.with_rows(side, jnp.concatenate([x[None], rows]), other)
            outputs, of_rows = [both[0]], both[1:]
        else:
            of_rows = dot.with_rows(side, rows, other)
        total = add(
            total, _product(dot, side, v, other, of_rows) if isinstance(v, Blocks) else of_rows
        )
    return bind(equation, primals) if outputs is None else outputs, [total]


def _product(dot: Dot, side: int, v: Blocks, other: Array, before: Array | None) -> Array | Blocks:
    """The product with blocks of one side, after `before`, that with the tangents before them."""
    if v.axis not in dot.contract[side]:
        value = dot.with_rows(side, v.value[None], other)[0]
        axis = dot.output_axis(side, v.axis, other.ndim)
        return Blocks(value, axis, v.number, before, v.origin)
    position = dot.contract[side].index(v.axis)
    its_axis = dot.contract[1 - side][position]
    operands, contract, batch = [v.value, other], [], []
    for i, (axis, of_side) in enumerate(((v.axis, side), (its_axis, 1 - side))):
        # The axis becomes two, number and size: the first is a batch's, the second is contracted.
        operands[i] = by_blocks(operands[i], axis, v.number, v.size)
        contract.append([j + (j >= axis) for j in dot.contract[of_side]])
        batch.append([axis, *(j + (j >= axis) for j in dot.batch[of_side])])
    left, right = side, 1 - side
    numbers = ((contract[left], contract[right]), (batch[left], batch[right]))
    rows = lax.dot_general(operands[left], operands[right], numbers, **dot.options)
    return rows if before is None else jnp.concatenate([before, rows])


def _conv_general_dilated(
    context: Context, equation: Any, primals: list[Any], tangents: list[Tangent]
) -> Any:
    """Input channels that are cut take a group for each block; output channels stay so."""
    x, kernel = primals
    v, kernel_tangent = tangents
    lhs, rhs, out = equation.params["dimension_numbers"]
    grouped = (
        equation.params["feature_group_count"] != 1 or equation.params["batch_group_count"] != 1
    )
    if grouped or has_explicit_axes():
        return NotImplemented
    if v is None and isinstance(kernel_tangent, Blocks) and kernel_tangent.axis == rhs[0]:
        if kernel_tangent.before is not None:
            return NotImplemented
        value = bind(equation, [x, kernel_tangent.value])[0]
        kept = Blocks(value, out[1], kernel_tangent.number, origin=kernel_tangent.origin)
        return bind(equation, primals), [kept]
    if kernel_tangent is not None or not isinstance(v, Blocks) or v.axis != lhs[1]:
        return NotImplemented
    images = by_blocks(v.value, lhs[1], v.number, v.size)
    images = merge_axes(images, lhs[1], lhs[1] + 2)
    # (inputs, …) as (number, size): one set of outputs for each group, so inputs go to outputs.
    kernels = jnp.moveaxis(by_blocks(kernel, rhs[1], v.number, v.size), rhs[1], 0)
    kernels = jnp.concatenate([*kernels], rhs[0])
    options = {k: p for k, p in equation.params.items() if k != "feature_group_count"}
    options["dimension_numbers"] = lax.ConvDimensionNumbers(lhs, rhs, out)
    rows = lax.conv_general_dilated(images, kernels, feature_group_count=v.number, **options)
    channels = out[1]
    each = rows.shape[channels] // v.number
    rows = rows.reshape(*rows.shape[:channels], v.number, each, *rows.shape[channels + 1 :])
    rows = jnp.moveaxis(rows, channels, 0)
    if v.before is not None:
        number = v.before.shape[0]
        (before,) = jvp(lambda xs: bind(equation, xs), primals, [v.before, None], number)[1]
        rows = jnp.concatenate([before, rows])  # type: ignore[list-item]
    return bind(equation, primals), [rows]


RULES: dict[str, Rule] = {
    **dict.fromkeys((*ELEMENTWISE, *_MOVES, "custom_jvp_call"), along_the_axis),
    primitives.dot_general_p.name: _dot_general,
    primitives.conv_general_dilated_p.name: _conv_general_dilated,
}
