"""Rules for sums and lookups: the tangent keeps its factors where each axis is one factor's own."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from fwdgrad.propagation.interpreter import Context, Rule
from fwdgrad.tangents.forms import is_structured
from fwdgrad.util.jax_internals import bind
from fwdgrad.util.trees import Array


def _reduce_sum(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
    """Σ_i a_i c = (Σ_i a_i) c, along axes on which one factor alone depends."""
    (v,) = tangents
    axes = equation.params["axes"]
    if not is_structured(v) or equation.params.get("out_sharding") is not None:
        return NotImplemented
    lead = v.left.ndim - len(v.shape)
    # Of a symbolic size it is told whether it is 1, and not whether it is more.
    own = [(v.left.shape[lead + i] != 1, v.right.shape[lead + i] != 1) for i in axes]
    if any(left and right for left, right in own) or 0 in v.shape:
        return NotImplemented
    # Along an axis on which neither depends the sum is of equal numbers: it is left to the left.
    times = 1
    for i, depends in zip(axes, own, strict=True):
        times *= 1 if any(depends) else v.shape[i]
    shape = tuple(n for i, n in enumerate(v.shape) if i not in axes)
    result = v.map(lambda f: jnp.sum(f, axes), shape)
    result = result.replace(result.left * times, result.right)
    if not result.is_compact:
        return NotImplemented
    context.observe(equation, v)
    return bind(equation, primals), [result]


def _gather(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
    """Rows that are looked up: of the factor of the rows, while that of the columns stays."""
    v, of_indices = tangents
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    looked_up = numbers.start_index_map
    if (
        not is_structured(v)
        or 0 in v.shape
        or of_indices is not None
        or numbers.operand_batching_dims
        or any(sizes[i] != n for i, n in enumerate(v.shape) if i not in looked_up)
    ):
        return NotImplemented
    lead = v.left.ndim - len(v.shape)

    def moves(f: Array) -> bool:
        return any(f.shape[lead + i] != 1 for i in looked_up)

    left, right = v.left, v.right
    if not moves(left) and moves(right):
        left, right = right, left
    output = equation.outvars[0].aval.shape

    def pick(f: Array) -> Array:
        """From a factor that depends on the axes of which entries are looked up."""
        whole = [v.shape[i] if i in looked_up else n for i, n in enumerate(f.shape)]
        own = tuple(sizes[i] if i in looked_up else n for i, n in enumerate(f.shape))
        # Out of bounds a tangent is zero.
        params = {**equation.params, "slice_sizes": own, "fill_value": 0}
        return primitives.gather_p.bind(jnp.broadcast_to(f, whole), primals[1], **params)

    def stay(f: Array) -> Array:
        """From one that does not: with axes of size 1 in the place of the others."""
        kept = [n for i, n in enumerate(f.shape) if i not in numbers.collapsed_slice_dims]
        new = [1] * len(output)
        for axis, n in zip(numbers.offset_dims, kept, strict=True):
            new[axis] = n
        return f.reshape(new)

    first = jax.vmap(jax.vmap(pick))(left)
    result = v.replace(first, jax.vmap(jax.vmap(pick if moves(right) else stay))(right), output)
    if not result.is_compact:
        return NotImplemented
    context.observe(equation, v)
    return bind(equation, primals), [result]


RULES: dict[str, Rule] = {
    primitives.reduce_sum_p.name: _reduce_sum,
    primitives.gather_p.name: _gather,
}
