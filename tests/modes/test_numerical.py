"""Numerical differentiation: its error against the exact derivative, and its dtypes and shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.modes.numerical import default_step, numerical_jacobian

METHODS = ("forward", "central", "complex")
# The relative error at the default step, as a power of ε.
ACCURACY = {"forward": 1 / 2, "central": 2 / 3, "complex": 1.0}


def function(x):
    return jnp.stack([jnp.sin(x[0]) * jnp.exp(x[1]), x[0] ** 3 * x[2], jnp.tanh(x.sum())])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_the_error_of_the_default_step_is_that_of_theory(method, dtype, x64):
    x = jnp.array([0.7, -1.3, 40.0], dtype)
    found = jax.jit(lambda x: numerical_jacobian(function, x, method=method))(x)
    exact = np.asarray(jax.jit(jax.jacfwd(function))(x.astype("float64")))
    assert found.dtype == dtype and found.shape == (3, 3)
    # The step is scaled by |x| and the derivatives are not of size 1: a factor of 50 in all.
    bound = 50 * np.finfo(dtype).eps ** ACCURACY[method]
    assert np.abs(found - exact).max() < bound * np.abs(exact).max()


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_function_has_no_truncation_error(method, x64):
    weight = jnp.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]])
    found = numerical_jacobian(lambda x: weight @ x, jnp.ones(3), method=method, step=0.5)
    np.testing.assert_allclose(found, weight, rtol=1e-14)


def test_a_matrix_argument_is_flattened_under_jit():
    x = jnp.arange(6.0).reshape(2, 3)
    found = jax.jit(lambda x: numerical_jacobian(lambda y: y.T @ y, x))(x)
    assert found.shape == (9, 6)
    expected = jax.jacfwd(lambda y: y.T @ y)(x).reshape(9, 6)
    np.testing.assert_allclose(found, expected, atol=2e-2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_its_dtype(method, dtype):
    x = jnp.array([1.0, 2.0], dtype)
    found = jax.jit(lambda x: numerical_jacobian(lambda x: 3 * x, x, method=method))(x)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype("float32"), 3 * np.eye(2), atol=0.2)


def test_a_step_for_each_entry_and_an_empty_argument():
    steps = jnp.array([0.5, 0.25])
    found = numerical_jacobian(jnp.square, jnp.zeros(2), method="forward", step=steps)
    np.testing.assert_allclose(found, np.diag(steps))  # (h² − 0)/h
    assert numerical_jacobian(lambda x: jnp.ones(3), jnp.zeros(0)).shape == (3, 0)


def test_default_steps_are_powers_of_the_spacing():
    eps = np.finfo("float32").eps
    for method, power in (("forward", 1 / 2), ("central", 1 / 3), ("complex", 1)):
        assert default_step(method, "float32") == pytest.approx(eps**power)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"method": "backward"}, ValueError, "method must be one of forward, central, complex"),
        ({"step": 0.0}, ValueError, "step must be positive after .*; found 0.0"),
        (
            {"x": jnp.ones(3, "float16"), "step": 1e-9},
            ValueError,
            "positive after rounding to float16; found 1e-09",
        ),
        ({"x": jnp.arange(3)}, TypeError, r"x must be a real floating array; found int32\[3\]"),
        ({"function": jnp.abs, "method": "complex"}, TypeError, "so it is not analytic"),
    ],
)
def test_invalid_arguments_are_errors(arguments, kind, message):
    with pytest.raises(kind, match=message):
        numerical_jacobian(**{"function": jnp.sin, "x": jnp.ones(3), **arguments})
