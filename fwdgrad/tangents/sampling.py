"""Sampling of the K tangents of an estimate, one by one or jointly."""

import inspect
from typing import Any

import jax

from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.independent import Splits, TangentDistribution
from fwdgrad.tangents.validation import validated_sample
from fwdgrad.util.trees import Array, PyTree

Tangents = list[Array | StructuredTangent]


def samples_jointly(distribution: TangentDistribution) -> bool:
    """Return True for a distribution whose K tangents depend on each other."""
    return hasattr(distribution, "sample_together")


def sample_tangents(
    distribution: Any, keys: Array, params: PyTree, splits: Splits = None
) -> Tangents:
    """Sample K tangents, one for each key: for each leaf an array (K, *shape) or a structured form.

    A joint distribution uses the first key alone.

    Args:
      distribution: a `TangentDistribution`.
      keys: (K,) PRNG keys.
      params: a pytree of arrays.
      splits: for each leaf the axes of its matrix, or None.

    Raises:
      TypeError, ValueError: a sample does not match `params` (`validated_sample`).
    """
    if samples_jointly(distribution):
        sampled = distribution.sample_together(keys[0], params, splits, len(keys))
        return validated_sample(distribution, sampled, params, len(keys))

    def sample(key: Array) -> Tangents:
        return validated_sample(distribution, distribution.sample(key, params, splits), params)

    if len(keys) == 1:
        return jax.tree.map(lambda x: x[None], sample(keys[0]))
    return jax.vmap(sample)(keys)


def check_tangents(tangents: Any) -> None:
    """Raise TypeError unless `tangents` is an object with a method sample(key, params, splits)."""
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
