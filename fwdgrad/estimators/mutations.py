"""K tangents by which parameters are moved one after the other, without keeping all of them.

A tangent is as large as the parameters, so it is drawn where it is used: once to move the
parameters by it, and again from the same key to add it to the estimate. Beside the parameters there
are then two moved ones at most, whatever K, and later the sum and the tangent. Tangents that are
small, such as factors of low rank, are drawn once and kept, and so are those drawn together.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.forms import dense, weighted_sum
from fwdgrad.tangents.independent import Splits, TangentDistribution
from fwdgrad.tangents.sampling import Tangents, sample_tangents, samples_jointly
from fwdgrad.util.programs import scan
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype

# Entries of all K tangents that are kept: so many, or this share of those of the parameters. Drawn
# again, eight normal tangents of a small MLP made a step a third slower.
_MOST_KEPT, _LARGEST_SHARE = 2**20, 1 / 40

_SIGNS = (1, -1)

SignedLoss = Callable[[list[Array], Array], Array]


class Mutations(Protocol):
    """K tangents v_k of some leaves, to be had one after the other."""

    def map_signed(self, fun: SignedLoss) -> Array:
        """Return fun(v_k, ±1), (K, 2); v_k is a list of arrays, one for each leaf.

        In loops, whose turns XLA cannot interleave: so no two mutants are in memory together.
        """
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
        return sample_tangents(distribution, keys, params, splits)

    entries = len(keys) * sum(x.size for x in jax.tree.leaves(jax.eval_shape(draw, keys[:1])))
    most = max(_MOST_KEPT, _LARGEST_SHARE * sum(x.size for x in leaves))
    if samples_jointly(distribution) or entries <= most:
        return _Kept(draw(keys), len(keys), dtypes)
    return _DrawnAgain(draw, keys, dtypes)


class _Kept:
    def __init__(self, drawn: Tangents, number: int, dtypes: Sequence[Any]):
        self._drawn, self._number, self._dtypes = drawn, number, dtypes

    def map_signed(self, fun: SignedLoss) -> Array:
        # One loop: of two, XLA would write a tangent out before the inner one, and keep it.
        def one(_: None, each: tuple[Array, Array]) -> tuple[None, Array]:
            k, sign = each
            return None, fun(self._tangent(k), sign)

        each = jnp.repeat(jnp.arange(self._number), 2), jnp.tile(jnp.array(_SIGNS), self._number)
        return scan(one, None, each)[1].reshape(-1, 2)

    def _tangent(self, k: Array) -> list[Array]:
        return [
            v.take(k) if isinstance(v, StructuredTangent) else jnp.take(v, k, 0, mode="clip")
            for v in self._drawn
        ]

    def weighted_sum(self, weights: Array) -> list[Array]:
        both = zip(self._drawn, self._dtypes, strict=True)
        return [weighted_sum(v, weights, dtype) for v, dtype in both]


class _DrawnAgain:
    def __init__(self, draw: Any, keys: Array, dtypes: Sequence[Any]):
        self._draw, self._keys, self._dtypes = draw, keys, dtypes

    def map_signed(self, fun: SignedLoss) -> Array:
        def both(_: None, key: Array) -> tuple[None, Array]:
            drawn = self._draw(key[None])

            def one(_: None, sign: Array) -> tuple[None, Array]:
                return None, fun([dense(v)[0] for v in drawn], sign)

            return None, scan(one, None, jnp.array(_SIGNS))[1]

        return scan(both, None, self._keys)[1]

    def weighted_sum(self, weights: Array) -> list[Array]:
        def terms(key: Array, weight: Array) -> list[Array]:
            both = zip(self._draw(key[None]), self._dtypes, strict=True)
            return [weighted_sum(v, weight[None], dtype) for v, dtype in both]

        def add(sums: list[Array], one: tuple[Array, Array]) -> tuple[list[Array], None]:
            return [s + t for s, t in zip(sums, terms(*one), strict=True)], None

        # Not from zeros: XLA would make them before the loop over the losses, and keep them.
        first = terms(self._keys[0], weights[0])
        return scan(add, first, (self._keys[1:], weights[1:]))[0]
