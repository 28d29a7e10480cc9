"""Rules for primitives that only rearrange or scale: the tangent keeps its factors.

All of them are linear in the operand, so the tangent goes through the same operation; on a
factored tangent it acts on each factor, whose axes of size 1 stay of size 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from fwdgrad.propagation.interpreter import Context, Rule
from fwdgrad.tangents.factored import Factored
from fwdgrad.tangents.forms import Tangent, is_structured
from fwdgrad.util.axes import axis_groups
from fwdgrad.util.jax_internals import bind
from fwdgrad.util.trees import Array

# fun(parameters of the equation, tangent, the other operands) -> tangent of the output
Transform = Callable[[dict[str, Any], Factored, list[Any]], Tangent]


def _of_first_operand(transform: Transform) -> Rule:
    """The rule of a primitive that is linear in its first operand, given the others."""

    def rule(
        context: Context, equation: Any, primals: list[Any], tangents: list[Any]
    ) -> tuple[list[Any], list[Tangent]]:
        tangent = tangents[0]
        if not is_structured(tangent) or any(t is not None for t in tangents[1:]):
            return NotImplemented
        result = transform(equation.params, tangent, primals[1:])
        if result is None:
            return NotImplemented
        context.observe(equation, tangent)
        return bind(equation, primals), [result]

    return rule


def _transpose(params: dict[str, Any], v: Factored, _: list[Any]) -> Factored:
    order = params["permutation"]
    return v.map(lambda f: f.transpose(order), tuple(v.shape[i] for i in order))


def _broadcast(params: dict[str, Any], v: Factored, sizes: list[Any]) -> Factored | None:
    if sizes:  # dynamic shapes
        return None
    shape, axes = params["shape"], params["broadcast_dimensions"]

    def new_axes(f: Array) -> Array:
        kept = dict(zip(axes, f.shape, strict=True))
        return f.reshape([kept.get(i, 1) for i in range(len(shape))])

    return v.map(new_axes, tuple(shape))


def _squeeze(params: dict[str, Any], v: Factored, _: list[Any]) -> Factored:
    removed = {i % len(v.shape) for i in params["dimensions"]}
    shape = tuple(n for i, n in enumerate(v.shape) if i not in removed)
    return v.map(lambda f: lax.squeeze(f, sorted(removed)), shape)


def _reverse(params: dict[str, Any], v: Factored, _: list[Any]) -> Factored:
    return v.map(lambda f: lax.rev(f, params["dimensions"]))


def _vary(params: dict[str, Any], v: Factored, _: list[Any]) -> Factored:
    return v.map(lambda f: lax.pcast(f, params["axes"], to="varying"))


def _slice(params: dict[str, Any], v: Factored, _: list[Any]) -> Factored:
    starts, limits = params["start_indices"], params["limit_indices"]
    return sliced(v, starts, limits, params["strides"] or (1,) * len(starts))


def sliced(
    v: Factored, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int]
) -> Factored:
    """A slice of the tangent, as `lax.slice` takes it."""
    own = list(zip(v.shape, starts, limits, strides, strict=True))

    def cut(f: Array) -> Array:
        return f[
            tuple(
                slice(None) if n == 1 != size else slice(start, limit, stride)
                for n, (size, start, limit, stride) in zip(f.shape, own, strict=True)
            )
        ]

    return v.map(cut, tuple(-(-(limit - start) // stride) for _, start, limit, stride in own))


def _dynamic_slice(params: dict[str, Any], v: Factored, starts: list[Any]) -> Factored:
    sizes = params["slice_sizes"]

    def cut(f: Array) -> Array:
        whole = [n == 1 != size for n, size in zip(f.shape, v.shape, strict=True)]
        own = [jnp.zeros_like(s) if w else s for w, s in zip(whole, starts, strict=True)]
        # The primitive, which clamps a start out of bounds: `lax.dynamic_slice` counts a negative
        # one from the end.
        return primitives.dynamic_slice_p.bind(
            f, *own, slice_sizes=tuple(1 if w else n for w, n in zip(whole, sizes, strict=True))
        )

    return v.map(cut, tuple(sizes))


def _reshape(params: dict[str, Any], v: Factored, sizes: list[Any]) -> Factored | None:
    new_shape = params["new_sizes"]
    if sizes or params.get("dimensions") is not None or 0 in v.shape:
        return None
    groups = axis_groups(v.shape, new_shape)

    def regroup(f: Array) -> Array:
        # Along axes that are merged or split, a factor is either constant, all 1, and stays so,
        # or has to be of full size along each of them.
        full, result = list(f.shape), [1] * len(new_shape)
        for old, new in groups:
            if any(f.shape[i] != 1 for i in old):
                for i in old:
                    full[i] = v.shape[i]
                for j in new:
                    result[j] = new_shape[j]
        return jnp.broadcast_to(f, full).reshape(result)

    result = v.map(regroup, tuple(new_shape))
    return result if result.is_compact else None


def _tile(params: dict[str, Any], v: Factored, _: list[Any]) -> Factored:
    reps = params["reps"]

    def repeat(f: Array) -> Array:
        own = zip(f.shape, v.shape, reps, strict=True)
        return jnp.tile(f, [n if size == whole != 1 else 1 for size, whole, n in own])

    return v.map(repeat, tuple(n * size for n, size in zip(reps, v.shape, strict=True)))


def _convert(params: dict[str, Any], v: Factored, _: list[Any]) -> Factored | None:
    dtype = params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    return v.map(lambda f: f.astype(dtype))


def _same(params: dict[str, Any], v: Factored, _: list[Any]) -> Factored:
    return v


def _negate(params: dict[str, Any], v: Factored, _: list[Any]) -> Factored:
    return v.replace(-v.left, v.right)


def _divide(params: dict[str, Any], v: Factored, divisors: list[Any]) -> Factored | None:
    (divisor,) = divisors
    return v.replace(v.left / divisor, v.right) if jnp.shape(divisor) == () else None


def _pad(params: dict[str, Any], v: Factored, _: list[Any]) -> Factored:
    return padded(v, params["padding_config"])


def padded(v: Factored, config: Sequence[tuple[int, int, int]]) -> Factored:
    """The tangent with zeros around it.

    Every factor that depends on a padded axis is padded along it; where none does, the left one
    is written out along it first.
    """
    n = len(v.shape)
    padded = [i for i in range(n) if config[i] != (0, 0, 0)]

    def depends(f: Array) -> set[int]:
        return {i for i in padded if f.shape[i - n] == v.shape[i]}

    def pad(f: Array, axes: set[int]) -> Array:
        lead = f.shape[:-n]
        own = [v.shape[i] if i in axes else f.shape[i - n] for i in range(n)]
        widths = [config[i] if i in axes else (0, 0, 0) for i in range(n)]
        return lax.pad(
            jnp.broadcast_to(f, (*lead, *own)),
            jnp.zeros((), f.dtype),
            [*[(0, 0, 0)] * len(lead), *widths],
        )

    of_left, of_right = depends(v.left), depends(v.right)
    of_left |= set(padded) - of_right
    shape = tuple(
        low + high + m + max(m - 1, 0) * inner
        for m, (low, high, inner) in zip(v.shape, config, strict=True)
    )
    return v.replace(pad(v.left, of_left), pad(v.right, of_right), shape)


def _multiply(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> tuple[list[Any], list[Tangent]]:
    """A product with one number, on either side of it."""
    pairs = list(zip(primals, tangents, strict=True))
    for (number, its_tangent), (_, v) in (pairs, pairs[::-1]):
        if its_tangent is None and is_structured(v) and jnp.shape(number) == ():
            context.observe(equation, v)
            return bind(equation, primals), [v.replace(v.left * number, v.right)]
    return NotImplemented


def _barrier(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> tuple[list[Any], list[Tangent]]:
    """Values go on as they are, each with the tangent that it has."""
    for v in tangents:
        if is_structured(v):
            context.observe(equation, v)
    return bind(equation, primals), list(tangents)


def _stop_gradient(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> tuple[list[Any], list[Tangent]]:
    return bind(equation, primals), [None]


# These ask for no form, and may be given several.
OF_ANY_FORM: dict[str, Rule] = {
    primitives.stop_gradient_p.name: _stop_gradient,
    "optimization_barrier": _barrier,  # not among the public primitives, nor are some below
}
RULES: dict[str, Rule] = {
    primitives.transpose_p.name: _of_first_operand(_transpose),
    primitives.broadcast_in_dim_p.name: _of_first_operand(_broadcast),
    primitives.squeeze_p.name: _of_first_operand(_squeeze),
    primitives.rev_p.name: _of_first_operand(_reverse),
    primitives.slice_p.name: _of_first_operand(_slice),
    primitives.dynamic_slice_p.name: _of_first_operand(_dynamic_slice),
    primitives.reshape_p.name: _of_first_operand(_reshape),
    primitives.convert_element_type_p.name: _of_first_operand(_convert),
    primitives.copy_p.name: _of_first_operand(_same),
    primitives.name_p.name: _of_first_operand(_same),
    primitives.neg_p.name: _of_first_operand(_negate),
    primitives.div_p.name: _of_first_operand(_divide),
    primitives.pad_p.name: _of_first_operand(_pad),
    "tile": _of_first_operand(_tile),
    primitives.mul_p.name: _multiply,
    "pvary": _of_first_operand(_vary),
    "xla_metadata_value": _of_first_operand(_same),
    primitives.sharding_constraint_p.name: _of_first_operand(_same),
}
