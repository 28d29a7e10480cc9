"""The forms of a tangent, and what can be done with any of them.

To a primal of shape s belong K tangents, pushed forward together, in the cheapest form at hand:

    None                 all K are zero
    an array             dense, of shape (K, *s)
    a StructuredTangent  `Factored`: low rank, a sum of products of two factors;
                         `Blocks`: disjoint supports, the k-th is zero but on one block of an axis;
                         or a form of the user's own

Distributions sample arrays or structured tangents, and the rules of propagation keep the structure
as long as it pays.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.util.axes import merge_axes
from fwdgrad.util.trees import Array

Tangent: TypeAlias = Array | StructuredTangent | None


def is_structured(x: Any) -> bool:
    """Whether x is a tangent that is no array: what ends a pytree of tangents."""
    return isinstance(x, StructuredTangent)


def with_origin(tangent: Any, origin: tuple[str, ...]) -> Any:
    """Return the same tangent, named if it is structured, so that records can say whose it is."""
    return tangent.with_origin(origin) if isinstance(tangent, StructuredTangent) else tangent


def count_tangents(tangent: Array | StructuredTangent) -> int:
    """K, how many tangents go together."""
    if isinstance(tangent, StructuredTangent):
        return tangent.num_tangents
    return tangent.shape[0]


def dense(tangent: Array | StructuredTangent) -> Array:
    """Return the tangents as an array (K, *shape)."""
    return tangent.dense() if isinstance(tangent, StructuredTangent) else tangent


def add(x: Tangent, y: Tangent) -> Tangent:
    """Return x + y in the cheapest form: structured while that is the smaller."""
    if x is None or y is None:
        return y if x is None else x
    if isinstance(x, StructuredTangent) and isinstance(y, type(x)):
        total = x.add(y)
        if total is not None:
            return total
    return dense(x) + dense(y)


def weighted_sum(tangent: Array | StructuredTangent, weights: Array, dtype: Any) -> Array:
    """Return Σ_k weights[k] V[k] in `dtype`, dense: (K, *shape) becomes `shape`."""
    weights = weights.astype(dtype)
    if isinstance(tangent, StructuredTangent):
        return tangent.weighted_sum(weights, dtype)
    if len(weights) == 1:
        return weights[0] * tangent[0].astype(dtype)
    return jnp.tensordot(weights, tangent.astype(dtype), 1, precision=jax.lax.Precision.HIGHEST)


def inner(tangent: Array | StructuredTangent, cotangent: Array) -> Array:
    """Return the products ⟨c, v_k⟩ of one cotangent with each of the tangents, (K,)."""
    if isinstance(tangent, StructuredTangent):
        return tangent.inner(cotangent)
    return jnp.tensordot(tangent, cotangent, cotangent.ndim, precision=jax.lax.Precision.HIGHEST)


def gram(tangents: Sequence[Array | StructuredTangent], dtype: Any) -> Array:
    """Return the inner products ⟨v_k, v_l⟩ over all leaves, (K, K)."""
    products = []
    for tangent in tangents:
        if isinstance(tangent, StructuredTangent):
            products.append(tangent.gram(dtype))
        else:
            flat = merge_axes(tangent, 1, tangent.ndim).astype(dtype)
            products.append(jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST))
    return sum(products[1:], products[0])
