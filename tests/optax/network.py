"""A network of two layers, its loss, a mask; steps by the front and by hand, and comparisons."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

X = jax.random.normal(jax.random.key(1), (6, 3))
Y = jnp.sin(X[:, 0])
PARAMS = {
    "w": jax.random.normal(jax.random.key(2), (3, 4)),
    "b": jnp.zeros(4),
    "out": jnp.ones((4, 1)),
}
IS_FREE = {"w": True, "b": False, "out": True}
LABELS = {name: "adam" if free else "none" for name, free in IS_FREE.items()}


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) @ params["out"] - y[:, None]) ** 2)


def steps(tx, params, number=3, fun=loss, state=None, **extra_args):
    """The parameters and the state after some steps, by the front."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=fun, **extra_args)
        return optax.apply_updates(params, updates), state

    state = tx.init(params) if state is None else state
    for _ in range(number):
        params, state = step(params, state)
    return params, state


def steps_by_hand(value_and_grad, optimizer, key, params, *args, number=3):
    """The parameters, the optimizer's state and the last loss after some steps, by hand."""

    @jax.jit
    def step(key, params, state):
        key, key_of_step = jax.random.split(key)
        value, grad = value_and_grad(key_of_step, params, *args)
        updates, state = optimizer.update(grad, state, params)
        return key, optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for _ in range(number):
        key, params, state, value = step(key, params, state)
    return params, state, value


def assert_same(found, expected):
    """To the bit, keys included."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_near(found, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-6), found, expected)
