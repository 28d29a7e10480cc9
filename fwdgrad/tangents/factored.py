"""Low-rank tangents as two factors, and their algebra.

K tangents of an array of shape s are V[k, i] = Σ_ρ left[k, ρ, i] · right[k, ρ, i]. The two factors
broadcast: each has all axes of s, with size 1 along the axes on which the factor does not depend.
The rank-one matrix a cᵀ is a[:, None] · c[None, :]. So a transpose, a slice or a reshape of the
tangent is the same operation on each factor, and a batch of matrices is two factors that share the
axes of the batch.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.util.shapes import merge_axes, surely_less
from fwdgrad.util.trees import Array

# Sums of at most this many products are spelled out: XLA fuses them into the operation that reads
# the sum, and keeps no array of the full shape. Longer sums are one matrix product.
MAX_SPELLED_OUT = 8


class Split(NamedTuple):
    """The axes by which a loss uses an array as a matrix, or as a batch of matrices.

    Attributes:
      rows: the axes that the product contracts; of a kernel, input channels and taps.
      columns: the axes that the product keeps. All other axes are axes of a batch of matrices.

    >>> Split(rows=(0,), columns=(1, 2)).sizes((3, 4, 5))
    (3, 20)
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the numbers of rows and of columns of an array of this shape."""
        return math.prod(shape[i] for i in self.rows), math.prod(shape[i] for i in self.columns)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("left", "right"),
    meta_fields=("shape", "origin"),
)
class Factored(StructuredTangent):
    """Low-rank tangents V = Σ_ρ left_ρ · right_ρ, by factors that broadcast to the array's shape.

    Attributes:
      left, right: arrays (*lead, rank, *axes) of one dtype, where each of `axes` has the size of
        `shape` or 1. In propagation `lead` is (K,); `sample` of a distribution returns one tangent,
        without `lead`.
      shape: the shape of the array whose tangents these are.
      origin: the parameters that the tangents come from, for `explain`; empty once an operation has
        used them.

    >>> a, c = jnp.array([[[1.0], [2.0]]]), jnp.array([[[3.0, 4.0, 5.0]]])  # rank 1
    >>> Factored(a, c, shape=(2, 3)).dense().tolist()
    [[3.0, 4.0, 5.0], [6.0, 8.0, 10.0]]
    """

    parts = "factors"

    def __init__(
        self, left: Array, right: Array, shape: tuple[int, ...], origin: tuple[str, ...] = ()
    ):
        self.left, self.right, self.shape, self.origin = left, right, shape, origin

    @property
    def dtype(self) -> Any:
        return self.left.dtype

    @property
    def num_tangents(self) -> int:
        return self.left.shape[0]

    @property
    def rank(self) -> int:
        """The number of products in the sum."""
        return self.left.shape[self._rank_axis]

    @property
    def _rank_axis(self) -> int:
        return self.left.ndim - len(self.shape) - 1

    def shape_error(self) -> str:
        is_valid = (
            self.left.dtype == self.right.dtype
            and self.left.ndim == self.right.ndim == 2 + len(self.shape)
            and self.left.shape[:2] == self.right.shape[:2]
            and all(
                m in (1, n)
                for f in (self.left, self.right)
                for m, n in zip(f.shape[2:], self.shape, strict=True)
            )
        )
        if is_valid:
            return ""
        left, right = (f"{f.dtype}{list(f.shape[1:])}" for f in (self.left, self.right))
        return (
            f"factors {left} and {right}; both must have one dtype and for each tangent the shape "
            f"(rank, *axes), each axis of the size in {list(self.shape)} or 1"
        )

    @property
    def is_compact(self) -> bool:
        """True if both factors together are smaller than the dense array."""
        lead = self.left.shape[: self._rank_axis]
        return surely_less(self.left.size + self.right.size, math.prod((*lead, *self.shape)))

    def __repr__(self) -> str:
        return f"Factored({self.dtype}{list(self.shape)}, rank {self.rank})"

    def __str__(self) -> str:
        lead = self.left.shape[: self._rank_axis]
        return f"{self.dtype}{[*lead, *self.shape]} of rank {self.rank}"

    def with_origin(self, origin: tuple[str, ...]) -> "Factored":
        return Factored(self.left, self.right, self.shape, origin)

    def dense(self) -> Array:
        left, right, axis = self.left, self.right, self._rank_axis
        lead = left.shape[:axis]
        if 0 in self.shape:
            return jnp.zeros((*lead, *self.shape), self.dtype)
        if self.rank <= MAX_SPELLED_OUT:
            parts = [
                jax.lax.index_in_dim(left, i, axis, keepdims=False)
                * jax.lax.index_in_dim(right, i, axis, keepdims=False)
                for i in range(self.rank)
            ]
            total = functools.reduce(operator.add, parts)
        else:
            total = _sum_of_products(left, right, axis)
        return jnp.broadcast_to(total, (*lead, *self.shape))

    def add(self, other: StructuredTangent) -> "Factored | None":
        assert isinstance(other, Factored)
        return _sum_if_smaller(self, other) if self.shape == other.shape else None

    def weighted_sum(self, weights: Array, dtype: Any) -> Array:
        # One tangent of rank K·rank. If K·rank is small, XLA fuses the sum into the update that
        # reads it, and no array of the size of the parameter is kept.
        left, right = self.left.astype(dtype), self.right.astype(dtype)
        left = left * weights.reshape(-1, *(1,) * (left.ndim - 1))
        merged = [merge_axes(f, 0, 2) for f in (left, right)]
        return Factored(merged[0], merged[1], self.shape).dense()

    def inner(self, cotangent: Array) -> Array:
        # A reduction of products, which XLA fuses: no tangent is materialised.
        def product(left: Array, right: Array) -> Array:
            return jnp.sum(left * right * cotangent)

        return jax.vmap(lambda *factors: jax.vmap(product)(*factors).sum())(self.left, self.right)

    def gram(self, dtype: Any) -> Array:
        # ⟨V_k, V_l⟩ of V_k = Σ_ρ left_kρ · right_kρ is the sum over ρ, σ and the axes that both
        # factors have of ⟨left_kρ, left_lσ⟩ ⟨right_kρ, right_lσ⟩: no tangent is materialised.
        left, right = (f.astype(dtype) for f in (self.left, self.right))
        shared = [i for i in range(2, left.ndim) if left.shape[i] == right.shape[i]]
        # Along an axis of size 1 in both factors all entries are equal, so the products repeat.
        repeats = math.prod(self.shape[i - 2] for i in shared if left.shape[i] == 1)

        def products(factor: Array) -> Array:
            first = jnp.moveaxis(factor, shared, range(2, 2 + len(shared)))
            rows = merge_axes(first, 2 + len(shared), first.ndim)
            rows = merge_axes(rows, 2, 2 + len(shared))  # (K, ρ, shared, others)
            return jnp.einsum("kasi,lbsi->klabs", rows, rows, precision=jax.lax.Precision.HIGHEST)

        return repeats * (products(left) * products(right)).sum((2, 3, 4))

    def take(self, k: Array) -> Array:
        parts = [jnp.take(f, k, 0, mode="clip") for f in (self.left, self.right)]
        return Factored(parts[0], parts[1], self.shape).dense()

    def scan_inputs(self) -> list[Array | None]:
        return [
            jnp.moveaxis(f, 2, 0) if f.shape[2] == self.shape[0] else None
            for f in (self.left, self.right)
        ]

    def from_scan_slice(self, parts: Sequence[Array | None]) -> "Factored":
        factors = (self.left, self.right)
        left, right = (f[:, :, 0] if s is None else s for f, s in zip(factors, parts, strict=True))
        return Factored(left, right, self.shape[1:], self.origin)

    def map(
        self, fun: Callable[[Array], Array], shape: tuple[int, ...] | None = None
    ) -> "Factored":
        """Apply `fun` to each factor of shape `axes` of each tangent; the result has `shape`."""
        for _ in range(self.left.ndim - len(self.shape)):
            fun = jax.vmap(fun)
        return self.replace(fun(self.left), fun(self.right), shape)

    def replace(
        self, left: Array, right: Array, shape: tuple[int, ...] | None = None
    ) -> "Factored":
        """Return tangents with other factors, and another shape if given, of the same origin."""
        return Factored(left, right, self.shape if shape is None else shape, self.origin)


def _sum_of_products(left: Array, right: Array, axis: int) -> Array:
    """Return Σ_ρ left · right, with ρ along `axis`, as one contraction; axes of size 1 are kept."""
    sizes = list(zip(left.shape, right.shape, strict=True))
    batch = [i for i, (n, m) in enumerate(sizes) if i != axis and n == m]
    only_left = [i for i, (n, m) in enumerate(sizes) if n != m == 1]
    only_right = [i for i, (n, m) in enumerate(sizes) if m != n == 1]
    return jnp.einsum(
        jnp.squeeze(left, only_right),
        [i for i in range(left.ndim) if i not in only_right],
        jnp.squeeze(right, only_left),
        [i for i in range(right.ndim) if i not in only_left],
        sorted([*batch, *only_left, *only_right]),
        precision=jax.lax.Precision.HIGHEST,  # an accelerator's default may have fewer bits
    )


def _sum_if_smaller(x: Factored, y: Factored) -> Factored | None:
    """Return x + y as factors if they are smaller than the dense array, else None."""
    # The ranks add up, and each factor of the sum has the axes of both terms. So it may be smaller
    # with the factors of y exchanged, as in the sum of a cᵀ and the transpose of such a tangent.
    total, exchanged = _Sum(x, y), _Sum(x, y.replace(y.right, y.left))
    if surely_less(exchanged.size, total.size):
        total = exchanged
    is_smaller = surely_less(total.size, math.prod(x.shape) * x.left.shape[0])
    return total() if is_smaller else None


def _broadcast_axes(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """Return the axes to which two factors broadcast."""
    return tuple(m if n == 1 else n for n, m in zip(a, b, strict=True))


class _Sum:
    """The sum of two low-rank tangents, of rank x.rank + y.rank, and the size of its factors."""

    def __init__(self, x: Factored, y: Factored):
        self.x, self.y = x, y
        pairs = ((x.left, y.left), (x.right, y.right))
        self.axes = [_broadcast_axes(a.shape[2:], b.shape[2:]) for a, b in pairs]
        num_products = x.left.shape[0] * (x.rank + y.rank)
        self.size = num_products * sum(math.prod(axes) for axes in self.axes)

    def __call__(self) -> Factored:
        def concatenate(a: Array, b: Array, axes: tuple[int, ...]) -> Array:
            return jnp.concatenate([jnp.broadcast_to(f, (*f.shape[:2], *axes)) for f in (a, b)], 1)

        left = concatenate(self.x.left, self.y.left, self.axes[0])
        right = concatenate(self.x.right, self.y.right, self.axes[1])
        origin = tuple(dict.fromkeys(self.x.origin + self.y.origin))
        return Factored(left, right, self.x.shape, origin)


def stack_factors(
    tangents: Sequence[Factored | None], axis: int, shape: tuple[int, ...]
) -> Factored:
    """Stack low-rank tangents along a new axis; the result has the largest rank, not the sum.

    Both factors get the new axis. A part of smaller rank is padded with zeros.

    Args:
      tangents: the parts, None for zero.
      axis: the position of the new axis in the result.
      shape: the shape of the result.
    """
    parts = [v for v in tangents if v is not None]
    rank, num_tangents = max(v.rank for v in parts), parts[0].left.shape[0]

    def stacked(factors: Sequence[Array | None]) -> Array:
        known = [f for f in factors if f is not None]
        axes = functools.reduce(_broadcast_axes, (f.shape[2:] for f in known))

        def full(f: Array | None) -> Array:
            if f is None:
                return jnp.zeros((num_tangents, rank, *axes), known[0].dtype)
            missing = [(0, 0)] * f.ndim
            missing[1] = (0, rank - f.shape[1])
            return jnp.broadcast_to(jnp.pad(f, missing), (num_tangents, rank, *axes))

        return jnp.stack([full(f) for f in factors], 2 + axis)

    left = stacked([None if v is None else v.left for v in tangents])
    right = stacked([None if v is None else v.right for v in tangents])
    return Factored(left, right, shape, tuple(dict.fromkeys(n for v in parts for n in v.origin)))
