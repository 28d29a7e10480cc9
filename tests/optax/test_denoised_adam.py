"""Adam without the variance of the estimate, by hand, and against optax's Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fwdgrad.optax import denoised_adam, scale_by_denoised_adam


def updates_of(tx, gradients):
    state = tx.init(jax.tree.map(jnp.zeros_like, gradients[0]))
    found = []
    for g in gradients:
        update, state = tx.update(g, state)
        found.append(update)
    return found


def test_three_updates_by_hand():
    b1, b2, floor, eps = 0.5, 0.75, 0.5, 1e-3
    mean = square = product = 0.0
    gradients, previous, expected = [2.0, -1.0, 3.0], 2.0, []
    for t, g in enumerate(gradients, 1):
        mean = b1 * mean + (1 - b1) * g
        square = b2 * square + (1 - b2) * g * g
        product = b2 * product + (1 - b2) * g * previous
        previous = g
        second = max(product, floor**2 * square) / (1 - b2**t)
        expected.append(mean / (1 - b1**t) / (second**0.5 + eps))
    tx = scale_by_denoised_adam(b1, b2, floor, eps)
    found = updates_of(tx, [jnp.array([g]) for g in gradients])
    np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-6)


def test_a_constant_gradient_gets_the_updates_of_adam():
    gradients = [{"w": jnp.array([[1.0, -2.0], [0.5, 0.0]]), "b": jnp.array(3.0)}] * 5
    found = updates_of(denoised_adam(0.1), gradients)
    expected = updates_of(optax.adam(0.1), gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_a_floor_of_one_is_at_most_adam(key):
    gradients = list(jax.random.normal(key, (20, 50)))
    found, adam = (
        np.abs(updates_of(tx, gradients))
        for tx in (scale_by_denoised_adam(floor=1), optax.scale_by_adam())
    )
    assert (found <= adam * (1 + 1e-5)).all()


def test_the_second_moment_leaves_out_the_variance(key):
    """Of 4,000 entries with ∇ = 1 and noise of variance 9, after 400 steps with b2 = 0.99.

    An entry's p̂ has the variance (81 + 18) (1 − b2)/(1 + b2) of independent products, and as much
    again at most for those that share a factor; so its mean over entries has the standard deviation
    0.02, and Adam's is 10.
    """
    noise = 3 * jax.random.normal(key, (400, 4000))
    tx = scale_by_denoised_adam(b2=0.99)
    state = tx.init(noise[0])
    (state, _) = jax.lax.scan(lambda s, g: (tx.update(1 + g, s)[1], None), state, noise)
    corrected = 1 - 0.99**400
    assert abs(state.product.mean() / corrected - 1) < 0.1
    assert abs(state.square.mean() / corrected - 10) < 0.2


def test_complex_gradients_are_scaled_as_by_adam():
    gradients = [jnp.array([3 + 4j, -1j])] * 3
    found = updates_of(denoised_adam(0.1), gradients)
    np.testing.assert_allclose(found, updates_of(optax.adam(0.1), gradients), rtol=1e-4)


def test_hyperparameters_may_be_injected():
    tx = optax.inject_hyperparams(denoised_adam)(learning_rate=0.1)
    state = tx.init(jnp.zeros(2))
    update, _ = jax.jit(tx.update)(jnp.array([1.0, -2.0]), state)
    np.testing.assert_allclose(update, [-0.1, 0.1], rtol=1e-5)


@pytest.mark.parametrize("floor", [-0.1, 1.5])
def test_a_floor_outside_is_an_error(floor):
    with pytest.raises(ValueError, match=f"floor must be a number from 0 to 1; found {floor}"):
        denoised_adam(0.1, floor=floor)
