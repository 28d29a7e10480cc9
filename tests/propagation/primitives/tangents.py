"""Tangents of operands in every form, sampled and materialised by NumPy."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.factored import Factored


def operands_of(case, shapes=None, dtype="float32"):
    rng = np.random.default_rng(0)
    return [
        rng.uniform(case.low, case.high, shape).astype(jnp.dtype(dtype))
        for shape in shapes or case.shapes
    ]


def flat(fun):
    return lambda *operands: jax.tree.leaves(fun(*operands))


# Tangents of one operand, in a form: K of them, of its dtype.


def dense_form(rng, x, num_tangents):
    return rng.normal(size=(num_tangents, *x.shape)).astype(x.dtype)


def factored_form(rng, x, num_tangents, rank=1):
    """Return low-rank tangents whose rows are the first axis and whose columns are the others."""
    left, right = (x.shape[:1], (1,) * len(x.shape[1:])), ((1,) * len(x.shape[:1]), x.shape[1:])
    factors = (
        rng.normal(size=(num_tangents, rank, *a, *b)).astype(x.dtype) for a, b in (left, right)
    )
    return Factored(*factors, x.shape)


def blocks_form(rng, x, num_tangents, axis):
    if not x.ndim:
        return dense_form(rng, x, num_tangents)
    value = rng.normal(size=x.shape).astype(x.dtype)
    return Blocks(value, min(axis, x.ndim - 1), num_tangents)


def blocks_after_rows(rng, x, num_tangents, axis):
    """Return blocks after a dense tangent of an earlier layer."""
    blocks = blocks_form(rng, x, num_tangents - 1, axis)
    if not isinstance(blocks, Blocks):
        return dense_form(rng, x, num_tangents)
    return Blocks(blocks.value, blocks.axis, num_tangents - 1, dense_form(rng, x, 1))


def window_of_blocks(rng, x, num_tangents, axis):
    """Return the second block and those after it, of one more than K."""
    blocks = blocks_form(rng, x, num_tangents + 1, axis)
    if not isinstance(blocks, Blocks):
        return dense_form(rng, x, num_tangents)
    return blocks.window(FIRST, num_tangents)


FIRST = np.int32(1)  # one object, as in a loop over windows
FORMS = {
    "dense": dense_form,
    "rank 1": factored_form,
    "rank 2": functools.partial(factored_form, rank=2),
    **{f"blocks of axis {i}": functools.partial(blocks_form, axis=i) for i in range(4)},
    "blocks after a row": functools.partial(blocks_after_rows, axis=1),
    "window of blocks": functools.partial(window_of_blocks, axis=1),
}


def combinations(operands):
    """Yield (K, the form of each operand or None) for all evaluations of a function."""
    n, axes = len(operands), max([1, *(x.ndim for x in operands)])
    of_blocks = [f"blocks of axis {i}" for i in range(axes)]
    yield 1, [of_blocks[-1]] * n
    for form in ("rank 2", *of_blocks, "blocks after a row", "window of blocks"):
        yield 3, [form] * n
    if n > 1:
        alone = itertools.cycle(["rank 1", of_blocks[0]])
        for i in range(n):
            yield 3, [next(alone) if j == i else None for j in range(n)]
        mixed = itertools.cycle(["rank 1", of_blocks[0], "dense"])
        yield 3, [next(mixed) for _ in range(n)]


def tangents_of(operands, num_tangents, forms):
    rng = np.random.default_rng(num_tangents)
    return [
        None if form is None else FORMS[form](rng, x, num_tangents)
        for x, form in zip(operands, forms, strict=True)
    ]


def materialize(tangent, num_tangents, like):
    """Return K tangents as a dense NumPy array, by the definition of each form."""
    shape = (num_tangents, *like.shape)
    if tangent is None:
        return np.zeros(shape, like.dtype)
    if isinstance(tangent, Factored):
        left, right = (np.asarray(f, wide(like)) for f in (tangent.left, tangent.right))
        return np.broadcast_to((left * right).sum(1), shape).astype(like.dtype)
    if not isinstance(tangent, Blocks):
        return np.asarray(tangent)
    rows = 0 if tangent.earlier is None else len(tangent.earlier)
    result = np.zeros(shape, like.dtype)
    if rows:
        result[:rows] = tangent.earlier
    size = math.ceil(tangent.shape[tangent.axis] / tangent.num_blocks)
    window = range(tangent.num_blocks)
    if tangent.first is not None:
        window = window[tangent.first : tangent.first + tangent.size]
    for row, k in enumerate(window, rows):
        at = (slice(None),) * tangent.axis + (slice(k * size, (k + 1) * size),)
        result[row][at] = np.asarray(tangent.value)[at]
    return result


def wide(x):
    return "complex128" if jnp.issubdtype(x.dtype, jnp.complexfloating) else "float64"
