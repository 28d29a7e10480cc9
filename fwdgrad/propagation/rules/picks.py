"""Rules that keep low-rank factors where entries are summed, or rows are looked up.

Both are products with a matrix of zeros and ones, and so keep factors where each axis is one
factor's own.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from fwdgrad.propagation.facts import axes_of
from fwdgrad.propagation.interpreter import Rule
from fwdgrad.propagation.rules.structural import LEAD, linear_in_first, rearranged
from fwdgrad.tangents.factored import Factored
from fwdgrad.util.trees import Array


def _reduce_sum(equation: Any, v: Factored, _: list[Any]) -> list[Factored] | None:
    """Return Σ_i a_i c = (Σ_i a_i) c, along axes on which one factor alone depends."""
    axes = [LEAD + i for i in equation.params["axes"]]
    # Of a symbolic size it is told whether it is 1, and not whether it is more.
    own = [(v.left.shape[i] != 1, v.right.shape[i] != 1) for i in axes]
    if any(all(depend) for depend in own) or equation.params.get("out_sharding") is not None:
        return None
    # Along an axis on which neither depends the sum is of equal numbers: it is left to the left.
    times = 1
    for i, depend in zip(axes, own, strict=True):
        times *= 1 if any(depend) else v.shape[i - LEAD]
    left, right = jnp.sum(v.left, axes) * times, jnp.sum(v.right, axes)
    result = v.replace(left, right, equation.outvars[0].aval.shape)
    return [result] if result.is_compact else None


def _gather(equation: Any, v: Factored, others: list[Any]) -> list[Factored] | None:
    """Look up rows of the factor of the rows, while that of the columns stays."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    looked_up, output = numbers.start_index_map, equation.outvars[0].aval.shape
    is_whole = all(sizes[i] == n for i, n in enumerate(v.shape) if i not in looked_up)
    axes = axes_of(equation, 0)
    if numbers.operand_batching_dims or not is_whole or axes is None:
        return None

    def moves(f: Array) -> bool:
        return any(f.shape[LEAD + i] != 1 for i in looked_up)

    def pick(f: Array) -> Array:
        """Look up entries of a factor that depends on these axes."""
        whole = [v.shape[i] if i in looked_up else n for i, n in enumerate(f.shape)]
        own = tuple(sizes[i] if i in looked_up else n for i, n in enumerate(f.shape))
        # Out of bounds a tangent is zero.
        params = {**equation.params, "slice_sizes": own, "fill_value": 0}
        return primitives.gather_p.bind(jnp.broadcast_to(f, whole), others[0], **params)

    left, right = (v.right, v.left) if moves(v.right) and not moves(v.left) else (v.left, v.right)
    first = jax.vmap(jax.vmap(pick))(left)
    if moves(right):
        second = jax.vmap(jax.vmap(pick))(right)
    else:
        second = rearranged(right, v.shape, axes.of, output)
    result = v.replace(first, second, output)
    return [result] if result.is_compact else None


RULES: dict[str, Rule] = {
    primitives.reduce_sum_p.name: linear_in_first(_reduce_sum),
    primitives.gather_p.name: linear_in_first(_gather),
}
