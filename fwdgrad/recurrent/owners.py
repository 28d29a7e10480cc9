"""The part of an influence that has one unit of the state for each parameter, its owner."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fwdgrad.recurrent.step import StepAt
from fwdgrad.util.trees import Array, PyTree, extract_leaves, is_differentiable

_Found = tuple[list[Array], list[Array]]  # for each leaf the largest effect yet, and its unit


def find_owners(key: Array, step: StepAt) -> list[Array]:
    """Return for each entry of θ the unit that it moves most in one step, int32 arrays like θ.

    In a layer σ(W s + b) the entries of row i of W, and b_i, move unit i alone. The step is
    evaluated near θ, at a random state, with the input as it is and with a random one: at zero,
    weights have no effect. The owner of an entry without an effect, as of a token that was not the
    input, is filled in if the known owners of its leaf depend on the index of one axis alone. Else
    it is n, which is no unit.
    """
    keys = jax.random.split(key, 3)
    number = step.vector.size
    near = [
        p + 0.1 * jax.random.normal(k, p.shape, p.dtype)
        for k, p in zip(jax.random.split(keys[0], len(step.theta)), step.theta, strict=True)
    ]
    state = jax.random.normal(keys[1], (number,))
    found: _Found = (
        [jnp.zeros(p.shape, step.dtype) for p in near],
        [jnp.full(p.shape, number, jnp.int32) for p in near],
    )
    for x in (step.x, _random(keys[2], step.x)):
        probe = step.at(near, state, x)

        def more(unit: Array, found: _Found, probe: StepAt = probe) -> _Found:
            most, owners = found
            _, rows = probe.pull((jnp.arange(number) == unit)[None].astype(step.dtype))
            sizes = [jnp.abs(row[0]) for row in rows]
            larger = [size > m for size, m in zip(sizes, most, strict=True)]  # false for NaN
            return (
                [jnp.where(x, size, m) for x, size, m in zip(larger, sizes, most, strict=True)],
                [jnp.where(x, unit, owner) for x, owner in zip(larger, owners, strict=True)],
            )

        probe.results()  # outside of the loop
        found = jax.lax.fori_loop(0, number, more, found)
    return [_completed(owner, number) for owner in found[1]]


def _completed(owner: Array, number: int) -> Array:
    """Fill in missing owners along the first axis on whose index alone the known ones depend."""
    for axis in range(owner.ndim):
        others = tuple(i for i in range(owner.ndim) if i != axis)
        known = owner < number
        least = jnp.min(owner, axis=others, keepdims=True)
        most = jnp.max(jnp.where(known, owner, -1), axis=others, keepdims=True)
        decides = jnp.all((least == most) | (most < 0))
        owner = jnp.where(decides & ~known, least, owner)
    return owner


def _random(key: Array, tree: PyTree) -> PyTree:
    """Return normal numbers in the place of the floating leaves."""
    leaves, frame = extract_leaves(tree, is_differentiable)
    keys = jax.random.split(key, max(len(leaves), 1))
    return frame.rebuild(
        [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
    )


def units_that_own(owners: Sequence[Array], number: int) -> Array:
    """Return 1 for each of n units that owns a parameter and else 0, an array (n,)."""
    found = jnp.zeros(number)
    for owner in owners:
        found = found.at[owner.reshape(-1)].set(1, mode="drop")
    return found


def at_owners(vectors: Array, owners: Sequence[Array]) -> list[Array]:
    """Return the entries of vectors (..., n) at the owners, (..., *shape) a leaf; 0 without one."""
    padded = jnp.concatenate([vectors, jnp.zeros_like(vectors[..., :1])], axis=-1)
    return [padded[..., owner] for owner in owners]
