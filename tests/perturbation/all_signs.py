"""The mean of an estimate over all signs of its noise, an oracle without chance: the gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import fwdgrad
from tests.perturbation.activity_losses import N


def averaged_over_signs(value_and_grad, params, args):
    """Return the mean of the estimates over all signs of the drawn noise, its size as drawn.

    Each example gets them with some of its own turned over, so that no two have the same.
    """
    turned = np.random.default_rng(0)
    drawn = value_and_grad.draw(jax.random.key(0), params, *args)
    leaves, structure = jax.tree.flatten(drawn)
    axes = [x.ndim > 0 and x.shape[0] == N for x in leaves]  # no K and no value here is of size N
    sizes = [int(np.prod(x.shape[own:])) for x, own in zip(leaves, axes, strict=True)]
    assert sum(sizes) <= 14
    ends = np.cumsum([0, *sizes])
    turns = [turned.choice([-1.0, 1.0], x.shape) for x in leaves]

    def estimate(signs):
        parts = [
            jnp.broadcast_to(signs[i:j].reshape(x.shape[own:]), x.shape)
            for x, own, i, j in zip(leaves, axes, ends[:-1], ends[1:], strict=True)
        ]
        parts = [
            (part * turn * abs(x)).astype(x.dtype)
            for part, turn, x in zip(parts, turns, leaves, strict=True)
        ]
        value, grad = value_and_grad.along(jax.tree.unflatten(structure, parts), params, *args)
        return value, fwdgrad.partition(grad)[0]

    every = np.array(list(itertools.product([-1.0, 1.0], repeat=sum(sizes))), np.float32)

    @jax.jit
    def mean(every):
        values, grads = jax.vmap(estimate)(every)
        return values[0], jax.tree.map(lambda g: g.mean(0), grads)

    return mean(every)


def exact(loss, params, args):
    """Return value and gradient, with None for each leaf that is not of floating point."""
    theta, rest = fwdgrad.partition(params)
    of_theta = jax.value_and_grad(lambda theta: loss(fwdgrad.combine(theta, rest), *args))
    return jax.jit(of_theta)(theta)


def assert_same(found, expected):
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * scale), found, expected
    )
