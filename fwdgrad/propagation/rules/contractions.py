"""Rules for matrix products and convolutions, whose cost low-rank tangents save.

Both are bilinear in an operand x and a kernel w:

    y = x ∗ w        ẏ = ẋ ∗ w + x ∗ ẇ

With ẇ = Σ_ρ a_ρ c_ρ, where a has the contracted axes of w and c the others, the second term is
x ∗ ẇ = Σ_ρ (x ∗ a_ρ) c_ρ: a product with one column for each ρ, and factored itself. The first
term shares one contraction with the primal, [y; ẋ ∗ w] = [x; ẋ] ∗ w, which reads w once.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from fwdgrad.propagation.interpreter import Context, Rule
from fwdgrad.tangents.factored import Factored
from fwdgrad.tangents.forms import Tangent, add, dense, is_structured
from fwdgrad.util.backend import choices
from fwdgrad.util.jax_internals import bind
from fwdgrad.util.shapes import merge_axes, surely_at_most
from fwdgrad.util.trees import Array, accumulation_dtype


def _dot_general(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> tuple[list[Any], list[Tangent]]:
    if equation.params.get("out_sharding") is not None or context.explicit_axes:
        return NotImplemented
    dot = Dot(equation)
    arrays: list[Array | None] = [None, None]
    terms: list[Tangent] = []
    for side, v in enumerate(tangents):
        if is_structured(v):
            product = dot.with_factors(side, v, primals[1 - side])
            if product is None:
                reason = "both factors depend on the contracted axes"
                arrays[side] = context.materialize(equation, v, reason)
            else:
                context.observe(equation, v)
            terms.append(product)
        elif v is not None:
            arrays[side] = dense(v)
    output = None
    for side, array in enumerate(arrays):
        if array is None:
            continue
        if output is None and share_product(primals[side], array, primals[1 - side]):
            rows = jnp.concatenate([primals[side][None], array])
            both = dot.with_rows(side, rows, primals[1 - side])
            output = [both[0]]
            terms.append(both[1:])
        else:
            terms.append(dot.with_rows(side, array, primals[1 - side]))
    total: Tangent = None
    for term in terms:
        total = add(total, term)
    return bind(equation, primals) if output is None else output, [total]


def share_product(x: Array, rows: Array, other: Array) -> bool:
    """Return True if x and its tangents should share one product with `other`.

    One product reads `other` once and copies the rows, so it pays if the rows are smaller.
    """
    return surely_at_most(x.size + rows.size, other.size)


class Dot:
    """A `dot_general`, with more free axes in front of one operand.

    Sides are 0, left, and 1, right. Output axes are: batch, free of the left, free of the right.
    """

    def __init__(self, equation: Any):
        params = equation.params
        self.output_shape = equation.outvars[0].aval.shape
        contract, batch = params["dimension_numbers"]
        self.contract, self.batch = [list(c) for c in contract], [list(b) for b in batch]
        self.options = {k: params[k] for k in ("precision", "preferred_element_type")}

    def free(self, side: int, ndim: int) -> list[int]:
        """Return the axes of one operand that are neither contracted nor batch axes."""
        return [i for i in range(ndim) if i not in (*self.contract[side], *self.batch[side])]

    def output_axis(self, side: int, axis: int, other_ndim: int) -> int:
        """Return the output's axis for an axis of one operand that is not contracted."""
        if axis in self.batch[side]:
            return self.batch[side].index(axis)
        contract, batch = self.contract[side], self.batch[side]
        position = sum(i not in contract and i not in batch for i in range(axis))
        return len(batch) + position + (0 if side == 0 else len(self.free(0, other_ndim)))

    def with_rows(self, side: int, x: Array, other: Array, extra: int = 1) -> Array:
        """Return the product with x in the place of one side; its first `extra` axes stay in front.

        They are merged into a free axis of x, so that the product has the axes it would have
        without them: XLA transposes an operand with more.
        """
        free = self.free(side, x.ndim - extra)
        if side == 1 and not free:
            return self._with_vectors(x, other, extra)
        if not free:
            x = x[..., None]
        axis = free[0] if free else x.ndim - extra - 1
        x = jnp.moveaxis(x, range(extra), range(axis, axis + extra))
        rows = x.shape[axis : axis + extra + 1]
        x = x.reshape(*x.shape[:axis], math.prod(rows), *x.shape[axis + extra + 1 :])
        operands = (x, other) if side == 0 else (other, x)
        numbers = ((self.contract[0], self.contract[1]), (self.batch[0], self.batch[1]))
        product = lax.dot_general(*operands, numbers, **self.options)
        axis = len(self.batch[0]) + (0 if side == 0 else len(self.free(0, other.ndim)))
        product = product.reshape(*product.shape[:axis], *rows, *product.shape[axis + 1 :])
        if not free:
            product = product.squeeze(axis + extra)
        return jnp.moveaxis(product, range(axis, axis + extra), range(extra))

    def _with_vectors(self, x: Array, other: Array, extra: int) -> Array:
        """Return W x for several x without free axes, as x Wᵀ, which keeps their axes in front."""
        rows = merge_axes(x, 0, extra)
        contract, batch = ([i + 1 for i in axes] for axes in (self.contract[1], self.batch[1]))
        numbers = ((contract, self.contract[0]), (batch, self.batch[0]))
        product = lax.dot_general(rows, other, numbers, **self.options)
        product = jnp.moveaxis(product, len(batch), 0)
        return product.reshape(*x.shape[:extra], *product.shape[1:])

    def with_factors(self, side: int, v: Factored, other: Array) -> Factored | None:
        """Return the factored product with a factored tangent, or None if it has no factors."""
        contract, batch = self.contract[side], self.batch[side]
        n, lead = len(v.shape), v.left.ndim - len(v.shape)
        inner, outer = v.left, v.right
        if any(outer.shape[lead + i] != 1 for i in contract):
            inner, outer = outer, inner
        if any(outer.shape[lead + i] != 1 for i in contract):
            return None  # both factors depend on the contracted axes
        summed = [
            v.shape[i] if i in (*contract, *batch) else inner.shape[lead + i] for i in range(n)
        ]
        inner = jnp.broadcast_to(inner, (*inner.shape[:lead], *summed))
        inner = self.with_rows(side, inner, other, extra=lead)
        # The outer factor in the output's order of axes, with 1 for the free axes of the other.
        free, others = self.free(side, n), [1] * len(self.free(1 - side, other.ndim))
        order = [*range(lead), *(lead + i for i in (*batch, *free, *contract))]
        outer = outer.transpose(order)
        sizes = [outer.shape[lead + len(batch) + i] for i in range(len(free))]
        arranged = [*sizes, *others] if side == 0 else [*others, *sizes]
        outer = outer.reshape(*outer.shape[: lead + len(batch)], *arranged).astype(inner.dtype)
        return Factored(inner, outer, self.output_shape)


def _conv_general_dilated(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> tuple[list[Any], list[Tangent]]:
    x, kernel = primals
    x_tangent, kernel_tangent = tangents
    if not is_structured(kernel_tangent) or context.explicit_axes:
        return NotImplemented
    product: Tangent = _Convolution(equation).with_factors(x, kernel_tangent)
    if product is None:
        reason = "its factors do not part the output channels from the rest"
        kernel_tangent = context.materialize(equation, kernel_tangent, reason)
        product = jax.vmap(lambda w: bind(equation, [x, w])[0])(kernel_tangent)
    else:
        context.observe(equation, kernel_tangent)
    # Unlike a matrix product, a convolution reads its kernel from the cache either way: rows
    # that share one took as long as two (76 and 77 ms for 64 images 28×28 of 64 channels).
    x_tangent = context.materialize(equation, x_tangent, "a convolution keeps no factors of images")
    if x_tangent is not None:
        product = add(jax.vmap(lambda v: bind(equation, [v, kernel])[0])(x_tangent), product)
    return bind(equation, primals), [product]


class _Convolution:
    """A `conv_general_dilated` with a factored tangent of its kernel."""

    def __init__(self, equation: Any):
        self.params = equation.params
        self.lhs, self.rhs, self.out = self.params["dimension_numbers"]
        self.groups = self.params["feature_group_count"]
        self.num_outputs = equation.invars[1].aval.shape[self.rhs[0]]
        self.output = equation.outvars[0].aval

    def with_factors(self, x: Array, v: Factored) -> Factored | None:
        """Return x ∗ ẇ, or None unless one factor alone depends on the output channels.

        With ẇ[o, i, τ] = a[o] c[i, τ] it is (x ∗ c) a: a convolution to one channel, times a.
        """
        if self.params["batch_group_count"] != 1:
            return None
        channels = 2 + self.rhs[0]  # after K and ρ
        inner, outer = v.left, v.right
        if inner.shape[channels] > 1:
            inner, outer = outer, inner
        if inner.shape[channels] > 1 or math.prod(outer.shape[2:]) != outer.shape[channels]:
            return None  # both depend on the output channels, or both on the others
        inner = jnp.broadcast_to(
            inner,
            (*inner.shape[:2], *(1 if i == self.rhs[0] else n for i, n in enumerate(v.shape))),
        )
        taps = math.prod(v.shape[i] for i in self.rhs[2:])
        best = choices()
        if (
            self.groups == 1
            and taps <= best.max_taps
            and v.shape[self.rhs[1]] >= best.min_channels
            and math.prod(self.params["window_strides"]) <= best.max_stride
        ):
            inner = self._taps(x, inner)
        else:
            inner = self._to_few_channels(x, inner)
        sizes = [1] * len(self.output.shape)
        sizes[self.out[1]] = outer.shape[channels]
        outer = outer.reshape(*outer.shape[:2], *sizes).astype(inner.dtype)
        return Factored(inner, outer, self.output.shape)

    def _to_few_channels(self, x: Array, kernels: Array) -> Array:
        """Convolve with `kernels`, (K, ρ, *kernel with one output): K·ρ channels a group.

        Every group uses the same ones. Output (K, ρ, *output), with one channel or, if there are
        groups, all of them, where those of a group are equal.
        """
        lead = kernels.shape[:2]
        flat = jnp.concatenate([*merge_axes(kernels, 0, 2)], self.rhs[0])
        tiled = jnp.concatenate([flat] * self.groups, self.rhs[0])
        options = {k: v for k, v in self.params.items() if k != "dimension_numbers"}
        y = lax.conv_general_dilated(
            x,
            tiled,
            dimension_numbers=lax.ConvDimensionNumbers(self.lhs, self.rhs, self.out),
            **options,
        )
        channels = self.out[1]
        shape = (*y.shape[:channels], self.groups, *lead, *y.shape[channels + 1 :])
        y = jnp.moveaxis(y.reshape(shape), (channels + 1, channels + 2), (0, 1))
        repeats = self.num_outputs // self.groups if self.groups > 1 else 1
        return jnp.repeat(y, repeats, axis=2 + channels)

    def _taps(self, x: Array, kernels: Array) -> Array:
        """Convolve in one group by a 1×1 convolution to a plane for each tap, shifted and added.

        See `fwdgrad.util.backend` for where that is faster.
        """
        spatial = len(self.rhs) - 2
        lead, taps = kernels.shape[:2], [kernels.shape[2 + i] for i in self.rhs[2:]]
        order = [0, 1, *(2 + i for i in self.rhs[2:]), 2 + self.rhs[0], 2 + self.rhs[1]]
        number = math.prod(lead) * math.prod(taps)
        inputs = kernels.shape[2 + self.rhs[1]]
        pointwise = kernels.transpose(order).reshape(number, inputs, *(1,) * spatial)
        planes = lax.conv_general_dilated(
            x,
            pointwise,
            (1,) * spatial,
            "VALID",
            dimension_numbers=lax.ConvDimensionNumbers(
                self.lhs, (0, 1, *range(2, 2 + spatial)), self.out
            ),
            precision=self.params["precision"],
            # Half precisions would be rounded once for each plane.
            preferred_element_type=accumulation_dtype(self.output.dtype),
        )
        channels = self.out[1]
        shape = planes.shape
        planes = planes.reshape(
            *shape[:channels], *lead, math.prod(taps), 1, *shape[channels + 1 :]
        )
        planes = jnp.moveaxis(planes, range(channels, channels + 3), range(3))
        widths, rest = [(0, 0, 0)] * (3 + len(shape)), [slice(None)] * (2 + len(shape))
        for axis, (low, high), dilation in zip(
            self.out[2:], self.params["padding"], self.params["lhs_dilation"], strict=True
        ):
            widths[3 + axis] = (low, high, dilation - 1)
        planes = lax.pad(planes, jnp.zeros((), planes.dtype), widths)
        total: Any = 0
        for i, tap in enumerate(itertools.product(*(range(n) for n in taps))):
            window = list(rest)
            for axis, at, step, stride in zip(
                self.out[2:],
                tap,
                self.params["rhs_dilation"],
                self.params["window_strides"],
                strict=True,
            ):
                start, size = at * step, self.output.shape[axis]
                window[2 + axis] = slice(start, start + (size - 1) * stride + 1, stride)
            total = total + planes[:, :, i][tuple(window)]
        return total.astype(self.output.dtype)


RULES: dict[str, Rule] = {
    primitives.dot_general_p.name: _dot_general,
    primitives.conv_general_dilated_p.name: _conv_general_dilated,
}
OF_DENSE: dict[str, Rule] = {primitives.dot_general_p.name: _dot_general}
