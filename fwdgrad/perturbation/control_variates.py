"""Control variates: a guess of the gradient, which lowers the variance and keeps the mean.

Any guess leaves the estimate unbiased, and a good one lowers its variance. A guess stands beside
the parameters, `Guided(params, guess)`, and has a gradient as they have, that of its squared error.
So one training loop learns both, and the optimizer decides how the guess is learned.

**At the parameters** a guess is a direction u, a pytree like them: an older gradient, a momentum.
The derivative along û = u/‖u‖, s = ∇f·û, is found exactly by one more pass. The K tangents estimate
only the rest of the gradient, ∇f − s û, by their parts across û, v'_k = v_k − ⟨û, v_k⟩ û:

    g = s û + (1/K) Σ_k (d_k − s ⟨û, v_k⟩) v'_k        E[g] = ∇f

It is unbiased because, with P = I − û ûᵀ, v'_k = P v_k and d_k − s ⟨û, v_k⟩ = (P ∇f)·v_k. So each
term has the mean P E[v vᵀ] P ∇f = P ∇f, and s û is the rest.

In many dimensions its variance is about (1 − cos²(u, ∇f)) times that without a guess. The gradient
of the guess is u − g: steps of 1 make u the last estimate, steps of 1 − β a momentum of decay β.

**At activities** a guess is a feedback: c_n of the derivative of example n's loss by each noisy
pre-activation z, made of the exact ones by the last layers' (`fwdgrad.perturbation.feedback`). The
noise estimates only the rest:

    c_n + (1/K) Σ_k (d_nk − ⟨c_n, ξ_nk⟩) ξ_nk        of the expectation ∂ℓ_n/∂z

The second term is what the feedback learns from: directional derivatives alone. No weights are
transported back. A feedback may also stand alone, learned or fixed, without the noise
(`Activities.feedback`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.tangents.forms import inner
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype


class Guided(NamedTuple):
    """Parameters and a guess of the gradient: the params of `value_and_grad.guided()`.

    The gradient is a `Guided` too, and guess − rate · (its guess) is the next guess, for a rate
    from 0 to 1: of a direction 1 makes it the last estimate, and 1 − β a momentum. The first guess,
    zero, comes from `value_and_grad.guided().init(params, *args)`.

    Attributes:
      params: the params of `fun`.
      guess: of the structure that the estimator's space asks for; at the parameters that of
        `params`, or of dicts, lists and tuples with None for leaves that have no gradient. Beside
        such leaves in any other class it is the list of the arrays.
    """

    params: PyTree
    guess: PyTree


class ExactDirection(NamedTuple):
    """A guess of the gradient as a direction û along which the derivative is known exactly.

    Attributes:
      direction: û, of about length 1, a list of arrays.
      square: ‖û‖², or 1 if û is zero. (Rounded in half precision û is not quite of length 1.)
      slope: ∇f·û / ‖û‖².
      products: ⟨û, v_k⟩ with each of K tangents, (K,).
    """

    direction: list[Array]
    square: Array
    slope: Array
    products: Array

    def across(self, derivatives: Array, gram: Array | None) -> tuple[Array, Array | None]:
        """Return the derivatives (K,) and the Gram matrix of the tangents' parts across û."""
        rest = derivatives.astype(self.slope.dtype) - self.slope * self.products
        if gram is not None:
            gram = gram - jnp.outer(self.products, self.products) / self.square
        return rest, gram

    def completed(self, sums: list[Array], weights: Array) -> list[Array]:
        """Return s û + Σ_k w_k v'_k, from the sums Σ_k w_k v_k of the whole tangents."""
        length = self.slope - jnp.dot(weights, self.products) / self.square
        return [
            g + length.astype(g.dtype) * u.astype(g.dtype)
            for g, u in zip(sums, self.direction, strict=True)
        ]


def exact_direction(
    direction: list[Array], derivative: Array, tangents: list[Any], dtype: Any
) -> ExactDirection:
    """Return a direction of `unit` with the derivative ∇f·û, and its products with the tangents."""
    length = _square(direction).astype(dtype)
    length = jnp.where(length > 0, length, 1)
    products = inner_products(tangents, direction).astype(dtype)
    return ExactDirection(direction, length, derivative.astype(dtype) / length, products)


def unit(direction: list[Array]) -> list[Array]:
    """Return a direction over several arrays at about length 1, up to rounding; zero stays zero.

    >>> [x.tolist() for x in unit([jnp.array([3.0]), jnp.array([0.0, 4.0])])]
    [[0.6000000238418579], [0.0, 0.800000011920929]]
    """
    length = jnp.sqrt(_square(direction))
    scale = 1 / jnp.where(length > 0, length, 1)
    return [(x.astype(scale.dtype) * scale).astype(x.dtype) for x in direction]


def _square(direction: list[Array]) -> Array:
    """Return the squared length of a direction over several arrays."""
    dtype = accumulation_dtype(*(x.dtype for x in direction))
    return jnp.stack([jnp.sum(jnp.square(x.astype(dtype))) for x in direction]).sum()


def inner_products(tangents: list[Any], cotangents: list[Array]) -> Array:
    """Return Σ over the arrays of the inner products ⟨c, v_k⟩, (K,)."""
    dtype = accumulation_dtype(*(c.dtype for c in cotangents))
    products = []
    for v, c in zip(tangents, cotangents, strict=True):
        wide = jax.tree.map(
            lambda x, to=c.dtype: x.astype(to) if jnp.issubdtype(x.dtype, jnp.inexact) else x, v
        )
        products.append(inner(wide, c).astype(dtype))
    return sum(products[1:], products[0])
