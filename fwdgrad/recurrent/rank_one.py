"""Unbiased online recurrent optimization: the influence as a random matrix of rank one."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from fwdgrad.recurrent.signs import random_signs
from fwdgrad.recurrent.step import StepAt
from fwdgrad.util.trees import Array, PyTree
from fwdgrad.util.validation import check_positive_integer


class _Carried(NamedTuple):
    """K vectors of the state, as columns (n, K), and K of the parameters, (K, *shape) a leaf."""

    of_state: Array
    of_theta: list[Array]


def _sizes(carried: _Carried) -> tuple[list[Any], int]:
    return [q.shape[1:] for q in carried.of_theta], len(carried.of_state)


@dataclass(frozen=True)
class RankOne:
    """Carry K independent products p qᵀ whose mean is J: UORO.

    With random signs ν (n,), a step makes p ← ρ₀ A p + ρ₁ ν and q ← q/ρ₀ + νᵀB/ρ₁, where
    A = ∂s'/∂s and B = ∂s'/∂θ. E[p qᵀ] = A E[p qᵀ] + B. The norms of the parts choose ρ₀ and ρ₁.
    The estimate is the mean over the K products.

    A step costs itself, one pass backwards and one forwards for each product, and K d numbers of
    memory.

    Args:
      num_products: K.

    Raises:
      TypeError, ValueError: `num_products` is not a positive integer.

    Source: C. Tallec and Y. Ollivier, Unbiased Online Recurrent Optimization (2017).
    """

    num_products: int = 1

    def __post_init__(self) -> None:
        check_positive_integer("num_products", self.num_products)

    def first(self, key: Array, step: StepAt) -> _Carried:
        del key
        number = self.num_products
        return _Carried(
            jnp.zeros((step.vector.size, number), step.dtype),
            [jnp.zeros((number, *p.shape), step.dtype) for p in step.theta],
        )

    def advance(
        self, key: Array, step: StepAt, carried: _Carried
    ) -> tuple[_Carried, PyTree, Array, list[Array]]:
        step.check_carried(carried, _Carried, _sizes)
        of_state, of_theta = carried
        number = self.num_products
        along, direct = step.gradient_of_value()
        weights = along @ of_state / number
        grad = [g + jnp.tensordot(weights, q, 1) for g, q in zip(direct, of_theta, strict=True)]

        signs = random_signs(key, (step.vector.size, number), step.dtype)
        pushed = step.push(of_state)
        _, pulled = step.pull(signs.T)
        # Parts of equal norms on both sides have the least variance.
        old_scale = _ratio(_norms(of_theta), jnp.linalg.norm(pushed, axis=0))
        new_scale = _ratio(_norms(pulled), jnp.linalg.norm(signs, axis=0))
        new = _Carried(
            pushed * old_scale + signs * new_scale,
            [
                (_rows(1 / old_scale, q) * q + _rows(1 / new_scale, b) * b).astype(step.dtype)
                for q, b in zip(of_theta, pulled, strict=True)
            ],
        )
        return new, *step.results(), grad


def _norms(leaves: list[Array]) -> Array:
    """Return the norm of each of K vectors, given as leaves (K, *shape)."""
    return jnp.sqrt(sum(jnp.sum(x.reshape(len(x), -1) ** 2, axis=1) for x in leaves))


def _ratio(of_theta: Array, of_state: Array) -> Array:
    """Return the factor that makes two norms equal; 1 where one of them is zero."""
    both = (of_theta > 0) & (of_state > 0)
    return jnp.where(both, jnp.sqrt(of_theta / jnp.where(both, of_state, 1)), 1)


def _rows(factors: Array, leaf: Array) -> Array:
    return factors.reshape(-1, *[1] * (leaf.ndim - 1))
