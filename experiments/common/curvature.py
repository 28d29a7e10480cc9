"""The Hessian of a loss at parameters: its products with vectors, its trace, its sharpness."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from fwdgrad.util.trees import PyTree


def hessian(
    loss: Callable[[PyTree], Array], params: PyTree
) -> tuple[Array, Callable[[Array], Array]]:
    """Return the gradient of a loss, flat, and the product of its Hessian with a flat vector.

    Products are forward over reverse mode.
    """
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda x: loss(unravel(x)))
    return gradient(flat), lambda v: jax.jvp(gradient, (flat,), (v,))[1]


def trace(product: Callable[[Array], Array], like: Array, key: Array, probes: int) -> Array:
    """Return the mean of vᵀ H v over random signs v, of the shape and dtype of `like`."""

    def probe(key: Array) -> Array:
        v = jax.random.rademacher(key, like.shape, like.dtype)
        return v @ product(v)

    return jax.lax.map(probe, jax.random.split(key, probes)).mean()


def curvature(
    loss: Callable[[PyTree], Array], params: PyTree, lanczos: int, probes: int
) -> dict[str, Array]:
    """Return the largest eigenvalue, the trace and ∇Lᵀ H ∇L of the Hessian H of a loss.

    The eigenvalue is the largest of Lanczos' tridiagonal matrix, a bound from below, with full
    reorthogonalisation.
    """
    along, product = hessian(loss, params)
    first, signs = jax.random.split(jax.random.key(0))
    lanczos = min(lanczos, along.size)

    def step(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        basis, v, diagonal, beside = carry
        basis = basis.at[i].set(v)
        w = product(v)
        alpha = v @ w
        for _ in range(2):  # once leaves rounding errors
            w = w - basis.T @ (basis @ w)
        beta = jnp.linalg.norm(w)
        v = jnp.where(beta > 0, w / beta, 0)
        return basis, v, diagonal.at[i].set(alpha), beside.at[i].set(beta)

    v = jax.random.normal(first, along.shape, along.dtype)
    zeros = jnp.zeros(lanczos, along.dtype)
    start = (jnp.zeros((lanczos, along.size), along.dtype), v / jnp.linalg.norm(v), zeros, zeros)
    *_, diagonal, beside = jax.lax.fori_loop(0, lanczos, step, start)
    tridiagonal = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    return {
        "sharpness": jnp.linalg.eigvalsh(tridiagonal)[-1],
        "trace": trace(product, along, signs, probes),
        "along_gradient": along @ product(along),
    }
