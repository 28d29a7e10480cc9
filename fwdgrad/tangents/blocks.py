"""Block-sparse tangents: K tangents with disjoint supports, kept as one array, and their algebra.

An axis of a value is cut into K blocks of equal size (the last may be smaller, or empty). The k-th
tangent is zero outside of the k-th block. So one array of the value's shape holds all K tangents,
and a product that contracts the axis, [v_1; …; v_K] W, costs as much as the product with one dense
tangent: each block of rows of W meets one tangent alone. An operation that keeps the axis, such as
an activation function, keeps the blocks; the rules are in `fwdgrad.propagation.rules.blocks`.
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
    data_fields=("value", "earlier", "first"),
    meta_fields=("axis", "num_blocks", "origin", "size"),
)
class Blocks(StructuredTangent):
    """K tangents with disjoint supports: v_k is `value` on the k-th block of an axis, else zero.

    Attributes:
      value: an array of the shape and dtype of the primal, all v_k in one.
      axis: the axis of `value` that is cut into blocks.
      num_blocks: K.
      earlier: dense tangents (R, *shape) of earlier layers, which come before the K of the blocks,
        or None. They are pushed forward with the blocks, so that one value carries R + K tangents.
      origin: the parameters that the tangents come from, for `explain`; empty once an operation has
        used them.
      first, size: of a window, the number of its first block, which may be traced, and how many it
        has; None for all blocks. Entries outside of the window have no meaning.

    >>> Blocks(jnp.array([1.0, 2.0, 3.0]), axis=0, num_blocks=2).dense().tolist()
    [[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]
    """

    parts = "blocks"

    def __init__(
        self,
        value: Array,
        axis: int,
        num_blocks: int,
        earlier: Array | None = None,
        origin: tuple[str, ...] = (),
        first: Array | None = None,
        size: int | None = None,
    ):
        self.value, self.axis, self.num_blocks = value, axis, num_blocks
        self.earlier, self.origin, self.first, self.size = earlier, origin, first, size

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> Any:
        return self.value.dtype

    @property
    def block_size(self) -> int:
        """The number of entries of a block along the axis."""
        return -(-self.value.shape[self.axis] // self.num_blocks)

    @property
    def window_size(self) -> int:
        """The number of blocks in the window, all K if there is none."""
        return self.num_blocks if self.size is None else self.size

    @property
    def num_tangents(self) -> int:
        """R + K: the tangents of earlier layers, and one for each block of the window."""
        return self.window_size + (0 if self.earlier is None else self.earlier.shape[0])

    def __repr__(self) -> str:
        return f"Blocks({self.dtype}{list(self.shape)}, {self.num_blocks} along axis {self.axis})"

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)} in {self.num_blocks} blocks"

    def with_origin(self, origin: tuple[str, ...]) -> "Blocks":
        return self.like(self.value, self.axis, self.earlier, origin)

    def window(self, first: Array, size: int) -> "Blocks":
        """Return the tangents of `size` blocks alone, from the block `first` on.

        >>> Blocks(jnp.array([1.0, 2.0, 3.0]), axis=0, num_blocks=3).window(1, 2).dense().tolist()
        [[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]
        """
        return Blocks(
            self.value, self.axis, self.num_blocks, self.earlier, self.origin, first, size
        )

    def like(
        self, value: Array, axis: int, earlier: Array | None, origin: tuple[str, ...] = ()
    ) -> "Blocks":
        """Return tangents of another value, with the same blocks along an axis of it."""
        return Blocks(value, axis, self.num_blocks, earlier, origin, self.first, self.size)

    def split(self, x: Array, axis: int) -> Array:
        """Return x with an axis as two, the blocks of the window and the entries of a block.

        Args:
          x: an array with an axis as long as the cut one.
          axis: its index.
        """
        blocks = split_into_blocks(x, axis, self.num_blocks, self.block_size)
        if self.first is None:
            return blocks
        return jax.lax.dynamic_slice_in_dim(blocks, self.first, self.window_size, axis)

    def dense(self) -> Array:
        index = jnp.arange(self.window_size).reshape(-1, *[1] * self.value.ndim)
        if self.first is not None:
            index = index + self.first
        on_block = self._block_of_entry()[None] == index
        tangents = jnp.where(on_block, self.value[None], jnp.zeros((), self.dtype))
        return tangents if self.earlier is None else jnp.concatenate([self.earlier, tangents])

    def add(self, other: StructuredTangent) -> "Blocks | None":
        assert isinstance(other, Blocks)
        if self._layout() != other._layout() or self.first is not other.first:
            return None
        pair = (self.earlier, other.earlier)
        earlier = None if pair[0] is None or pair[1] is None else pair[0] + pair[1]
        origin = tuple(dict.fromkeys(self.origin + other.origin))
        return self.like(self.value + other.value, self.axis, earlier, origin)

    def weighted_sum(self, weights: Array, dtype: Any) -> Array:
        if not self._is_of_all_blocks:
            return super().weighted_sum(weights, dtype)
        of_entry = jnp.repeat(weights, self.block_size)[: self.shape[self.axis]]
        return self.value.astype(dtype) * self._along_axis(of_entry)

    def inner(self, cotangent: Array) -> Array:
        products = self._sum_of_each_block(self.value * cotangent)
        if self.earlier is None:
            return products
        highest = jax.lax.Precision.HIGHEST
        of_earlier = jnp.tensordot(self.earlier, cotangent, cotangent.ndim, precision=highest)
        return jnp.concatenate([of_earlier, products])

    def gram(self, dtype: Any) -> Array:
        if not self._is_of_all_blocks:
            return super().gram(dtype)
        # A diagonal matrix, since no two supports overlap.
        return jnp.diag(self._sum_of_each_block(jnp.square(self.value.astype(dtype))))

    def take(self, k: Array) -> Array:
        if not self._is_of_all_blocks:
            return super().take(k)
        return jnp.where(self._block_of_entry() == k, self.value, jnp.zeros((), self.dtype))

    def masked(self, mask: Array) -> "Blocks":
        earlier = None if self.earlier is None else self.earlier * mask[None]
        return self.like(self.value * mask, self.axis, earlier)

    def append_to(self, earlier: Array) -> "Blocks":
        if self.earlier is not None:
            earlier = jnp.concatenate([earlier, self.earlier])
        return self.like(self.value, self.axis, earlier, self.origin)

    def reason_not_kept(self, primitive: str, others: Sequence[StructuredTangent]) -> str:
        cuts = {(t.axis, t.num_blocks) for t in others if isinstance(t, Blocks)}
        if cuts - {(self.axis, self.num_blocks)}:
            return "the blocks of its operands are cut along different axes"
        return f"`{primitive}` does not keep the axis that is cut (axis {self.axis}) apart"

    @property
    def _is_of_all_blocks(self) -> bool:
        """True if the K blocks are all tangents there are."""
        return self.earlier is None and self.first is None

    def _layout(self) -> tuple[Any, ...]:
        """Return shape, axis and numbers; blocks with equal layouts have equal supports."""
        return self.shape, self.axis, self.num_tangents, self.num_blocks

    def _along_axis(self, vector: Array) -> Array:
        """Return a vector with an entry for each index of the axis, so that it broadcasts."""
        sizes = [1] * self.value.ndim
        sizes[self.axis] = -1
        return vector.reshape(sizes)

    def _block_of_entry(self) -> Array:
        """Return the index of the block of each entry along the axis."""
        return self._along_axis(jnp.arange(self.shape[self.axis]) // self.block_size)

    def _sum_of_each_block(self, x: Array) -> Array:
        """Return the sum over each block of the window, of an array of `shape`."""
        blocks = self.split(x, self.axis)
        return blocks.sum([i for i in range(blocks.ndim) if i != self.axis])


def split_into_blocks(x: Array, axis: int, num_blocks: int, block_size: int) -> Array:
    """Return x with an axis as two, (num_blocks, block_size), padded with zeros at its end.

    >>> split_into_blocks(jnp.array([1.0, 2.0, 3.0]), 0, 2, 2).tolist()
    [[1.0, 2.0], [3.0, 0.0]]
    """
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, num_blocks * block_size - x.shape[axis])
    return jnp.pad(x, widths).reshape(*x.shape[:axis], num_blocks, block_size, *x.shape[axis + 1 :])
