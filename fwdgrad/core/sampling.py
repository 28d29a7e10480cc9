"""Drawing the K tangents of an estimate."""

from typing import Any

import jax

from fwdgrad.core import fits
from fwdgrad.core.blocks import Blocks
from fwdgrad.core.factored import Factored
from fwdgrad.core.tangents import Splits, TangentDistribution
from fwdgrad.core.trees import Array, PyTree

Tangents = list[Array | Factored | Blocks]


def draws_together(distribution: TangentDistribution) -> bool:
    """Whether a distribution draws its K tangents together."""
    return hasattr(distribution, "sample_together")


def sample_each(distribution: Any, keys: Array, params: PyTree, splits: Splits = None) -> Tangents:
    """As many tangents as keys: for each leaf of params an array (K, ...), or another form.

    Raises:
      ValueError: what is sampled does not fit `params`.
    """
    if draws_together(distribution):
        drawn = distribution.sample_together(keys[0], params, splits, len(keys))
        return fits.checked_sample(distribution, drawn, params, len(keys))

    def sample(key: Array) -> Tangents:
        return fits.checked_sample(distribution, distribution.sample(key, params, splits), params)

    if len(keys) == 1:
        return jax.tree.map(lambda x: x[None], sample(keys[0]))
    return jax.vmap(sample)(keys)
