"""The state of `forward_gradient`: scan, donation, ensembles, checkpoints, Flax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fwdgrad
from fwdgrad.optax import ForwardGradientState, forward_gradient
from fwdgrad.records import load_checkpoint, save_checkpoint
from tests.optax.network import (
    PARAMS,
    X,
    Y,
    assert_near,
    assert_same,
    loss,
    steps,
)


def test_the_state_keeps_the_loss_and_the_key(key):
    tx = optax.chain(forward_gradient(key), optax.adam(0.1))
    state = tx.init(PARAMS)
    assert optax.tree.get(state, "value") == jnp.inf
    assert optax.tree.get(state, "key") == key
    _, state = tx.update(None, state, PARAMS, value_fn=loss, x=X, y=Y)
    np.testing.assert_allclose(optax.tree.get(state, "value"), loss(PARAMS, X, Y), rtol=1e-6)
    assert optax.tree.get(state, "key") == jax.random.split(key)[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_scan_keeps_the_types_of_the_state(dtype, x64):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = optax.chain(forward_gradient(0), optax.sgd(0.1))

    def step(carry, x):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=loss, x=x[None], y=x[:1])
        return (optax.apply_updates(params, updates), state), optax.tree.get(state, "value")

    (params, _), values = jax.lax.scan(step, (params, tx.init(params)), X.astype(dtype))
    assert values.dtype == ("float32" if dtype == "bfloat16" else dtype)
    assert values.shape == (6,) and np.isfinite(values).all()
    assert params["w"].dtype == dtype


def test_the_state_may_be_donated_and_begun_anew(key):
    tx = optax.chain(forward_gradient(key), optax.sgd(0.1))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss, x=X, y=Y)
        return optax.apply_updates(params, updates), state

    ends = []
    for _ in range(2):
        params, state = jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS)
        for _ in range(2):
            given = state
            params, state = step(params, state)
            assert given[0].key.is_deleted()
        ends.append(params)
    assert not key.is_deleted()
    assert_same(*ends)


def test_an_ensemble_by_vmap(key):
    """Each member has a key of its own, by `optax.tree.set`."""
    tx = optax.chain(forward_gradient(0), optax.adam(0.1))
    keys = jax.random.split(key, 3)
    params = jax.tree.map(lambda p: jnp.stack([p, p, p]), PARAMS)
    state = optax.tree.set(jax.vmap(tx.init)(params), key=keys)

    def update(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss, x=X, y=Y)
        return optax.apply_updates(params, updates), state

    after, state = jax.jit(jax.vmap(update))(params, state)
    for i, of_member in enumerate(keys):
        tx = optax.chain(forward_gradient(of_member), optax.adam(0.1))
        expected, _ = steps(tx, PARAMS, 1, x=X, y=Y)
        assert_near(jax.tree.map(lambda p, i=i: p[i], after), expected, rtol=1e-4)
    assert state[0].key.shape == state[0].value.shape == (3,)


def test_a_checkpoint_goes_on_to_the_bit(tmp_path):
    def make(seed):
        front = forward_gradient(seed, tangents=fwdgrad.LowRank(), num_tangents=2)
        return optax.chain(front, optax.adam(0.1))

    whole = steps(make(0), PARAMS, 5, x=X, y=Y)
    save_checkpoint(tmp_path, steps(make(0), PARAMS, 2, x=X, y=Y), {})
    other = make(1)  # the key is in the state
    params, state = load_checkpoint(tmp_path, (PARAMS, other.init(PARAMS)))
    assert_same(steps(other, params, 3, state=state, x=X, y=Y), whole)


def test_the_parameters_in_the_state_are_found():
    """`optax.tree.map_params` calls init with a placeholder."""
    tx = optax.chain(forward_gradient(0), optax.adam(0.1))
    found = optax.tree.map_params(tx, lambda p: p + 1, tx.init(PARAMS))
    assert_same(found[1][0].mu, jax.tree.map(jnp.ones_like, PARAMS))
    assert isinstance(found[0], ForwardGradientState) and found[0].value == jnp.inf


def test_an_optimizer_of_flax():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    before = nnx.to_pure_dict(params)
    optimizer = nnx.Optimizer(
        model, optax.chain(forward_gradient(0), optax.sgd(0.1)), wrt=nnx.Param
    )

    def fun(params, x):
        return jnp.mean(nnx.merge(graph, params)(x) ** 2)

    _, key_of_step = jax.random.split(jax.random.key(0))
    _, grad = fwdgrad.forward_value_and_grad(fun)(key_of_step, params, X)
    optimizer.update(model, {}, value_fn=fun, x=X)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before, nnx.to_pure_dict(grad))
    assert_near(nnx.to_pure_dict(nnx.state(model)), expected)
