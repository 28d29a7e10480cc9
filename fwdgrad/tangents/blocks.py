"""Tangents with disjoint supports, and their algebra.

An axis of a value is cut into K blocks of equal size (the last may be smaller, or empty), and the
k-th tangent is zero but on the k-th block. So K tangents are kept as *one* array, and where a
product contracts the axis, [v_1; …; v_K] W costs what one dense tangent does: each block of rows of
W is met by one tangent alone. Where an operation keeps the axis apart, such as an activation, the
blocks stay; `fwdgrad.propagation.rules.blocks` has the rules.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.util.trees import Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("value", "before"),
    meta_fields=("axis", "number", "origin"),
)
class Blocks(StructuredTangent):
    """K tangents, of which the k-th is `value` on the k-th block of an axis and zero elsewhere.

    Attributes:
      value: an array of the shape of the primal.
      axis: which of its axes is cut.
      number: K.
      before: dense tangents (R, *shape) that come before these K, or None. They have nothing to do
        with the blocks; they go along.
      origin: the parameters it comes from, for `explain`; empty once it has been used.

    >>> write_out(Blocks(jnp.array([1.0, 2.0, 3.0]), axis=0, number=2)).tolist()
    [[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]
    """

    parts = "blocks"

    def __init__(
        self,
        value: Array,
        axis: int,
        number: int,
        before: Array | None = None,
        origin: tuple[str, ...] = (),
    ):
        self.value, self.axis, self.number, self.before = value, axis, number, before
        self.origin = origin

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the primal."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """That of the primal."""
        return self.value.dtype

    @property
    def size(self) -> int:
        """Entries of a block along the axis."""
        return -(-self.value.shape[self.axis] // self.number)

    @property
    def num_tangents(self) -> int:
        """How many tangents it stands for, those before included."""
        return self.number + (0 if self.before is None else self.before.shape[0])

    @property
    def sampled_shape(self) -> tuple[int, ...]:
        return (self.number, *self.shape)

    def fits(self, other: "Blocks") -> bool:
        """Whether the blocks of the two are the same, and they have as many rows before."""
        return (self.shape, self.axis, self.num_tangents, self.number) == (
            other.shape,
            other.axis,
            other.num_tangents,
            other.number,
        )

    def __repr__(self) -> str:
        return f"Blocks({self.dtype}{list(self.shape)}, {self.number} along axis {self.axis})"

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)} in {self.number} blocks"

    def with_origin(self, origin: tuple[str, ...]) -> "Blocks":
        return Blocks(self.value, self.axis, self.number, self.before, origin)

    def dense(self) -> Array:
        return write_out(self)

    def add(self, other: StructuredTangent) -> "Blocks | None":
        assert isinstance(other, Blocks)
        return add(self, other) if self.fits(other) else None

    def weighted_sum(self, weights: Array, dtype: Any) -> Array:
        return scaled(self, weights, dtype)

    def inner(self, cotangent: Array) -> Array:
        return inner(self, cotangent)

    def gram(self, dtype: Any) -> Array:
        return gram(self, dtype)

    def one(self, k: Array) -> Array:
        return tangent(self, k)

    def masked(self, mask: Array) -> "Blocks":
        return Blocks(self.value * mask, self.axis, self.number)

    def after(self, earlier: Array) -> "Blocks":
        return Blocks(self.value, self.axis, self.number, earlier, self.origin)

    def reason_of_loss(self, primitive: str, others: Sequence[StructuredTangent]) -> str:
        cuts = {(t.axis, t.number) for t in others if isinstance(t, Blocks)}
        if cuts - {(self.axis, self.number)}:
            return "the blocks of its operands are cut along different axes"
        return f"`{primitive}` does not keep the axis that is cut (axis {self.axis}) apart"


def add(x: Blocks, y: Blocks) -> Blocks:
    """x + y, of two that fit."""
    before = None if x.before is None or y.before is None else x.before + y.before
    origin = tuple(dict.fromkeys(x.origin + y.origin))
    return Blocks(x.value + y.value, x.axis, x.number, before, origin)


def write_out(v: Blocks) -> Array:
    """The dense array (R + K, *shape)."""
    sizes = [1] * v.value.ndim
    sizes[v.axis] = -1
    block = (jnp.arange(v.shape[v.axis]) // v.size).reshape(1, *sizes)
    index = jnp.arange(v.number).reshape(-1, *[1] * v.value.ndim)
    rows = jnp.where(block == index, v.value[None], jnp.zeros((), v.dtype))
    return rows if v.before is None else jnp.concatenate([v.before, rows])


def tangent(v: Blocks, k: Array) -> Array:
    """The k-th of the K tangents, written out."""
    sizes = [1] * v.value.ndim
    sizes[v.axis] = -1
    block = (jnp.arange(v.shape[v.axis]) // v.size).reshape(sizes)
    return jnp.where(block == k, v.value, jnp.zeros((), v.dtype))


def by_blocks(x: Array, axis: int, number: int, size: int) -> Array:
    """x with an axis as two, (number, size), zeros after its end."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, number * size - x.shape[axis])
    return jnp.pad(x, widths).reshape(*x.shape[:axis], number, size, *x.shape[axis + 1 :])


def scaled(v: Blocks, weights: Array, dtype: Any) -> Array:
    """Σ_k weights[k] v_k: each block times its weight."""
    sizes = [1] * v.value.ndim
    sizes[v.axis] = -1
    of_entry = jnp.repeat(weights, v.size)[: v.shape[v.axis]]
    return v.value.astype(dtype) * of_entry.reshape(sizes)


def inner(v: Blocks, cotangent: Array) -> Array:
    """The products ⟨c, v_k⟩, (R + K,)."""
    products = by_blocks(v.value * cotangent, v.axis, v.number, v.size)
    of_blocks = _sum_of_each(products, v.axis)
    if v.before is None:
        return of_blocks
    return jnp.concatenate(
        [
            jnp.tensordot(v.before, cotangent, cotangent.ndim, precision=jax.lax.Precision.HIGHEST),
            of_blocks,
        ]
    )


def gram(v: Blocks, dtype: Any) -> Array:
    """The inner products of the K tangents: a diagonal matrix, since no two overlap."""
    squares = by_blocks(jnp.square(v.value.astype(dtype)), v.axis, v.number, v.size)
    return jnp.diag(_sum_of_each(squares, v.axis))


def _sum_of_each(x: Array, axis: int) -> Array:
    """Sum over all axes but one."""
    return x.sum([i for i in range(x.ndim) if i != axis])
