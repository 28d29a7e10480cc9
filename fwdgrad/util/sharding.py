"""Arrays on several devices: estimates in `jax.shard_map` and on meshes with explicit axes.

In `jax.shard_map` (with `check_vma=True`, the default) the type of an array lists the mesh axes
along which the array may differ by device. Tangents differ by device where their key does, so
parameters are cast to the varying type of the key. A gradient has the type of its parameter again:
for a parameter that devices share, the gradient is the sum over the devices. Reverse mode does the
same by transposing the cast.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from fwdgrad.util.tracers import varying_axes_of
from fwdgrad.util.trees import Array, PyTree


def has_explicit_axes() -> bool:
    """Return True on a mesh with explicit axes (`AxisType.Explicit`), where reshapes may fail."""
    return jax.sharding.AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def varying_axes(array_type: Any) -> frozenset[str]:
    """Return the `shard_map` axes along which arrays of a type, `jax.typeof(x)`, vary by device."""
    if jax.sharding.AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return frozenset()  # outside of shard_map
    return varying_axes_of(array_type)


def varying_as(tree: PyTree, like: PyTree) -> PyTree:
    """Cast the arrays of a pytree to vary by device along every axis along which `like` varies."""
    axes: frozenset[str] = frozenset().union(
        *(varying_axes(jax.typeof(x)) for x in jax.tree.leaves(like))
    )

    def cast(x: Array) -> Array:
        missing = axes - varying_axes(jax.typeof(x))
        return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x

    return jax.tree.map(cast, tree)


def check_keys_per_device(key: Array, leaves: Sequence[Array], names: Sequence[str]) -> None:
    """Raise ValueError unless the key varies by device along every axis along which a leaf varies.

    With one key, shards of equal shapes would get equal tangents, and the estimate a bias.

    Args:
      key: the key of the estimate.
      leaves: the parameters.
      names: their names, for the message.
    """
    known = varying_axes(jax.typeof(key))
    for name, leaf in zip(names, leaves, strict=True):
        if missing := sorted(varying_axes(jax.typeof(leaf)) - known):
            raise ValueError(
                f"{name} varies by device along the mesh axis {missing[0]!r} and key does not, so "
                "all devices would draw the same tangents. Give each device a key of its own, "
                f"jax.random.fold_in(key, jax.lax.axis_index({missing[0]!r}))."
            )


def as_gradient(
    cotangent: Array,
    parameter: Array,
    over_devices: Callable[[Array, tuple[str, ...]], Array] = jax.lax.psum,
) -> Array:
    """Return a cotangent with the dtype and the sharding of its parameter.

    Args:
      cotangent: of the shape of the parameter; each device has its own part of the sum.
      parameter: the array whose gradient this is.
      over_devices: (array, axes) -> array, combines the parts if devices share the parameter.
    """
    cotangent = cotangent.astype(parameter.dtype)
    of_parameter = jax.typeof(parameter)
    if axes := varying_axes(jax.typeof(cotangent)) - varying_axes(of_parameter):
        cotangent = over_devices(cotangent, tuple(sorted(axes)))
    if has_explicit_axes():
        cotangent = jax.sharding.reshard(cotangent, of_parameter.sharding.spec)
    return cotangent
