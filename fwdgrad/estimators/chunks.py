"""The K tangents of an estimate, all together or in chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.perturbation.space import Estimate
from fwdgrad.util.programs import scan
from fwdgrad.util.trees import Array, PyTree


def keys_of_tangents(key: Array, num_tangents: int) -> Array:
    """A key for each tangent; of one, the key itself."""
    return key[None] if num_tangents == 1 else jax.random.split(key, num_tangents)


def mean_over_tangents(
    estimate: Callable[[Array], Estimate], keys: Array, chunk_size: int | None
) -> Estimate:
    """The mean of the estimates by chunks of `chunk_size` tangents, one tangent for each key.

    The tangents of a chunk go through the loss together, with the primal evaluated once.
    (`jax.linearize` would evaluate it once for all chunks, but only by keeping every
    intermediate value, as reverse mode does.)
    """
    # The remainder, or else the first whole chunk, comes first and gives value and aux; then
    # all that is left are whole chunks, for one scan.
    number = len(keys)
    chunk = min(chunk_size or number, number)
    head = number % chunk or chunk
    first = estimate(keys[:head])
    if head == number:
        return first

    def add_chunk(sums: PyTree, keys: Array) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, _part(estimate(keys), len(keys) / number)), None

    sums, _ = scan(add_chunk, _part(first, head / number), keys[head:].reshape(-1, chunk))
    return first._replace(**sums)


def _part(estimate: Estimate, share: float) -> dict[str, Any]:
    """Return the fields that are averaged over chunks, each times `share`."""
    averaged = {name: getattr(estimate, name) for name in ("grad", "clip_rate", "guess_grad")}
    return jax.tree.map(lambda x: share * x, averaged)
