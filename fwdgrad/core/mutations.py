"""K tangents by which parameters are moved one after the other, without keeping all of them.

A tangent is as large as the parameters, so it is drawn where it is used: once to move the
parameters by it, and again from the same key to add it to the estimate. Beside the parameters there
are then two moved ones at most, whatever K, and later the sum and the tangent. Tangents that are
small, such as factors of low rank, are drawn once and kept, and so are those drawn together.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from fwdgrad.core import blocks
from fwdgrad.core.blocks import Blocks
from fwdgrad.core.forms import weighted_sum
from fwdgrad.core.programs import scan
from fwdgrad.core.sampling import Tangents, draws_together, sample_each
from fwdgrad.core.tangents import Splits, TangentDistribution
from fwdgrad.core.trees import Array, PyTree, accumulation_dtype

# Entries of all K tangents that are kept: so many, or this share of those of the parameters. Drawn
# again, eight normal tangents of a small MLP made a step a third slower.
_MOST_KEPT, _LARGEST_SHARE = 2**20, 1 / 8


class Mutations(Protocol):
    """K tangents of some leaves, to be had one after the other.

    Attributes:
      sources: a pytree of arrays (K, ...), what each tangent is made of.
    """

    sources: Any

    def draw(self, source: Any) -> list[Any]:
        """One tangent: for each leaf an array of its shape, or factors."""
        ...

    def weighted_sum(self, weights: Array) -> list[Array]:
        """Σ_k weights[k] v_k for each leaf, in accumulation dtypes."""
        ...


def make_mutations(
    distribution: TangentDistribution,
    keys: Array,
    leaves: Sequence[Array],
    params: PyTree,
    splits: Splits,
) -> Mutations:
    """Return as many tangents as keys.

    Args:
      distribution: of the tangents.
      keys: one for each.
      leaves: the parameters.
      params: the same, as the distribution takes them.
      splits: as the distribution takes them.
    """
    dtypes = [accumulation_dtype(x.dtype) for x in leaves]

    def draw(keys: Array) -> Tangents:
        return sample_each(distribution, keys, params, splits)

    entries = len(keys) * sum(x.size for x in jax.tree.leaves(jax.eval_shape(draw, keys[:1])))
    most = max(_MOST_KEPT, _LARGEST_SHARE * sum(x.size for x in leaves))
    if draws_together(distribution) or entries <= most:
        return _Kept(draw(keys), len(keys), dtypes)
    return _DrawnAgain(draw, keys, dtypes)


class _Kept:
    def __init__(self, drawn: Tangents, number: int, dtypes: Sequence[Any]):
        self._drawn, self._dtypes = drawn, dtypes
        stacked = [None if isinstance(v, Blocks) else v for v in drawn]
        self.sources = jnp.arange(number), stacked

    def draw(self, source: Any) -> list[Any]:
        k, each = source
        return [
            blocks.tangent(v, k) if isinstance(v, Blocks) else own
            for v, own in zip(self._drawn, each, strict=True)
        ]

    def weighted_sum(self, weights: Array) -> list[Array]:
        both = zip(self._drawn, self._dtypes, strict=True)
        return [weighted_sum(v, weights, dtype) for v, dtype in both]


class _DrawnAgain:
    def __init__(self, draw: Any, keys: Array, dtypes: Sequence[Any]):
        self._draw, self.sources, self._dtypes = draw, keys, dtypes

    def draw(self, source: Any) -> list[Any]:
        return [jax.tree.map(lambda part: part[0], v) for v in self._draw(source[None])]

    def weighted_sum(self, weights: Array) -> list[Array]:
        def terms(key: Array, weight: Array) -> list[Array]:
            both = zip(self._draw(key[None]), self._dtypes, strict=True)
            return [weighted_sum(v, weight[None], dtype) for v, dtype in both]

        def add(sums: list[Array], one: tuple[Array, Array]) -> tuple[list[Array], None]:
            return [s + t for s, t in zip(sums, terms(*one), strict=True)], None

        # Not from zeros: XLA would make them before the loop over the losses, and keep them.
        first = terms(self.sources[0], weights[0])
        return scan(add, first, (self.sources[1:], weights[1:]))[0]
