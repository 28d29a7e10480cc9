"""Rules for block-sparse tangents, whose supports are disjoint.

An operation that treats the entries along the cut axis each for itself keeps the blocks: one
pushforward, of `value`, serves all K tangents. A product that contracts the axis ends the blocks,
and is cheap: [v_1; …; v_K] W is K products with a K-th of the rows of W each. Every other operation
materialises the tangents.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from fwdgrad.propagation.facts import FACTS, axes_of
from fwdgrad.propagation.interpreter import Context, Rule, jvp
from fwdgrad.propagation.rules.products import Dot, share_product
from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.forms import Tangent, add, dense, is_structured
from fwdgrad.util.jax_internals import bind
from fwdgrad.util.shapes import merge_axes
from fwdgrad.util.trees import Array


def keep_blocks(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
    """Push blocks forward through an operation that treats the entries along the axis apart."""
    cut = {i: t for i, t in enumerate(tangents) if is_structured(t)}
    first = next(iter(cut.values()))
    if len(cut) < sum(t is not None for t in tangents) or context.explicit_axes:
        return NotImplemented
    if len({(t.num_blocks, t.num_tangents, t.shape[t.axis]) for t in cut.values()}) > 1:
        return NotImplemented
    if any(t.first is not first.first for t in cut.values()):
        return NotImplemented
    axis = axis_after(equation, {i: t.axis for i, t in cut.items()}, first.num_blocks)
    if axis is None:
        return NotImplemented

    def push(rows: list[Array | None], number: int) -> tuple[list[Any], list[Tangent]]:
        return jvp(lambda xs: bind(equation, xs), primals, rows, number)

    positions = range(len(tangents))
    outputs, values = push([cut[i].value[None] if i in cut else None for i in positions], 1)
    origin = tuple(dict.fromkeys(name for t in cut.values() for name in t.origin))
    earlier: list[Array | None] = [None] * len(outputs)
    if first.earlier is not None:
        rows = [cut[i].earlier if i in cut else None for i in positions]
        earlier = [None if t is None else dense(t) for t in push(rows, len(first.earlier))[1]]
    return outputs, [
        None if v is None else first.like(dense(v)[0], axis, b, origin)
        for v, b in zip(values, earlier, strict=True)
    ]


def axis_after(equation: Any, cut: dict[int, int], number: int) -> int | None:
    """Return the axis of the outputs that is cut, or None if the blocks do not stay.

    Args:
      equation: the equation.
      cut: of each operand with blocks, by its position, the axis along which they are.
      number: K, of blocks along each of these axes.
    """
    after = {_axis_after(equation, i, axis, number) for i, axis in cut.items()}
    return after.pop() if len(after) == 1 else None


def _axis_after(equation: Any, operand: int, axis: int, number: int) -> int | None:
    axes = axes_of(equation, operand)
    if axes is None or axis in axes.mixed:
        return None
    after = [j for j, of in enumerate(axes.of) if axis in of]
    if not after:
        return None
    if len(after) == 1 and axes.of[after[0]] == (axis,):
        return after[0]
    # Blocks of an axis that is merged with others, or split, stay runs if it leads them; and if
    # their size there is that of K blocks, which it is not where K does not divide it: 10 channels
    # of 49 pixels in 4 blocks are runs of 147, 490 entries in 4 blocks of 123.
    old, new = equation.invars[operand].aval.shape, equation.outvars[0].aval.shape
    merged = [i for i in axes.of[after[0]] if old[i] > 1] or [axis]
    split = [j for j in after if new[j] > 1] or after[:1]
    run = -(-old[axis] // number) * math.prod(old[i] for i in merged[1:])
    inner = math.prod(new[j] for j in split[1:])
    is_whole = merged[0] == axis and run == inner * -(-new[split[0]] // number)
    return split[0] if is_whole else None


def _dot_general(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
    sharded = equation.params.get("out_sharding") is not None or context.explicit_axes
    if sharded:
        return NotImplemented
    dot = Dot(equation)
    outputs: list[Any] | None = None
    total: Tangent = None
    for side, v in enumerate(tangents):
        if v is None:
            continue
        x, other = primals[side], primals[1 - side]
        rows = v.earlier if is_structured(v) else dense(v)
        if rows is None:
            of_rows = None
        elif outputs is None and share_product(context, x, rows, other):
            both = dot.with_rows(side, jnp.concatenate([x[None], rows]), other)
            outputs, of_rows = [both[0]], both[1:]
        else:
            of_rows = dot.with_rows(side, rows, other)
        total = add(
            total,
            _product(dot, side, v, other, of_rows) if is_structured(v) else of_rows,
        )
    return dot.of_primals(primals) if outputs is None else outputs, [total]


def _product(dot: Dot, side: int, v: Blocks, other: Array, earlier: Array | None) -> Array | Blocks:
    """Return the product with blocks of one side, after `earlier`, the product of earlier ones."""
    if v.axis not in dot.contract[side]:
        value = dot.with_rows(side, v.value[None], other)[0]
        axis = dot.output_axis(side, v.axis, other.ndim)
        return v.like(value, axis, earlier, v.origin)
    position = dot.contract[side].index(v.axis)
    its_axis = dot.contract[1 - side][position]
    operands, contract, batch = [v.value, other], [], []
    for i, (axis, of_side) in enumerate(((v.axis, side), (its_axis, 1 - side))):
        # The axis becomes two, number and size: the first is a batch's, the second is contracted.
        operands[i] = v.split(operands[i], axis)
        contract.append([j + (j >= axis) for j in dot.contract[of_side]])
        batch.append([axis, *(j + (j >= axis) for j in dot.batch[of_side])])
    # W x of a vector x is x Wᵀ, as in `Dot.with_rows`: the axis that `jax.vmap` adds to x stays in
    # front of the outputs, and no operation after it has to transpose K tangents of an example.
    as_vector = side == 1 and dot.of_vector
    left = 0 if as_vector else side
    right, options = 1 - left, dot.swapped if as_vector else dot.options
    numbers = ((contract[left], contract[right]), (batch[left], batch[right]))
    rows = lax.dot_general(operands[left], operands[right], numbers, **options)
    if as_vector:
        ones = len(dot.free(side, len(v.shape)))
        at = 1 + len(dot.batch[side])
        rows = jnp.moveaxis(rows, range(at, at + ones), range(-ones, 0))
    return rows if earlier is None else jnp.concatenate([earlier, rows])


def _conv_general_dilated(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> Any:
    """Convolve with a group for each block of input channels; blocks of output channels stay."""
    x, kernel = primals
    v, kernel_tangent = tangents
    lhs, rhs, out = equation.params["dimension_numbers"]
    grouped = (
        equation.params["feature_group_count"] != 1 or equation.params["batch_group_count"] != 1
    )
    if grouped or context.explicit_axes:
        return NotImplemented
    if v is None and is_structured(kernel_tangent) and kernel_tangent.axis == rhs[0]:
        if kernel_tangent.earlier is not None:
            return NotImplemented
        value = bind(equation, [x, kernel_tangent.value])[0]
        kept = kernel_tangent.like(value, out[1], None, kernel_tangent.origin)
        return bind(equation, primals), [kept]
    if kernel_tangent is not None or not is_structured(v) or v.axis != lhs[1]:
        return NotImplemented
    images = v.split(v.value, lhs[1])
    images = merge_axes(images, lhs[1], lhs[1] + 2)
    # (inputs, …) as (number, size): one set of outputs for each group, so inputs go to outputs.
    kernels = jnp.moveaxis(v.split(kernel, rhs[1]), rhs[1], 0)
    kernels = jnp.concatenate([*kernels], rhs[0])
    options = {k: p for k, p in equation.params.items() if k != "feature_group_count"}
    options["dimension_numbers"] = lax.ConvDimensionNumbers(lhs, rhs, out)
    rows = lax.conv_general_dilated(images, kernels, feature_group_count=v.window_size, **options)
    channels = out[1]
    each = rows.shape[channels] // v.window_size
    rows = rows.reshape(*rows.shape[:channels], v.window_size, each, *rows.shape[channels + 1 :])
    rows = jnp.moveaxis(rows, channels, 0)
    if v.earlier is not None:
        number = v.earlier.shape[0]
        (earlier,) = jvp(lambda xs: bind(equation, xs), primals, [v.earlier, None], number)[1]
        rows = jnp.concatenate([earlier, rows])  # type: ignore[list-item]
    return bind(equation, primals), [rows]


def _observed(rule: Rule) -> Rule:
    """Return the rule with a record of the blocks that it uses."""

    def observed(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
        result = rule(context, equation, primals, tangents)
        if result is not NotImplemented:
            for v in filter(is_structured, tangents):
                context.observe(equation, v)
        return result

    return observed


KEEP_BLOCKS = _observed(keep_blocks)
RULES: dict[str, Rule] = {
    **dict.fromkeys((n for n, fact in FACTS.items() if fact.axes), KEEP_BLOCKS),
    primitives.dot_general_p.name: _observed(_dot_general),
    primitives.conv_general_dilated_p.name: _observed(_conv_general_dilated),
}
