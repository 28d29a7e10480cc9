"""The rule for matrix products, whose cost low-rank tangents save.

A product is bilinear in an operand x and weights w:

    y = x w        ẏ = ẋ w + x ẇ

With ẇ = Σ_ρ a_ρ c_ρ, where a has the contracted axes of w and c the others, the second term is
x ẇ = Σ_ρ (x a_ρ) c_ρ: a product with one column for each ρ, and factored itself. The first
term shares one contraction with the primal, [y; ẋ w] = [x; ẋ] w, which reads w once.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from fwdgrad.propagation.interpreter import Context, Rule
from fwdgrad.tangents.factored import Factored
from fwdgrad.tangents.forms import Tangent, add, dense, is_structured
from fwdgrad.util.jax_internals import bind
from fwdgrad.util.shapes import merge_axes, surely_at_most
from fwdgrad.util.trees import Array


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
        if output is None and share_product(context, primals[side], array, primals[1 - side]):
            rows = jnp.concatenate([primals[side][None], array])
            both = dot.with_rows(side, rows, primals[1 - side])
            output = [both[0]]
            terms.append(both[1:])
        else:
            terms.append(dot.with_rows(side, array, primals[1 - side]))
    outputs = dot.of_primals(primals) if output is None else output
    return outputs, [functools.reduce(add, terms)]


def share_product(context: Context, x: Array, rows: Array, other: Array) -> bool:
    """Return True if x and its tangents should share one product with `other`.

    One product reads `other` once and copies the rows, so it pays if the rows are smaller, and if
    the product with x is not known.
    """
    return not context.values_known and surely_at_most(x.size + rows.size, other.size)


class Dot:
    """A `dot_general`, with more free axes in front of one operand.

    Sides are 0, left, and 1, right. Output axes are: batch, free of the left, free of the right.

    Attributes:
      options, swapped: the options of the product, and of that with its operands swapped.
      of_vector: True if the right operand has no free axis larger than 1, as in W x.
    """

    def __init__(self, equation: Any):
        self._equation, params = equation, equation.params
        self.output_shape = equation.outvars[0].aval.shape
        contract, batch = params["dimension_numbers"]
        self.contract, self.batch = [list(c) for c in contract], [list(b) for b in batch]
        self.options = {k: params[k] for k in ("precision", "preferred_element_type")}
        right, precision = equation.invars[1].aval.shape, params["precision"]
        can_swap = precision is None or isinstance(precision, tuple)  # and not a DotAlgorithm
        self.of_vector = can_swap and all(right[i] == 1 for i in self.free(1, len(right)))
        swapped = precision[::-1] if isinstance(precision, tuple) else precision
        self.swapped = {**self.options, "precision": swapped}

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
        if side == 1 and self.of_vector:
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

    def of_primals(self, primals: Sequence[Array]) -> list[Array]:
        """Return the equation's outputs, W x laid out as those of its tangents, with units last.

        Else an activation's mask of an example would be transposed for each of K tangents.
        """
        if self.of_vector:
            return [self.with_rows(1, primals[1][None], primals[0])[0]]
        return bind(self._equation, primals)

    def _with_vectors(self, x: Array, other: Array, extra: int) -> Array:
        """Return W x for several vectors x, as x Wᵀ, which keeps their axes in front."""
        free = self.free(1, x.ndim - extra)
        rows = jnp.squeeze(merge_axes(x, 0, extra), [1 + i for i in free])
        contract, batch = (
            [1 + i - sum(j < i for j in free) for i in axes]
            for axes in (self.contract[1], self.batch[1])
        )
        numbers = ((contract, self.contract[0]), (batch, self.batch[0]))
        product = lax.dot_general(rows, other, numbers, **self.swapped)
        product = jnp.moveaxis(product, len(batch), 0)
        return product.reshape(*x.shape[:extra], *product.shape[1:], *[1] * len(free))

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


RULES: dict[str, Rule] = {primitives.dot_general_p.name: _dot_general}
OF_DENSE = RULES  # products of a primal and its dense tangents are shared, too
