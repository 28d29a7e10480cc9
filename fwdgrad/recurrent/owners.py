"""The part of an influence that has one unit of the state for each parameter."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fwdgrad.recurrent.step import StepAt
from fwdgrad.util.trees import Array, PyTree, extract_leaves, is_differentiable

_Found = tuple[list[Array], list[Array]]  # for each leaf the largest effect yet, and its unit


def find_owners(key: Array, step: StepAt) -> list[Array]:
    """Return for each entry of θ the unit that it moves most in one step, int32 arrays like θ.

    In a layer σ(W s + b) the entries of row i of W, and b_i, move unit i alone. The step is
    evaluated at a random state and a random input: at zero weights have no effect.
    """
    of_state, of_input = jax.random.split(key)
    number = step.vector.size
    step = step.at_state(jax.random.normal(of_state, (number,)), _random(of_input, step.x))

    def more(unit: Array, found: _Found) -> _Found:
        most, owners = found
        _, rows = step.pull((jnp.arange(number) == unit)[None].astype(step.dtype))
        sizes = [jnp.abs(row[0]) for row in rows]
        larger = [size > m for size, m in zip(sizes, most, strict=True)]  # false for NaN
        return (
            [jnp.where(x, size, m) for x, size, m in zip(larger, sizes, most, strict=True)],
            [jnp.where(x, unit, owner) for x, owner in zip(larger, owners, strict=True)],
        )

    zeros = [jnp.zeros(p.shape, step.dtype) for p in step.theta]
    owners = [jnp.zeros(p.shape, jnp.int32) for p in step.theta]
    found: _Found = jax.lax.fori_loop(0, number, more, (zeros, owners))
    return found[1]


def _random(key: Array, tree: PyTree) -> PyTree:
    """Return normal numbers in the place of the floating leaves."""
    leaves, frame = extract_leaves(tree, is_differentiable)
    keys = jax.random.split(key, max(len(leaves), 1))
    return frame.rebuild(
        [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
    )


def at_owners(vectors: Array, owners: Sequence[Array]) -> list[Array]:
    """Return the entries of vectors (..., n) at the owners, (..., *shape) for each leaf."""
    return [vectors[..., owner] for owner in owners]


def immediate(step: StepAt, owners: Sequence[Array]) -> list[Array]:
    """Return ∂s'/∂θ at the owners: exact where a parameter moves no other owner of parameters."""
    is_owner = jnp.zeros(step.vector.size, step.dtype)
    for owner in owners:
        is_owner = is_owner.at[owner.reshape(-1)].set(1)
    _, rows = step.pull(is_owner[None])
    return [row[0] for row in rows]
