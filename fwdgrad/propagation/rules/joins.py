"""Rules for primitives that put tangents together or take one apart: factors stay factors.

What is joined is a sum of its parts, each in its place among zeros, so ranks add up.
"""

from typing import Any

from jax import lax
from jax.extend.core import primitives

from fwdgrad.propagation.interpreter import Context, Rule
from fwdgrad.propagation.rules.structural import padded, sliced
from fwdgrad.tangents.factored import Factored, stack_factors
from fwdgrad.tangents.forms import Tangent, add, is_structured
from fwdgrad.util.jax_internals import bind
from fwdgrad.util.trees import Array


def _concatenate(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> tuple[list[Any], list[Tangent]]:
    """The sum of the parts, each in its place among zeros: the ranks add up."""
    parts = [v for v in tangents if is_structured(v)]
    if len(parts) < sum(v is not None for v in tangents):
        return NotImplemented
    total, axis = equation.outvars[0].aval.shape, equation.params["dimension"]
    start = 0
    result: Tangent = None
    for x, v in zip(primals, tangents, strict=True):
        if is_structured(v):
            config = [(0, 0, 0)] * len(total)
            config[axis] = (start, total[axis] - start - x.shape[axis], 0)
            result = add(result, padded(v, config))
        start += x.shape[axis]
    return _observed(context, equation, parts, bind(equation, primals), result)


def _stack(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> tuple[list[Any], list[Tangent]]:
    parts = [v if is_structured(v) else None for v in tangents]
    if any(v is not None and p is None for v, p in zip(tangents, parts, strict=True)):
        return NotImplemented
    shape = equation.outvars[0].aval.shape
    result = stack_factors(parts, equation.params["axis"], shape)
    known = [v for v in parts if v is not None]
    return _observed(context, equation, known, bind(equation, primals), result)


def _sum(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> tuple[list[Any], list[Tangent]]:
    """A sum or a difference of factored tangents, or of one and a constant."""
    shape = equation.outvars[0].aval.shape
    parts = [v for v in tangents if is_structured(v) and v.shape == shape]
    if len(parts) < sum(v is not None for v in tangents):
        return NotImplemented
    first, second = tangents
    if equation.primitive is primitives.sub_p and is_structured(second):
        second = second.replace(-second.left, second.right)
    return _observed(context, equation, parts, bind(equation, primals), add(first, second))


def _observed(
    context: Context, equation: Any, parts: list[Factored], outputs: list[Any], result: Tangent
) -> tuple[list[Any], list[Tangent]]:
    for v in parts:
        if is_structured(result):
            context.observe(equation, v)
        else:
            reason = "the factors of the whole would be no smaller than the array"
            context.observe_loss(equation, v, reason)
    return outputs, [result]


def _split(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> tuple[list[Any], list[Tangent]]:
    (v,), axis = tangents, equation.params["axis"]
    if not is_structured(v):
        return NotImplemented
    results: list[Tangent] = []
    start = 0
    for size in equation.params["sizes"]:
        starts, limits = [0] * len(v.shape), list(v.shape)
        starts[axis], limits[axis] = start, start + size
        results.append(sliced(v, starts, limits, [1] * len(starts)))
        start += size
    context.observe(equation, v)
    return bind(equation, primals), results


def _unstack(
    context: Context, equation: Any, primals: list[Any], tangents: list[Any]
) -> tuple[list[Any], list[Tangent]]:
    (v,), axis = tangents, equation.params["axis"]
    if not is_structured(v):
        return NotImplemented
    shape = (*v.shape[:axis], *v.shape[axis + 1 :])

    def part(index: int) -> Factored:
        def take(f: Array) -> Array:
            return lax.index_in_dim(f, index if f.shape[axis] != 1 else 0, axis, keepdims=False)

        return v.map(take, shape)

    context.observe(equation, v)
    return bind(equation, primals), [part(i) for i in range(v.shape[axis])]


RULES: dict[str, Rule] = {
    primitives.concatenate_p.name: _concatenate,
    "stack": _stack,  # this one and the next two are not among the public primitives
    "split": _split,
    "unstack": _unstack,
    primitives.add_p.name: _sum,
    primitives.sub_p.name: _sum,
    primitives.add_jaxvals_p.name: _sum,
}
