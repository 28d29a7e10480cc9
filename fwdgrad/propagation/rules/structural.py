"""Rules that keep low-rank factors where entries are moved, picked, scaled or added.

All are linear, so a tangent goes through the same operation. It acts on each factor along the axes
on which the factor depends, and leaves those along which the factor has size 1. A whole of several
parts is their sum, each in its place among zeros, so ranks add up.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from fwdgrad.propagation.facts import axes_of
from fwdgrad.propagation.interpreter import Context, Rule
from fwdgrad.tangents.factored import Factored, stack_factors
from fwdgrad.tangents.forms import add, is_structured
from fwdgrad.util.jax_internals import bind
from fwdgrad.util.trees import Array

LEAD = 2  # axes of a factor before those of the array: K tangents, rank
_UNPADDED = (0, 0, 0)

# fun(equation, tangent of the first operand, the other operands) -> tangents of the outputs; None
# if they have no factors, or none that are smaller than the array.
Transform = Callable[[Any, Factored, list[Any]], Sequence[Factored] | None]
# fun(equation, primals, tangents) -> tangent of the output, or NotImplemented.
Sum = Callable[[Any, list[Any], list[Any]], Any]


def linear_in_first(transform: Transform) -> Rule:
    """Return the rule of a primitive that is linear in its first operand, the others held."""

    def rule(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
        tangent = tangents[0]
        if not is_structured(tangent) or any(t is not None for t in tangents[1:]):
            return NotImplemented
        results = transform(equation, tangent, primals[1:])
        if results is None:
            return NotImplemented
        context.observe(equation, tangent)
        return bind(equation, primals), list(results)

    return rule


def _linear_in_all(sum_of: Sum) -> Rule:
    """Return the rule of a primitive that is linear in all operands together."""

    def rule(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
        parts = [v for v in tangents if is_structured(v)]
        if len(parts) < sum(v is not None for v in tangents):
            return NotImplemented
        result = sum_of(equation, primals, tangents)
        if result is NotImplemented:
            return NotImplemented
        for v in parts:
            if is_structured(result):
                context.observe(equation, v)
            else:
                reason = "the factors of the whole would be no smaller than the array"
                context.observe_loss(equation, v, reason)
        return bind(equation, primals), [result]

    return rule


def _each(fun: Callable[[Any, Array], Array]) -> Transform:
    """Return the transform that applies a function of an equation to both factors."""
    return lambda equation, v, _: [v.replace(fun(equation, v.left), fun(equation, v.right))]


def _rearrange(equation: Any, v: Factored, _: list[Any]) -> list[Factored] | None:
    shape = equation.outvars[0].aval.shape
    if (axes := axes_of(equation, 0)) is None:
        return None
    left, right = (rearranged(f, v.shape, axes.of, shape) for f in (v.left, v.right))
    return [v.replace(left, right, shape)]


def rearranged(
    f: Array, shape: Sequence[int], of: Sequence[Sequence[int]], new_shape: Sequence[int]
) -> Array:
    """Return a factor with its axes in the places of the output's; `of` is that of `Axes`.

    Along axes that are merged or split, a factor is either constant, all 1, and stays so, or has to
    be of full size along each of them.
    """
    full, result = list(f.shape[LEAD:]), [1] * len(of)
    for j, own in enumerate(of):
        if any(f.shape[LEAD + i] != 1 for i in own):
            result[j] = new_shape[j]
            for i in own:
                full[i] = shape[i]
    kept = [i for own in of for i in own]
    order = [LEAD + i for i in dict.fromkeys((*kept, *range(len(shape))))]
    f = jnp.broadcast_to(f, (*f.shape[:LEAD], *full))
    if order != sorted(order):
        f = lax.transpose(f, (*range(LEAD), *order))
    return f.reshape(*f.shape[:LEAD], *result)


def _reshape(equation: Any, v: Factored, others: list[Any]) -> list[Factored] | None:
    results = _rearrange(equation, v, others)
    return results if results and results[0].is_compact else None


def _convert(equation: Any, v: Factored, _: list[Any]) -> list[Factored] | None:
    dtype = equation.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    return [v.replace(v.left.astype(dtype), v.right.astype(dtype))]


def _sliced(
    v: Factored, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int] | None = None
) -> Factored:
    """Return a slice of the tangent, as `lax.slice` takes it."""
    own = list(zip(v.shape, starts, limits, strides or [1] * len(v.shape), strict=True))

    def cut(f: Array) -> Array:
        sizes = f.shape[LEAD:]
        of = [
            (0, 1, 1) if n == 1 != each[0] else each[1:] for n, each in zip(sizes, own, strict=True)
        ]
        bounds = [*((0, n, 1) for n in f.shape[:LEAD]), *of]
        return lax.slice(f, *zip(*bounds, strict=True))

    shape = tuple(-(-(limit - start) // stride) for _, start, limit, stride in own)
    return v.replace(cut(v.left), cut(v.right), shape)


def _slice(equation: Any, v: Factored, _: list[Any]) -> list[Factored]:
    params = equation.params
    return [_sliced(v, params["start_indices"], params["limit_indices"], params["strides"])]


def _split(equation: Any, v: Factored, _: list[Any]) -> list[Factored]:
    starts, limits, axis = [0] * len(v.shape), list(v.shape), equation.params["axis"]
    results = []
    for size in equation.params["sizes"]:
        limits[axis] = starts[axis] + size
        results.append(_sliced(v, starts, limits))
        starts[axis] = limits[axis]
    return results


def _unstack(equation: Any, v: Factored, _: list[Any]) -> list[Factored]:
    axis = LEAD + equation.params["axis"]

    def part(f: Array, index: int) -> Array:
        return lax.index_in_dim(f, index if f.shape[axis] != 1 else 0, axis, keepdims=False)

    shape = equation.outvars[0].aval.shape
    return [
        v.replace(part(v.left, i), part(v.right, i), shape) for i in range(len(equation.outvars))
    ]


def _dynamic_slice(equation: Any, v: Factored, starts: list[Any]) -> list[Factored]:
    sizes, zero = equation.params["slice_sizes"], jnp.zeros_like(starts[0])

    def cut(f: Array) -> Array:
        whole = [n == 1 != size for n, size in zip(f.shape[LEAD:], v.shape, strict=True)]
        own = [zero if w else s for w, s in zip(whole, starts, strict=True)]
        lengths = (1 if w else n for w, n in zip(whole, sizes, strict=True))
        # The primitive, which clamps a start out of bounds: `lax.dynamic_slice` counts a negative
        # one from the end.
        return primitives.dynamic_slice_p.bind(
            f, *[zero] * LEAD, *own, slice_sizes=(*f.shape[:LEAD], *lengths)
        )

    return [v.replace(cut(v.left), cut(v.right), tuple(sizes))]


def _tile(equation: Any, v: Factored, _: list[Any]) -> list[Factored]:
    reps = equation.params["reps"]

    def repeat(f: Array) -> Array:
        own = zip(f.shape[LEAD:], v.shape, reps, strict=True)
        return jnp.tile(f, [*[1] * LEAD, *(n if m == size != 1 else 1 for m, size, n in own)])

    return [v.replace(repeat(v.left), repeat(v.right), equation.outvars[0].aval.shape)]


def _pad(equation: Any, v: Factored, _: list[Any]) -> list[Factored]:
    return [_padded(v, equation.params["padding_config"], equation.outvars[0].aval.shape)]


def _padded(
    v: Factored, config: Sequence[tuple[int, int, int]], shape: tuple[int, ...]
) -> Factored:
    """Return the tangent with zeros around it.

    Every factor that depends on a padded axis is padded along it; where none does, the left one is
    materialised along it first.
    """
    padded = {i for i, widths in enumerate(config) if widths != _UNPADDED}
    of_left, of_right = (
        {i for i in padded if f.shape[LEAD + i] == v.shape[i]} for f in (v.left, v.right)
    )

    def pad(f: Array, own: set[int]) -> Array:
        full = [v.shape[i] if i in own else n for i, n in enumerate(f.shape[LEAD:])]
        widths = [config[i] if i in own else _UNPADDED for i in range(len(full))]
        f = jnp.broadcast_to(f, (*f.shape[:LEAD], *full))
        return lax.pad(f, jnp.zeros((), f.dtype), [*[_UNPADDED] * LEAD, *widths])

    return v.replace(pad(v.left, of_left | (padded - of_right)), pad(v.right, of_right), shape)


def _concatenate(equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
    shape, axis = equation.outvars[0].aval.shape, equation.params["dimension"]
    start, result = 0, None
    for x, v in zip(primals, tangents, strict=True):
        if v is not None:
            config = [_UNPADDED] * len(shape)
            config[axis] = (start, shape[axis] - start - x.shape[axis], 0)
            result = add(result, _padded(v, config, shape))
        start += x.shape[axis]
    return result


def _stack(equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
    return stack_factors(tangents, equation.params["axis"], equation.outvars[0].aval.shape)


def _sum(equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
    """Add factored tangents, or subtract them; a constant has none."""
    shape = equation.outvars[0].aval.shape
    if any(v is not None and v.shape != shape for v in tangents):
        return NotImplemented
    first, second = tangents
    if equation.primitive is primitives.sub_p and second is not None:
        second = second.replace(-second.left, second.right)
    return add(first, second)


def _scale(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
    """Multiply by one number, on either side, or divide by one."""
    position = 0 if tangents[1] is None else 1
    number, v = primals[1 - position], tangents[position]
    if tangents[1 - position] is not None or not is_structured(v) or jnp.shape(number) != ():
        return NotImplemented
    if equation.primitive is primitives.mul_p:
        left = v.left * number
    elif position == 0:
        left = v.left / number
    else:
        return NotImplemented
    context.observe(equation, v)
    return bind(equation, primals), [v.replace(left, v.right)]


def _barrier(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
    """Return the values as they are, each with its tangent."""
    for v in filter(is_structured, tangents):
        context.observe(equation, v)
    return bind(equation, primals), list(tangents)


def _stop_gradient(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
    return bind(equation, primals), [None]


# These ask for no form, and may be given several.
OF_ANY_FORM: dict[str, Rule] = {
    primitives.stop_gradient_p.name: _stop_gradient,
    "optimization_barrier": _barrier,
}
_TRANSFORMS: dict[str, Transform] = {
    **dict.fromkeys(("broadcast_in_dim", "squeeze", "transpose"), _rearrange),
    **dict.fromkeys(
        ("copy", "name", "sharding_constraint", "xla_metadata_value"), lambda _, v, __: [v]
    ),
    "convert_element_type": _convert,
    "dynamic_slice": _dynamic_slice,
    "neg": lambda _, v, __: [v.replace(-v.left, v.right)],
    "pad": _pad,
    "pvary": _each(lambda equation, f: lax.pcast(f, equation.params["axes"], to="varying")),
    "reshape": _reshape,
    "rev": _each(lambda equation, f: lax.rev(f, [LEAD + i for i in equation.params["dimensions"]])),
    "slice": _slice,
    "split": _split,
    "tile": _tile,
    "unstack": _unstack,
}
_SUMS: dict[str, Sum] = {
    **dict.fromkeys(("add", "add_any", "sub"), _sum),
    "concatenate": _concatenate,
    "stack": _stack,
}
RULES: dict[str, Rule] = {
    **{name: linear_in_first(transform) for name, transform in _TRANSFORMS.items()},
    **{name: _linear_in_all(sum_of) for name, sum_of in _SUMS.items()},
    **dict.fromkeys(("div", "mul"), _scale),
}
