"""Nothing relies on JAX promoting dtypes for it, which a user may have forbidden."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from tests.oracle import normal
from tests.sweeps import thorough_but


def loss(params, x):
    """Of weights in half and a bias in single precision."""
    z = jnp.tanh(x @ params["w"]).astype(jnp.float32) + params["b"]
    return jnp.mean((z @ params["u"].astype(jnp.float32)) ** 2)


def half_loss(params, x):
    return loss(params, x).astype(jnp.bfloat16)


PARAMS = {
    "w": normal(0, (4, 6), jnp.bfloat16),
    "b": normal(1, (6,), jnp.float32),
    "u": normal(2, (6, 3), jnp.float16),
}
X = normal(3, (5, 4), jnp.bfloat16)
DISTRIBUTIONS = [
    fwdgrad.Normal(),
    fwdgrad.Rademacher(),
    fwdgrad.Sphere(),
    fwdgrad.LowRank(2),
    fwdgrad.LowRank(factors="normal"),
    fwdgrad.Orthogonal(),
    fwdgrad.BlockSparse(),
]
SPACES = [
    fwdgrad.Weights(),
    fwdgrad.Weights(layerwise=True, exact_last=True),
    fwdgrad.Activities(),
    fwdgrad.Activities(layerwise=True, exact_last=True),
]


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def assert_as_params(grad):
    assert jax.tree.map(lambda x: (x.shape, x.dtype), grad) == jax.tree.map(
        lambda x: (x.shape, x.dtype), PARAMS
    )


@pytest.fixture(params=[loss, half_loss])
def fun(request):
    return request.param


@pytest.mark.parametrize(
    ("distribution", "space", "wide"),
    thorough_but(
        [
            (distribution, SPACES[(i + turn) % 4], turn == 2)
            for i, distribution in enumerate(DISTRIBUTIONS)
            for turn in (0, 2)
        ],
        itertools.product(DISTRIBUTIONS, SPACES, [False, True]),
    ),
    ids=repr,
)
def test_forward_gradients(key, fun, distribution, space, wide):
    options = [{}, {"aggregation": fwdgrad.Projection()}]
    if distribution != fwdgrad.LowRank(factors="normal"):
        options.append({"shrink": True, "clip": np.float32(1)})
    for chosen in options:
        estimate = fwdgrad.forward_value_and_grad(
            fun, tangents=distribution, num_tangents=2, space=space, **chosen
        )
        with jax.enable_x64(wide):
            value, grad = jax.eval_shape(estimate, key, PARAMS, X)
        assert_as_params(grad)
        assert value.dtype == fun(PARAMS, X).dtype


def test_single_and_double_precision_together(key):
    with jax.enable_x64(True):
        tangent = fwdgrad.Sphere().sample(key, {"a": jnp.ones(2), "b": jnp.ones(3, jnp.float32)})
        length = sum(float(jnp.sum(v**2)) for v in tangent.values())
    assert length == pytest.approx(5, rel=1e-6)


@pytest.mark.parametrize("space", [fwdgrad.Weights(), fwdgrad.Activities(exact_last=True)])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_guesses(key, fun, space, chunk_size):
    estimate = fwdgrad.forward_value_and_grad(
        fun, space=space, num_tangents=2, chunk_size=chunk_size
    ).guided()
    _, grad = jax.eval_shape(estimate, key, jax.eval_shape(estimate.init, PARAMS, X), X)
    assert_as_params(grad.params)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
@pytest.mark.parametrize(
    "estimator", [fwdgrad.spsa_value_and_grad, fwdgrad.evolution_value_and_grad]
)
def test_estimates_from_values(key, fun, estimator, distribution):
    estimate = estimator(fun, tangents=distribution, num_tangents=2)
    _, grad = jax.eval_shape(estimate, key, PARAMS, X)
    assert_as_params(grad)


def test_reverse_mode():
    assert_as_params(jax.eval_shape(fwdgrad.backprop_value_and_grad(loss), None, PARAMS, X)[1])
