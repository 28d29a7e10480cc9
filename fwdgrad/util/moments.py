"""Moments of a random estimate of a vector: cosine, bias and variance."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp

from fwdgrad.util.trees import Array, accumulation_dtype

Vector = Sequence[Array]  # the leaves of a pytree


def error_moments(
    draw: Callable[[Array], Vector],
    count: int | Array,
    target: Vector,
    parts: Mapping[str, slice] = MappingProxyType({}),
) -> dict[str, Array]:
    """Return the quality of an estimate g of a vector t, from n independent draws g_i.

    With the errors e_i = g_i − t, all over ‖t‖² but the cosines,

        cosine           (1/n) Σ_i ⟨g_i, t⟩ / ‖g_i‖ ‖t‖
        squared_cosine   the mean of its squares
        slope            (1/n) Σ_i ⟨g_i, t⟩, 1 without bias
        error            (1/n) Σ_i ‖e_i‖², the sum of bias and variance
        bias             Σ_{i≠j} ⟨e_i, e_j⟩ / n(n − 1), the mean of which is ‖E g − t‖²
        variance         error − bias, the mean of which is E‖g − E g‖²

    Bias and variance have no bias of their own, so one may be below zero. If t is zero, errors are
    not divided, and the cosine is nan. A draw of zero has the cosine 0.

    Args:
      draw: the number of a draw -> the leaves of g.
      count: n, at least 2; it may be an argument of a compiled function.
      target: the leaves of t.
      parts: name -> the leaves of which the cosine is to be returned, too.

    >>> target = jnp.array([1.0, 0.0])
    >>> moments = error_moments(lambda i: [target + jnp.array([0.0, 2.0 * i - 1.0])], 2, [target])
    >>> {name: round(float(moments[name]), 3) for name in ("cosine", "error", "bias", "variance")}
    {'cosine': 0.707, 'error': 1.0, 'bias': -1.0, 'variance': 2.0}
    """
    target = _wide(target)
    squared = _product(target, target)
    norm = jnp.where(squared > 0, squared, 1)

    def sample(i: Array) -> tuple[Vector, dict[str, Array]]:
        found = _wide(draw(i))
        error = [x - y for x, y in zip(found, target, strict=True)]
        cosine = _cosine(found, target)
        return error, {
            "cosine": cosine,
            **{name: _cosine(found[part], target[part]) for name, part in parts.items()},
            "squared_cosine": cosine**2,
            "slope": _product(found, target) / norm,
            "error": _product(error, error) / norm,
        }

    def add(i: Array, sums: tuple[Vector, dict[str, Array]]) -> tuple[Vector, dict[str, Array]]:
        return jax.tree.map(jnp.add, sums, sample(i))

    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sample, jnp.int32(0))
    )
    total, sums = jax.lax.fori_loop(0, count, add, zeros)
    n = jnp.asarray(count, norm.dtype)
    means = {name: x / n for name, x in sums.items()}
    bias = (_product(total, total) / norm - sums["error"]) / (n * (n - 1))
    return {**means, "bias": bias, "variance": means["error"] - bias}


def _product(a: Vector, b: Vector) -> Array:
    """Return ⟨a, b⟩."""
    return jnp.stack([jnp.vdot(x, y) for x, y in zip(a, b, strict=True)]).sum()


def _cosine(a: Vector, b: Vector) -> Array:
    if not a:
        return jnp.float32(jnp.nan)
    of_a, of_b = jnp.sqrt(_product(a, a)), jnp.sqrt(_product(b, b))
    return jnp.where((of_a == 0) & (of_b > 0), 0, _product(a, b) / (of_a * of_b))


def _wide(leaves: Vector) -> list[Array]:
    return [jnp.asarray(x, accumulation_dtype(x.dtype)) for x in leaves]
