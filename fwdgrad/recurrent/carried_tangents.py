"""Tangents of the parameters that stay the same, and the tangents of the state that follow."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.recurrent.step import StepAt
from fwdgrad.tangents.forms import is_structured, weighted_sum
from fwdgrad.tangents.independent import Normal, TangentDistribution
from fwdgrad.tangents.sampling import Tangents, check_tangents, sample_tangents
from fwdgrad.util.trees import Array, PyTree
from fwdgrad.util.validation import check_positive_integer


class _Carried(NamedTuple):
    """K tangents of θ, and (K, n) of the state along them."""

    tangents: Tangents
    of_state: Array


def _sizes(carried: _Carried) -> tuple[list[Any], int]:
    shapes = [v.shape if is_structured(v) else v.shape[1:] for v in carried.tangents]
    return shapes, carried.of_state.shape[1]


@dataclass(frozen=True)
class CarriedTangents:
    """Carry J v_k for K tangents v_k of the parameters, drawn once.

    J ≈ (1/K) Σ_k (J v_k) v_kᵀ, so grad_t = (1/K) Σ_k (g_t · v_k) v_k: the forward gradient of each
    value, in which each derivative g_t · v_k is exact. The mean is g_t, since E[v vᵀ] = I. A long
    run has the noise of its K tangents in each of its steps; to draw others, start anew with
    `init`, which forgets the influence of the steps before.

    A step costs itself and K pushed tangents, in forward mode alone. Low-rank tangents take the
    memory of their factors.

    Args:
      tangents: the distribution of the tangents, any `TangentDistribution`.
      num_tangents: K.

    Raises:
      TypeError, ValueError: an argument is of a wrong kind.

    >>> import fwdgrad
    >>> def step(params, state, x):  # reverse mode does not go through this loop
    ...     def more(loop): return jnp.sum(loop**2) > 1
    ...     state = jax.lax.while_loop(more, lambda loop: loop / 2, params * state + x)
    ...     return state, jnp.sum(state)
    >>> learner = fwdgrad.online(step, CarriedTangents(num_tangents=2))
    >>> carry = learner.init(jax.random.key(0), jnp.ones(3), jnp.zeros(3), jnp.ones(3))
    >>> carry, value, grad = learner.update(carry, jnp.ones(3), jnp.ones(3))
    >>> float(value), grad.shape
    (1.5, (3,))

    Source: A. Baydin et al., Gradients without Backpropagation (2022), of the estimate; D. Silver
    et al., Learning by Directional Gradient Descent (2022), of tangents that are carried.
    """

    tangents: TangentDistribution = field(default_factory=Normal)
    num_tangents: int = 1

    def __post_init__(self) -> None:
        check_tangents(self.tangents)
        check_positive_integer("num_tangents", self.num_tangents)

    def first(self, key: Array, step: StepAt) -> _Carried:
        keys = jax.random.split(key, self.num_tangents)
        splits = step.pushforward.splits[:-1]  # the last one is of the state
        sampled = sample_tangents(self.tangents, keys, step.theta, splits)
        return _Carried(sampled, jnp.zeros((self.num_tangents, step.vector.size), step.dtype))

    def advance(
        self, key: Array, step: StepAt, carried: _Carried
    ) -> tuple[_Carried, PyTree, Array, list[Array]]:
        del key  # the tangents are those of the start
        step.check_carried(carried, _Carried, _sizes)
        tangents, of_state = carried
        state, value, derivatives, of_state = step.push_along(tangents, of_state)
        weights = derivatives / self.num_tangents
        grad = [weighted_sum(v, weights, step.dtype) for v in tangents]
        return _Carried(tangents, of_state), state, value, grad
