"""The three-line use on models of Equinox and of Flax, linen and NNX: each of them trains."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import fwdgrad

STEPS, RATE = 300, 0.01


def data():
    x = jax.random.normal(jax.random.key(1), (32, 3))
    return x, jnp.sin(x @ jnp.array([1.0, -0.5, 0.25]))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(8)(x)))


def equinox_problem(key):
    model = eqx.nn.MLP(3, 1, width_size=8, depth=1, key=key)
    return model, lambda model, x, y: jnp.mean((jax.vmap(model)(x)[:, 0] - y) ** 2)


def linen_problem(key):
    model = Linen()
    params = model.init(key, jnp.zeros((1, 3)))
    return params, lambda params, x, y: jnp.mean((model.apply(params, x)[:, 0] - y) ** 2)


def nnx_problem(key):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 1, rngs=rngs))
    graph, params = nnx.split(model)
    return params, lambda params, x, y: jnp.mean((nnx.merge(graph, params)(x)[:, 0] - y) ** 2)


@pytest.mark.parametrize(
    "space", [fwdgrad.Weights(), fwdgrad.Activities(layerwise=True, exact_last=True)], ids=repr
)
@pytest.mark.parametrize("make", [equinox_problem, linen_problem, nnx_problem])
def test_three_lines_train_it(make, space, key):
    params, loss = make(key)
    x, y = data()

    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), space=space
    )
    optimizer = optax.sgd(RATE)

    @eqx.filter_jit  # a model of Equinox holds its activation function, which is no array
    def train(params, key):
        theta, rest = fwdgrad.partition(params)

        def step(carry, key):
            theta, state = carry
            value, grad = value_and_grad(key, fwdgrad.combine(theta, rest), x, y)
            updates, state = optimizer.update(fwdgrad.partition(grad)[0], state)
            return (optax.apply_updates(theta, updates), state), value

        keys = jax.random.split(key, STEPS)
        (theta, _), values = jax.lax.scan(step, (theta, optimizer.init(theta)), keys)
        return fwdgrad.combine(theta, rest), values

    trained, values = train(params, key)
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    assert values[-1] < 0.5 * values[0]
