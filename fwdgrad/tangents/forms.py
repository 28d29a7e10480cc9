"""The forms of a tangent, and what can be done with any of them.

To a primal of shape s belong K tangents, pushed forward together, in the cheapest form at hand:

    None        all K are zero
    an array    dense, of shape (K, *s)
    Factored    low rank, a sum of products of two factors
    Blocks      disjoint supports: the k-th is not zero on one block of an axis alone

Distributions sample one of the last three, and the rules of propagation keep it as long as it pays.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from fwdgrad.tangents import blocks, factored
from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.factored import Factored
from fwdgrad.util.axes import merge_axes
from fwdgrad.util.trees import Array

Tangent: TypeAlias = Array | Factored | Blocks | None


def is_structured(x: Any) -> bool:
    """Whether x is a tangent that is no array: what ends a pytree of tangents."""
    return isinstance(x, (Factored, Blocks))


def with_origin(tangent: Any, origin: tuple[str, ...]) -> Any:
    """Return the same tangent, named if it is structured, so that records can say whose it is."""
    if isinstance(tangent, Factored):
        return Factored(tangent.left, tangent.right, tangent.shape, origin)
    if isinstance(tangent, Blocks):
        return Blocks(tangent.value, tangent.axis, tangent.number, tangent.before, origin)
    return tangent


def number_of(tangent: Array | Factored | Blocks) -> int:
    """K, how many tangents go together."""
    if isinstance(tangent, Blocks):
        return tangent.num_rows
    return tangent.left.shape[0] if isinstance(tangent, Factored) else tangent.shape[0]


def dense(tangent: Array | Factored | Blocks) -> Array:
    """The tangents as an array (K, *shape)."""
    if isinstance(tangent, Factored):
        return factored.write_out(tangent)
    return blocks.write_out(tangent) if isinstance(tangent, Blocks) else tangent


def add(x: Tangent, y: Tangent) -> Tangent:
    """x + y in the cheapest form: structured while that is the smaller."""
    if x is None or y is None:
        return y if x is None else x
    if isinstance(x, Factored) and isinstance(y, Factored) and x.shape == y.shape:
        joined = factored.join(x, y)
        if joined is not None:
            return joined
    if isinstance(x, Blocks) and isinstance(y, Blocks) and x.fits(y):
        return blocks.add(x, y)
    return dense(x) + dense(y)


def weighted_sum(tangent: Array | Factored | Blocks, weights: Array, dtype: Any) -> Array:
    """Σ_k weights[k] V[k] in `dtype`, written out: (K, *shape) becomes `shape`.

    Of factors it is one factored tangent of rank K·rank, so that with few of them no array but
    the result has its size, and with an update that reads it right away not even that one. Blocks
    are one array, each scaled by its own weight.
    """
    weights = weights.astype(dtype)
    if isinstance(tangent, Blocks):
        return blocks.scaled(tangent, weights, dtype)
    if not isinstance(tangent, Factored):
        if len(weights) == 1:
            return weights[0] * tangent[0].astype(dtype)
        return jnp.tensordot(weights, tangent.astype(dtype), 1, precision=jax.lax.Precision.HIGHEST)
    left, right = tangent.left.astype(dtype), tangent.right.astype(dtype)
    left = left * weights.reshape(-1, *(1,) * (left.ndim - 1))
    merged = [merge_axes(f, 0, 2) for f in (left, right)]
    return factored.write_out(Factored(merged[0], merged[1], tangent.shape))


def inner(tangent: Array | Factored | Blocks, cotangent: Array) -> Array:
    """The products ⟨c, v_k⟩ of one cotangent with each of the tangents, (K,)."""
    if isinstance(tangent, Blocks):
        return blocks.inner(tangent, cotangent)
    if isinstance(tangent, Factored):
        # A reduction of products, which XLA does not write out as an array.
        def product(left: Array, right: Array) -> Array:
            return jnp.sum(left * right * cotangent)

        return jax.vmap(lambda *factors: jax.vmap(product)(*factors).sum())(
            tangent.left, tangent.right
        )
    return jnp.tensordot(tangent, cotangent, cotangent.ndim, precision=jax.lax.Precision.HIGHEST)


def gram(tangents: Sequence[Array | Factored | Blocks], dtype: Any) -> Array:
    """The inner products ⟨v_k, v_l⟩ over all leaves, (K, K)."""
    products = []
    for tangent in tangents:
        if isinstance(tangent, Blocks):
            products.append(blocks.gram(tangent, dtype))
        elif isinstance(tangent, Factored):
            products.append(factored.gram(tangent, dtype))
        else:
            flat = merge_axes(tangent, 1, tangent.ndim).astype(dtype)
            products.append(jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST))
    return sum(products[1:], products[0])
