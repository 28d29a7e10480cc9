"""Guesses of the gradient: what an estimator is told beforehand, and need not find by chance.

Any guess leaves the estimate unbiased, and a good one takes noise from it. It travels beside the
parameters, `Guided(params, guess)`, and like them it has a gradient, that of the squared error of
the guess: so one training loop learns both, and where a guess comes from is an optimizer's choice.

**At the parameters** a guess is a direction u, a pytree like them: an older gradient, a momentum.
With û = u/‖u‖ its derivative s = ∇f·û is found exactly, by a pass of its own, and the K tangents
only look for the rest of the gradient, ∇f − s û, in the directions v'_k = v_k − ⟨û, v_k⟩ û:

    g = s û + (1/K) Σ_k (d_k − s ⟨û, v_k⟩) v'_k        E[g] = ∇f

whose error is about (1 − cos²(u, ∇f)) of that without a guess, if there are many dimensions. The
gradient of the guess is u − g, so that steps of 1 make u the last estimate, and steps of 1 − β a
momentum of decay β.

**At activities** a guess is a feedback, a matrix A_z for each noisy site z: from e_n, the exact
derivatives of example n's loss by what the last layers compute, it guesses those by what an earlier
layer does, c_n = A_z e_n. It is a control variate: noise is only asked what is left of them,

    c_n + (1/K) Σ_k (d_nk − ⟨c_n, ξ_nk⟩) ξ_nk        of the expectation ∂ℓ_n/∂z

The gradient of A_z is −mean_n r_n e_nᵀ / mean_n ‖e_n‖², with r_n the second term above: least mean
squares, learned from the directional derivatives alone. No weights are transported back.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.tangents.forms import inner
from fwdgrad.util.sharding import has_explicit_axes
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype


class Guided(NamedTuple):
    """Parameters and a guess of the gradient, to be given to an estimator in the place of params.

    The gradient then is a `Guided` too, and guess − rate · its guess is the next guess, for a rate
    from 0 to 1: of a direction 1 makes it the last estimate, and 1 − β a momentum. A first guess,
    zero, is made by `value_and_grad.guide`.

    Attributes:
      params: what `fun` is called with.
      guess: of the structure that the estimator's space asks for; at the parameters that of
        `params`, or of dicts, lists and tuples with None for leaves that have no gradient. Beside
        such leaves in any other class it is the list of the arrays.
    """

    params: PyTree
    guess: PyTree


def unit(direction: list[Array]) -> list[Array]:
    """A direction over several arrays at about length 1, but for rounding; zero stays zero.

    >>> [x.tolist() for x in unit([jnp.array([3.0]), jnp.array([0.0, 4.0])])]
    [[0.6000000238418579], [0.0, 0.800000011920929]]
    """
    length = jnp.sqrt(square(direction))
    scale = 1 / jnp.where(length > 0, length, 1)
    return [(x.astype(scale.dtype) * scale).astype(x.dtype) for x in direction]


def square(direction: list[Array]) -> Array:
    """The squared length of a direction over several arrays."""
    dtype = accumulation_dtype(*(x.dtype for x in direction))
    return jnp.stack([jnp.sum(jnp.square(x.astype(dtype))) for x in direction]).sum()


def along(tangents: list[Any], cotangents: list[Array]) -> Array:
    """Σ over the arrays of the products ⟨c, v_k⟩, (K,)."""
    dtype = accumulation_dtype(*(c.dtype for c in cotangents))
    products = []
    for v, c in zip(tangents, cotangents, strict=True):
        wide = jax.tree.map(
            lambda x, to=c.dtype: x.astype(to) if jnp.issubdtype(x.dtype, jnp.inexact) else x, v
        )
        products.append(inner(wide, c).astype(dtype))
    return sum(products[1:], products[0])


def gradient_of_feedback(errors: Array, residuals: dict[int, Array]) -> list[Array]:
    """The gradients of feedback, −mean_n e_n r_n / mean_n ‖e_n‖² for each site.

    Args:
      errors: e, (N, E).
      residuals: site -> r, (N, *its shape).
    """
    squares = jnp.sum(jnp.square(errors))
    scale = jnp.where(squares > 0, squares, 1)
    whole = jax.sharding.PartitionSpec() if has_explicit_axes() else None
    return [
        -jnp.tensordot(errors.astype(r.dtype), r, (0, 0), out_sharding=whole) / scale
        for _, r in sorted(residuals.items())
    ]
