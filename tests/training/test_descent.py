"""Descent on a function of one vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.training import make_descend


def quadratic(x):
    return jnp.sum(x**2) / 2


def test_descent_of_a_quadratic_is_known():
    """x ← (1 − η) x, whatever the numbers of steps that calls are cut into."""
    path = make_descend(
        quadratic, jnp.array([1.0, -2.0]), fwdgrad.backprop_value_and_grad,
        learning_rate=0.1, num_steps=130,
    )(0)  # fmt: skip
    expected = 0.9 ** np.arange(131)[:, None] * [1, -2]
    np.testing.assert_allclose(path.points, expected, rtol=1e-5)
    np.testing.assert_allclose(path.values, (expected**2).sum(1) / 2, rtol=1e-5)
    assert path.seconds[0] == 0 and (np.diff(path.seconds) > 0).all()


def test_descent_by_the_formula():
    """x ← x − η (∇f·v) v with the tangents of the key, however many steps follow."""
    start, rate = jnp.array([1.0, 2.0]), 0.05
    paths = {}
    for num_steps in (30, 60):
        descend = make_descend(
            quadratic, start, fwdgrad.forward_value_and_grad,
            learning_rate=rate, num_steps=num_steps,
        )  # fmt: skip
        paths[num_steps] = descend(5).points
        assert (descend(6).points[-1] != paths[num_steps][-1]).all()
    np.testing.assert_array_equal(paths[30], paths[60][:31])
    x = start
    for step in range(3):
        v = fwdgrad.Normal().sample(jax.random.fold_in(jax.random.key(5), step), x, None)
        x = x - rate * (x @ v) * v
        np.testing.assert_allclose(paths[60][step + 1], x, rtol=1e-5)


def test_descent_of_no_steps_raises():
    with pytest.raises(ValueError, match="num_steps must be at least 1; found 0"):
        make_descend(
            quadratic, jnp.ones(2), fwdgrad.backprop_value_and_grad,
            learning_rate=0.1, num_steps=0,
        )  # fmt: skip
