"""Controls of `small_rates`: noise without an estimate, and the growth of norms without noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from fwdgrad import Normal, backprop_value_and_grad
from fwdgrad.util.trees import PyTree


@dataclass(frozen=True)
class NoisyGradient:
    """The exact gradient plus noise with the covariance of a forward gradient's; see below."""

    exact: Any
    drift: float
    draws_ahead: ClassVar[bool] = False

    def init(self, params: PyTree, batch: PyTree, /) -> PyTree:
        del batch
        return params

    def params_of(self, state: PyTree, /) -> PyTree:
        return state

    def __call__(self, key: Array, params: PyTree, batch: PyTree, /) -> tuple[Any, ...]:
        value, grad, *report = self.exact(None, params, batch)
        of_factor, of_noise = jax.random.split(key)
        factor = self.drift + jax.random.normal(of_factor)
        norm = jnp.sqrt(_squared_norm(grad))
        noise = Normal().sample(of_noise, grad)
        return value, jax.tree.map(lambda g, z: factor * g + norm * z, grad, noise), *report


def noisy_value_and_grad(
    fun: Callable[..., Array], *, drift: float = 1.0, has_report: bool = False
) -> NoisyGradient:
    """Return an estimator: the gradient by reverse mode, and independent noise.

        g = drift · ∇f + ξ ∇f + ‖∇f‖ z,    ξ ~ N(0, 1), z ~ N(0, I)

    The covariance is ‖∇f‖² I + ∇f ∇fᵀ, that of (∇f·v) v for normal v. But no directional derivative
    is in it: z is drawn independently of the gradient, and reverse mode gives the size.

    Args:
      fun: the loss of parameters and a minibatch.
      drift: 1 for an unbiased estimate of the gradient; 0 for noise alone, a random walk.
      has_report: if true, a third output follows, an empty dict.
    """
    return NoisyGradient(backprop_value_and_grad(fun, has_report=has_report), drift)


def sgd_with_held_norms(learning_rate: Any) -> optax.GradientTransformation:
    """Return SGD after whose steps each matrix is scaled to the norm that it started with."""

    def init(params: PyTree) -> PyTree:
        return jax.tree.map(jnp.linalg.norm, jax.tree.map(jnp.ravel, params))

    def update(updates: PyTree, norms: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        def held(u: Array, p: Array, norm: Array) -> Array:
            return _scaled(p + u, norm / jnp.linalg.norm(p + u)) - p if p.ndim > 1 else u

        return jax.tree.map(held, updates, params, norms), norms

    return optax.chain(optax.sgd(learning_rate), optax.GradientTransformation(init, update))


def sgd_with_grown_norms(learning_rate: Any) -> optax.GradientTransformation:
    """Return SGD after whose steps each matrix is scaled as noise would have lengthened it.

    The noise of a forward gradient, independent of a matrix W with m entries, adds to ‖W‖² in the
    mean m η² ‖∇f‖², ∇f of all parameters. So after the step of backprop, of length η ‖∇f‖,

        W ← W (1 + m η² ‖∇f‖² / ‖W‖²)^½:

    the norm grows as under noise, and the direction of W is that of backprop.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        squared_step = _squared_norm(updates)

        def grown(u: Array, p: Array) -> Array:
            if p.ndim < 2:
                return u
            relative = p.size * squared_step / jnp.sum((p + u) ** 2)
            return _scaled(p + u, jnp.sqrt(1 + relative)) - p

        return jax.tree.map(grown, updates, params), state

    nothing = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    return optax.chain(optax.sgd(learning_rate), nothing)


def _squared_norm(tree: PyTree) -> Array:
    return jnp.asarray(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))


def _scaled(x: Array, factor: Array) -> Array:
    return x * jnp.where(jnp.isfinite(factor), factor, 1)  # of a matrix of zeros it is not
