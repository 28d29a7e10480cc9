"""Whether tangents and guesses fit what they are of: errors that name the leaf, and the remedy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.forms import is_structured
from fwdgrad.util.trees import Array, PyTree


def validated_sample(
    tangents: Any, tangent: PyTree, params: PyTree, number: int | None = None
) -> list[Array | StructuredTangent]:
    """The leaves of the sampled `tangent`; raises ValueError unless they fit those of `params`.

    Args:
      tangents: the distribution that sampled them.
      tangent, params: pytrees.
      number: how many were drawn together, None for one tangent.
    """
    call = "sample(key, params, splits)" if number is None else "sample_together"
    found: Any = jax.tree.structure(tangent, is_leaf=is_structured)
    expected: Any = jax.tree.structure(params)
    if found != expected:
        raise ValueError(
            f"tangents={tangents!r} sampled a tangent of structure {found}; its {call} must "
            f"return the structure of params, {expected}."
        )
    leaves = [
        v if is_structured(v) else jnp.asarray(v)
        for v in jax.tree.leaves(tangent, is_leaf=is_structured)
    ]
    for (path, x), v in zip(jax.tree_util.tree_leaves_with_path(params), leaves, strict=True):
        name = f"params{jax.tree_util.keystr(path)}"
        shape = v.shape
        if isinstance(v, StructuredTangent):
            if shape_error := v.shape_error():
                raise ValueError(f"tangents={tangents!r} sampled for {name} {shape_error}.")
            shape = v.sampled_shape
        wanted = x.shape if number is None else (number, *x.shape)
        if (shape, v.dtype) != (wanted, x.dtype):
            raise ValueError(
                f"tangents={tangents!r} sampled {v.dtype}{list(shape)} for {name}; its {call} must "
                f"return that leaf's shape and dtype, {x.dtype}{list(wanted)}."
            )
    return leaves


def check_guess(found: PyTree, expected: PyTree) -> None:
    """Raises ValueError unless a guess has the structure, shapes and dtypes of an expected one."""
    remedy = "Make it with the guide of the same estimator, for these parameters."
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
    """Raises ValueError unless tangents that were drawn ahead are such as would be drawn now.

    Args:
      found: one for each name.
      expected: the same, of which only shapes and dtypes matter.
      names: of the leaves or values that they are tangents of.
    """
    remedy = "Draw them by the draw of the same estimator, for these parameters."
    if len(found) != len(expected):
        raise ValueError(
            f"key holds tangents drawn ahead for {len(found)} leaves; params has {len(expected)}. "
            f"{remedy}"
        )
    for name, v, wanted in zip(names, found, expected, strict=True):
        if _shapes(v) != _shapes(wanted):
            raise ValueError(
                f"key holds tangents drawn ahead for {name} that are {_described(v)}; they must be "
                f"{_described(wanted)}. {remedy} Of a stack of draws, take one."
            )


def _shapes(tangent: Any) -> Any:
    leaves, structure = jax.tree.flatten(tangent)
    return structure, [(x.shape, x.dtype) for x in leaves]


def _described(tangent: Any) -> str:
    if is_structured(tangent):
        return str(tangent)
    return f"{tangent.dtype}{list(tangent.shape)}"
