"""Models of the paper: sizes, initialisation, pooling; the loss; the minima of test functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.problems import (
    CNN,
    MLP,
    TEST_FUNCTIONS,
    Dataset,
    Examples,
    LogisticRegression,
    beale,
    image_classification,
    models,
    rosenbrock,
)
from fwdgrad.util.trees import partition


def count_parameters(model):
    return sum(x.size for x in jax.tree.leaves(partition(model)[0]))


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (LogisticRegression, 784 * 10 + 10),
        (MLP, 784 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 10 + 10),
        (CNN, 9 * 64 + 64 + 3 * (9 * 64 * 64 + 64) + 3136 * 1024 + 1024 + 1024 * 10 + 10),
    ],
)
def test_models_have_the_sizes_of_the_paper(make, parameters, key):
    model = make(key=key)
    assert count_parameters(model) == parameters
    assert jax.eval_shape(model, jnp.zeros((28, 28))).shape == (10,)


def test_the_initialisation_is_that_of_pytorch(key):
    """Bounds and variance of U(−1/√n, 1/√n), with n the number of inputs of a unit."""
    mlp, cnn = MLP(key=key), CNN(key=key)
    layers = [(x, x.weight.shape[1]) for x in (*mlp.layers, cnn.hidden, cnn.output)]
    layers += [(x, 9 * x.weight.shape[1]) for x in cnn.convolutions]
    for layer, inputs in layers:
        for array in (layer.weight, layer.bias):
            scaled = np.asarray(array, np.float64).reshape(-1) * inputs**0.5
            assert np.abs(scaled).max() <= 1 + 1e-6
            # Var u² of u ~ U(−1, 1) is 4/45; failure probability 1e-8 for each array, z = 5.73
            assert abs(np.mean(scaled**2) - 1 / 3) < 5.73 * (4 / 45 / scaled.size) ** 0.5


def test_layers_have_keys_of_their_own(key):
    first, second = CNN(key=key).convolutions[1:3]
    assert not np.allclose(first.weight, second.weight)


@pytest.mark.parametrize("pooling", ["select", "reduce"])
def test_max_pooling_is_reduce_window(pooling, key):
    x, v = jax.random.normal(key, (2, 3, 6, 4))

    def window(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2), (1, 2, 2), "VALID")

    found = jax.jvp(models._POOLINGS[pooling], (x,), (v,))
    jax.tree.map(np.testing.assert_array_equal, found, jax.jvp(window, (x,), (v,)))


def test_the_tangent_of_a_tie_is_that_of_the_first_input():
    v = jnp.arange(4.0).reshape(1, 2, 2)
    maximum, tangent = jax.jvp(models._POOLINGS["select"], (jnp.zeros((1, 2, 2)),), (v,))
    assert maximum == 0 and tangent == 0


def test_an_unknown_pooling_is_an_error(key):
    with pytest.raises(ValueError, match="pooling must be one of select, reduce; found 'mean'"):
        CNN(pooling="mean", key=key)


def test_scores_of_each_standardised_example_agree_with_numpy(key):
    """For logistic regression."""
    images = np.asarray(jax.random.randint(key, (7, 28, 28), 0, 256), np.uint8)
    labels = np.arange(7, dtype=np.int32)
    examples = Examples(images, labels)
    problem = image_classification(LogisticRegression, Dataset(*[examples] * 3, 0.25, 0.5))
    params = problem.init(key)
    scores = problem.scores(params, problem.train)

    x = (images.reshape(7, -1) / 255.0 - 0.25) / 0.5
    logits = x @ np.asarray(params.linear.weight, np.float64).T + np.asarray(params.linear.bias)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), labels]
    np.testing.assert_allclose(scores["loss"], losses, rtol=1e-5)
    np.testing.assert_array_equal(scores["accuracy"], logits.argmax(1) == labels)
    np.testing.assert_allclose(problem.loss(params, problem.train), losses.mean(), rtol=1e-5)


def test_parameters_of_a_problem_are_arrays_alone(key):
    examples = Examples(np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.int32))
    problem = image_classification(eqx.Partial(MLP, (8,)), Dataset(*[examples] * 3, 0.0, 1.0))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(problem.init(key)))


@pytest.mark.parametrize("name", TEST_FUNCTIONS)
@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_argmin_is_a_minimum_of_each_test_function(name, dimension, x64):
    function, fixed, argmin = TEST_FUNCTIONS[name]
    if fixed is not None:
        dimension = fixed
    elif name == "rosenbrock":
        dimension = max(dimension, 2)
    x = jnp.array(argmin if fixed else argmin * dimension)
    gradient, hessian = jax.jit(lambda x: (jax.grad(function)(x), jax.hessian(function)(x)))(x)
    assert np.abs(gradient).max() < 1e-4  # Styblinski-Tang's minimiser is given to 7 digits
    assert np.linalg.eigvalsh(hessian).min() > 0
    assert function(x).shape == () and function(x.astype("float32")).dtype == jnp.float32


def test_values_at_the_starting_points_of_the_paper():
    np.testing.assert_allclose(beale(jnp.array([0.0, 0.5])), 14.203125)
    np.testing.assert_allclose(rosenbrock(jnp.array([-1.0, 0.0])), 104)
