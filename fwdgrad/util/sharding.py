"""Arrays on several devices: what meshes of explicit axes and `jax.shard_map` ask of an estimator.

In `jax.shard_map` (with `check_vma=True`, as it is if nothing is said) the type of an array has the
axes of the mesh along which it may differ among devices. Tangents do so where their key does, so
the parameters they are tangents of have to be cast to that; and a gradient has the type of its
parameter again, which for one that devices share is the sum of what each has found. Reverse mode
does the same, by transposing the cast.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from fwdgrad.util.jax_internals import varying_axes_of
from fwdgrad.util.trees import Array, PyTree


def has_explicit_axes() -> bool:
    """Whether arrays may be sharded by type (`AxisType.Explicit`): not every reshape is legal."""
    return jax.sharding.AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def varying_axes(kind: Any) -> frozenset[str]:
    """The axes of `shard_map` along which arrays of a type, `jax.typeof(x)`, differ by device."""
    if jax.sharding.AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return frozenset()  # outside of shard_map
    return varying_axes_of(kind)


def varying_as(tree: PyTree, like: PyTree) -> PyTree:
    """The arrays of a tree with types that may differ by device where any array of `like` does."""
    axes: frozenset[str] = frozenset().union(
        *(varying_axes(jax.typeof(x)) for x in jax.tree.leaves(like))
    )

    def cast(x: Array) -> Array:
        missing = axes - varying_axes(jax.typeof(x))
        return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x

    return jax.tree.map(cast, tree)


def check_keys_per_device(key: Array, leaves: Sequence[Array], names: Sequence[str]) -> None:
    """Raises ValueError unless devices whose parameters differ have keys that do.

    With one key shards of equal shapes would get equal tangents, and the estimate a bias.
    """
    known = varying_axes(jax.typeof(key))
    for name, leaf in zip(names, leaves, strict=True):
        if missing := sorted(varying_axes(jax.typeof(leaf)) - known):
            raise ValueError(
                f"{name} differs among devices along {missing[0]!r}, "
                "by its type, and key does not, so that all would draw the same; give each device "
                f"a key of its own, jax.random.fold_in(key, jax.lax.axis_index({missing[0]!r}))."
            )


def as_gradient(
    cotangent: Array,
    parameter: Array,
    over_devices: Callable[[Array, tuple[str, ...]], Array] = jax.lax.psum,
) -> Array:
    """The cotangent with the dtype and the sharding of a parameter.

    If devices share the parameter, what they have found is put together, by a sum if nothing else
    is said.
    """
    cotangent = cotangent.astype(parameter.dtype)
    kind = jax.typeof(parameter)
    if axes := varying_axes(jax.typeof(cotangent)) - varying_axes(kind):
        cotangent = over_devices(cotangent, tuple(sorted(axes)))
    if has_explicit_axes():
        cotangent = jax.sharding.reshard(cotangent, kind.sharding.spec)
    return cotangent
