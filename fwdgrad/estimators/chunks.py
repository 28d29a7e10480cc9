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


def sum_over_tangents(
    estimate: Callable[[Array], Estimate], keys: Array, chunk_size: int | None
) -> Estimate:
    """The sum over the keys' tangents, `chunk_size` of them at a time.

    The tangents of a chunk go through the loss together, with the primal evaluated once.
    (`jax.linearize` would evaluate it once for all chunks, but only by keeping every
    intermediate value, as reverse mode does.)
    """

    def add_chunk(sums: PyTree, keys: Array) -> tuple[PyTree, None]:
        chunk = estimate(keys)
        return jax.tree.map(jnp.add, sums, _summed(chunk)), None

    # The remainder, or else the first whole chunk, comes first and gives value and aux; then
    # all that is left are whole chunks, for one scan.
    number = len(keys)
    chunk = min(chunk_size or number, number)
    head = number % chunk or chunk
    total = estimate(keys[:head])
    if head == number:
        return total
    sums, _ = scan(add_chunk, _summed(total), keys[head:].reshape(-1, chunk))
    return total._replace(**sums)


def _summed(estimate: Estimate) -> dict[str, Any]:
    """What is added up over chunks."""
    summed = ("grad", "num_clipped", "guess_grad")
    return {name: getattr(estimate, name) for name in summed}
