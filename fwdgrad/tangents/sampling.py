"""Sampling of the K tangents of an estimate, and validation of samples and guesses."""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.forms import is_structured
from fwdgrad.tangents.independent import Splits, TangentDistribution
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


def validated_sample(
    distribution: Any, sample: PyTree, params: PyTree, num_tangents: int | None = None
) -> list[Array | StructuredTangent]:
    """Return the leaves of a sample if structure, shapes and dtypes are those of `params`.

    Args:
      distribution: the distribution that returned the sample, for messages.
      sample: a pytree of tangents.
      params: a pytree of arrays.
      num_tangents: K of a joint sample, whose leaves have an axis K in front; None for one tangent.

    Raises:
      TypeError: a leaf is of a class that is not registered as a pytree.
      ValueError: a leaf or the structure is not that of `params`.
    """
    call = "sample(key, params, splits)" if num_tangents is None else "sample_together"
    found: Any = jax.tree.structure(sample, is_leaf=is_structured)
    expected: Any = jax.tree.structure(params)
    if found != expected:
        raise ValueError(
            f"tangents={distribution!r} sampled a tangent of structure {found}; its {call} must "
            f"return the structure of params, {expected}."
        )
    leaves = [
        v if is_structured(v) else jnp.asarray(v)
        for v in jax.tree.leaves(sample, is_leaf=is_structured)
    ]
    for (path, x), v in zip(jax.tree_util.tree_leaves_with_path(params), leaves, strict=True):
        name = f"params{jax.tree_util.keystr(path)}"
        shape = v.shape
        if isinstance(v, StructuredTangent):
            shape = _shape_of_structured(
                v, f"tangents={distribution!r} sampled for {name}", num_tangents
            )
        wanted = x.shape if num_tangents is None else (num_tangents, *x.shape)
        if (shape, v.dtype) != (wanted, x.dtype):
            raise ValueError(
                f"tangents={distribution!r} sampled {v.dtype}{list(shape)} for {name}; its {call} "
                f"must return that leaf's shape and dtype, {x.dtype}{list(wanted)}."
            )
    return leaves


def _shape_of_structured(
    tangent: StructuredTangent, source: str, num_tangents: int | None
) -> tuple[int, ...]:
    """Return the shape of a structured sample, with an axis K in front if it is a joint sample.

    Raises:
      TypeError: its class is not registered as a pytree.
      ValueError: its parts do not fit each other.
    """
    if jax.tree_util.all_leaves([tangent]):
        name = type(tangent).__name__
        raise TypeError(
            f"{source} a {name}, a form that is not registered as a pytree. Register the class "
            f"{name}, for instance by jax.tree_util.register_dataclass."
        )
    if num_tangents is None:  # add the axis of K, without computing anything
        tangent = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), tangent)
    if error := tangent.shape_error():
        raise ValueError(f"{source} {error}.")
    shape = tuple(tangent.shape)
    return shape if num_tangents is None else (tangent.num_tangents, *shape)


def check_guess(found: PyTree, expected: PyTree) -> None:
    """Raise ValueError unless a guess has the structure, shapes and dtypes of the expected one."""
    remedy = "Make it with the init of the same estimator, for these parameters."
    structures: list[Any] = [jax.tree.structure(x) for x in (found, expected)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"the guess of params has the structure {structures[0]}; it must be {structures[1]}. "
            f"{remedy}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, x), wanted in pairs:
        if (jnp.shape(x), jnp.result_type(x)) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"guess{jax.tree_util.keystr(path)} is {jnp.result_type(x)}{list(jnp.shape(x))}; "
                f"it must be {wanted.dtype}{list(wanted.shape)}. {remedy}"
            )


def check_drawn(found: Sequence[Any], expected: Sequence[Any], names: Sequence[str]) -> None:
    """Raise ValueError unless tangents drawn ahead have the forms, shapes and dtypes of new ones.

    Args:
      found: the tangents drawn ahead, one for each name.
      expected: newly drawn tangents, or their `jax.ShapeDtypeStruct`.
      names: the leaves or values whose tangents these are, for messages.
    """
    remedy = "Draw them by the draw of the same estimator, for these parameters."
    if len(found) != len(expected):
        raise ValueError(
            f"drawn holds tangents for {len(found)} leaves; params has {len(expected)}. {remedy}"
        )
    for name, v, wanted in zip(names, found, expected, strict=True):
        if _shapes(v) != _shapes(wanted):
            raise ValueError(
                f"drawn holds tangents for {name} that are {_described(v)}; they must be "
                f"{_described(wanted)}. {remedy} If drawn holds a stack of draws, take one of them."
            )


def _shapes(tangent: Any) -> Any:
    """Return form, shapes and dtypes of a tangent."""
    leaves, structure = jax.tree.flatten(tangent)
    return structure, [(x.shape, x.dtype) for x in leaves]


def _described(tangent: Any) -> str:
    """Return dtype, shape and form of a tangent as text."""
    if is_structured(tangent):
        return str(tangent)
    return f"{tangent.dtype}{list(tangent.shape)}"
