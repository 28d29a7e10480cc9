"""Operations on a tangent of any form: dense array, sum, inner product, Gram matrix.

A primal of shape s has K tangents, which are pushed forward together, in the smallest form at hand:

    None                 zero, for all K
    an array             dense, (K, *s)
    a StructuredTangent  `Factored`: low rank, a sum of products of two factors;
                         `Blocks`: block-sparse, the k-th is zero outside of its block of an axis;
                         or a form of the user's own

Distributions sample arrays or structured tangents. The rules of propagation keep the structure
while that is cheaper.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.blocks import Blocks
from fwdgrad.util.shapes import merge_axes
from fwdgrad.util.trees import Array

Tangent: TypeAlias = Array | StructuredTangent | None


def is_structured(x: Any) -> bool:
    """Return True for a `StructuredTangent`, which is a leaf in a pytree of tangents."""
    return isinstance(x, StructuredTangent)


def with_origin(tangent: Any, origin: tuple[str, ...]) -> Any:
    """Return the tangent with the names of its parameters if it is structured, else unchanged."""
    return tangent.with_origin(origin) if isinstance(tangent, StructuredTangent) else tangent


def count_tangents(tangent: Array | StructuredTangent) -> int:
    """Return K, the number of tangents that are pushed forward together."""
    if isinstance(tangent, StructuredTangent):
        return tangent.num_tangents
    return tangent.shape[0]


def dense(tangent: Array | StructuredTangent) -> Array:
    """Return the tangents as a dense array (K, *shape)."""
    return tangent.dense() if isinstance(tangent, StructuredTangent) else tangent


def taken(tangent: Array | Blocks, first: Array, number: int) -> Array | Blocks:
    """Return `number` of the tangents, dense or blocks, from the first on, which may be traced."""
    if isinstance(tangent, Blocks):
        return tangent.window(first, number)
    return jax.lax.dynamic_slice_in_dim(tangent, first, number)


def padded(tangents: Array, number: int) -> Array:
    """Return the tangents (K, ...) with zeros after them, `number` in all."""
    missing = number - tangents.shape[0]
    return jnp.pad(tangents, [(0, missing), *[(0, 0)] * (tangents.ndim - 1)])


def add(x: Tangent, y: Tangent) -> Tangent:
    """Return x + y, structured if both have one form and the structured sum is smaller."""
    if x is None or y is None:
        return y if x is None else x
    if isinstance(x, StructuredTangent) and isinstance(y, type(x)):
        total = x.add(y)
        if total is not None:
            return total
    return dense(x) + dense(y)


def weighted_sum(tangent: Array | StructuredTangent, weights: Array, dtype: Any) -> Array:
    """Return Σ_k weights[k] v_k, a dense array of `dtype`: (K, *shape) becomes `shape`."""
    weights = weights.astype(dtype)
    if isinstance(tangent, StructuredTangent):
        return tangent.weighted_sum(weights, dtype)
    if len(weights) == 1:
        return weights[0] * tangent[0].astype(dtype)
    return jnp.tensordot(weights, tangent.astype(dtype), 1, precision=jax.lax.Precision.HIGHEST)


def inner(tangent: Array | StructuredTangent, cotangent: Array) -> Array:
    """Return the inner products ⟨c, v_k⟩ of a cotangent with each tangent, (K,)."""
    if isinstance(tangent, StructuredTangent):
        return tangent.inner(cotangent)
    return jnp.tensordot(tangent, cotangent, cotangent.ndim, precision=jax.lax.Precision.HIGHEST)


def gram(tangents: Sequence[Array | StructuredTangent], dtype: Any) -> Array:
    """Return the Gram matrix of K tangents, Σ over leaves of ⟨v_k, v_l⟩, (K, K), in `dtype`."""
    products = []
    for tangent in tangents:
        if isinstance(tangent, StructuredTangent):
            products.append(tangent.gram(dtype))
        else:
            flat = merge_axes(tangent, 1, tangent.ndim).astype(dtype)
            products.append(jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST))
    return sum(products[1:], products[0])
