"""Where noise has no effect: the pattern of zeros in the derivative of what follows a layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from fwdgrad.core.flat import following, has_effect
from fwdgrad.core.jaxprs import inlined
from fwdgrad.problems.models import _POOLINGS

from .oracle import normal


def followed(fun, z, *params):
    """What follows z in fun(z, *params), which is mixed by a product after that."""
    mixing = normal(9, (jax.eval_shape(fun, z, *params).size, 2))

    def loss(z, mixing, *params):
        return jnp.sum(jnp.tanh(fun(z, *params).reshape(-1) @ mixing))

    inputs = (z, mixing, *params)
    jaxpr = inlined(jax.make_jaxpr(loss)(*inputs)).jaxpr
    needed = [True] * len(jaxpr.eqns)
    found = following(jaxpr, jaxpr.invars[0], 0, set(jaxpr.invars[1:]), needed)
    return found, dict(zip(jaxpr.invars, inputs, strict=True))


def reduce_window(z):
    return lax.reduce_window(z, -jnp.inf, lax.max, (1, 2, 2), (1, 2, 2), "VALID")


PICKING = {
    "relu": jax.nn.relu,
    "where": lambda z: jnp.where(z > 0, z, 0),
    "clip": lambda z: jnp.clip(z, -0.5, 0.5),
    "tanh": jnp.tanh,
    "leaky": jax.nn.leaky_relu,
    "pool of relu": lambda z: _POOLINGS["select"](jax.nn.relu(z)),
    "pool as a reduction": lambda z: jax.nn.relu(_POOLINGS["reduce"](z)),
    "reduce_window": lambda z: jax.nn.relu(reduce_window(z)),
    "maxout": lambda z: z.reshape(2, 2, -1).max(0),
    "part": lambda z: z[:, 1:, ::2] * 2,
    "two readers": lambda z: jnp.stack([jax.nn.relu(z), jax.nn.relu(z - 1)]),
    "cancelling": lambda z: jnp.stack([jax.nn.relu(z), jax.nn.relu(-z)]),
}


@pytest.mark.parametrize("name", PICKING)
def test_the_pattern_is_that_of_the_derivative(name):
    fun, z = PICKING[name], normal(0, (4, 4, 4))
    found, values = followed(fun, z)
    columns = jax.jacobian(fun)(z).reshape(-1, *z.shape)
    np.testing.assert_array_equal(has_effect(found, values), (columns != 0).any(0))


def test_it_ends_where_entries_are_mixed_or_a_parameter_comes_in():
    z, scale, shift = normal(0, (4, 4, 4)), normal(1, (4, 4, 4)), jnp.zeros((4, 4, 4))
    found, values = followed(lambda z, scale: jax.nn.relu(jax.nn.relu(z) * scale), z, scale)
    np.testing.assert_array_equal(has_effect(found, values), z > 0)
    assert followed(lambda z, scale: jax.nn.relu(z * scale), z, scale)[0] is None
    assert followed(lambda z, shift: jax.nn.relu(z.sum(0)) + shift, z, shift)[0] is None
    found, values = followed(lambda z: jax.nn.relu(z) + jnp.roll(z, 1) @ jnp.ones((4, 4)), z)
    assert has_effect(found, values).all()
    assert followed(lambda z: jax.nn.relu(z) + z @ jnp.ones((4, 4)), z)[0] is None


@pytest.mark.parametrize("pooling", _POOLINGS.values(), ids=_POOLINGS)
def test_so_noise_is_in_the_largest_of_each_window_alone(pooling, key):
    """With signs the estimate is ±d at each unit that has noise."""
    x, kernel, u = normal(0, (1, 1, 4, 4)), normal(1, (2, 1, 3, 3)), normal(2, (8, 1))

    def loss(bias, x):
        z = lax.conv_general_dilated(x, kernel, (1, 1), "SAME")[0] + bias
        return jnp.sum(jnp.tanh(pooling(jax.nn.relu(z)).reshape(-1) @ u))

    bias = jnp.zeros((2, 4, 4))
    target = jax.grad(loss)(bias, x)
    assert 4 <= (target != 0).sum() <= 8
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), space=fwdgrad.Activities()
    )
    _, grad = value_and_grad(key, bias, x)
    derivative = jnp.abs(grad).max()
    np.testing.assert_allclose(jnp.abs(grad), derivative * (target != 0), rtol=1e-6)
