"""The rule for convolutions with low-rank tangents of their kernel.

A convolution is bilinear in its operand and its kernel, as a matrix product is
(`fwdgrad.propagation.rules.products`), with the output channels in the place of the columns.
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
from fwdgrad.tangents.forms import Tangent, add, is_structured
from fwdgrad.util.backend import choices
from fwdgrad.util.jax_internals import bind
from fwdgrad.util.shapes import merge_axes
from fwdgrad.util.trees import Array, accumulation_dtype


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


RULES: dict[str, Rule] = {primitives.conv_general_dilated_p.name: _conv_general_dilated}
