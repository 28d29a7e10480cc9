"""Drawing the K tangents of an estimate."""

import inspect
from typing import Any

import jax

from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.independent import Splits, TangentDistribution
from fwdgrad.tangents.validation import validated_sample
from fwdgrad.util.trees import Array, PyTree

Tangents = list[Array | StructuredTangent]


def samples_jointly(distribution: TangentDistribution) -> bool:
    """Whether a distribution draws its K tangents together."""
    return hasattr(distribution, "sample_together")


def sample_tangents(
    distribution: Any, keys: Array, params: PyTree, splits: Splits = None
) -> Tangents:
    """As many tangents as keys: for each leaf of params an array (K, ...), or another form.

    Raises:
      ValueError: what is sampled does not fit `params`.
    """
    if samples_jointly(distribution):
        drawn = distribution.sample_together(keys[0], params, splits, len(keys))
        return validated_sample(distribution, drawn, params, len(keys))

    def sample(key: Array) -> Tangents:
        return validated_sample(distribution, distribution.sample(key, params, splits), params)

    if len(keys) == 1:
        return jax.tree.map(lambda x: x[None], sample(keys[0]))
    return jax.vmap(sample)(keys)


def check_tangents(tangents: Any) -> None:
    """Raises TypeError unless `tangents` is an object that samples tangents."""
    if isinstance(tangents, type):
        raise TypeError(
            f"tangents must be an object, found the class {tangents.__name__}. "
            f"Make an instance: tangents={tangents.__name__}()."
        )
    if not isinstance(tangents, TangentDistribution):
        raise TypeError(
            "tangents must have a method sample(key, params, splits), such as fwdgrad.Normal(); "
            f"found {tangents!r}."
        )
    try:
        inspect.signature(tangents.sample).bind(None, None, None)
    except TypeError:
        raise TypeError(
            "the sample of tangents must take three arguments, sample(key, params, splits); found "
            f"sample{inspect.signature(tangents.sample)} of {tangents!r}. Add splits, which a "
            "distribution without factors can ignore."
        ) from None
