"""Which equations are linear in their operands, and in which of them together.

What a value that is linear in parameters goes through, and stays it: rearrangements, sums, and
products with what is held. Whether data is in it, so that it is a layer's output and not a weight,
decides where it may go on.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives

from fwdgrad.util.jax_internals import jax_name

_LINEAR_IN_FIRST = {
    p.name
    for p in (
        primitives.transpose_p, primitives.reshape_p, primitives.broadcast_in_dim_p,
        primitives.squeeze_p, primitives.rev_p, primitives.slice_p, primitives.dynamic_slice_p,
        primitives.gather_p, primitives.convert_element_type_p, primitives.copy_p,
        primitives.name_p, primitives.neg_p, primitives.div_p, primitives.reduce_sum_p,
        primitives.device_put_p,
        primitives.cumsum_p, primitives.reduce_window_sum_p, primitives.sharding_constraint_p,
    )
} | {"split", "unstack", "tile", "xla_metadata_value", "pvary"}  # fmt: skip
_LINEAR_IN_ALL = {
    p.name
    for p in (
        primitives.add_p, primitives.sub_p, primitives.add_jaxvals_p, primitives.concatenate_p,
        primitives.pad_p,
    )
} | {"stack"}  # fmt: skip
_JOINING = {primitives.concatenate_p.name, primitives.pad_p.name, "stack"}
_SCALING = {primitives.mul_p.name}
PRODUCTS = {primitives.dot_general_p.name, primitives.conv_general_dilated_p.name}
BILINEAR = PRODUCTS | _SCALING


def linear_operands(equation: Any, has_data: Sequence[bool | None]) -> list[int]:
    """The positions of the operands in which an equation is linear, jointly, all else held.

    Args:
      equation: of a jaxpr without calls.
      has_data: of each operand None, if it is not linear in parameters, or whether data is in it.
    """
    name = jax_name(equation)
    given = {i: x for i, x in enumerate(has_data) if x is not None}
    if not given:
        return []
    if name in _LINEAR_IN_FIRST:
        floating = all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in equation.outvars)
        return [0] if 0 in given and floating else []
    if name in _LINEAR_IN_ALL:
        # Beside a layer's output a held array would get noise for nothing: the site is before it.
        joined = name in _JOINING and len(given) < len(equation.invars)
        return [] if joined and any(given.values()) else list(given)
    if name in BILINEAR:
        if len(given) == 1:  # a layer's output times something fixed is one more layer
            return [] if any(given.values()) and name not in _SCALING else list(given)
        # Of two weights the larger stays linear; of a layer's output and a weight, the weight.
        if all(given.values()):
            return []
        sizes = {i: -1 if x else equation.invars[i].aval.size for i, x in given.items()}
        return [max(sizes, key=lambda i: sizes[i])]
    return []
