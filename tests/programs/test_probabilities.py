"""Probabilistic models of NumPyro: log density, potential, evidence lower bound of a guide."""

import jax
import jax.numpy as jnp
import pytest

import fwdgrad

from .comparison import FEW, WEIGHTS, check_estimates, check_spaces, lost_by_leaf

numpyro = pytest.importorskip("numpyro")
distributions = pytest.importorskip("numpyro.distributions")

N = 4


def data():
    x = jax.random.normal(jax.random.key(1), (N, 3), "float64")
    return x, jnp.sin(x.sum(1))


def model(x, y):
    w = numpyro.sample("w", distributions.Normal(jnp.zeros((3, 4)), 1).to_event(2))
    u = numpyro.sample("u", distributions.StudentT(3.0, jnp.zeros(4), 1).to_event(1))
    scale = numpyro.sample("scale", distributions.LogNormal(0.0, 0.5))
    with numpyro.plate("examples", x.shape[0]):
        numpyro.sample("y", distributions.Normal(jnp.tanh(x @ w) @ u, scale), obs=y)


def points():
    keys = jax.random.split(jax.random.key(0))
    w, u = (jax.random.normal(k, s, "float64") for k, s in zip(keys, ((3, 4), (4,)), strict=True))
    return {"w": w, "u": u, "scale": jnp.array(0.3, "float64")}


def log_density(params, x, y):
    value, _ = numpyro.infer.util.log_density(
        model, (x, y), {}, {**params, "scale": jnp.exp(params["scale"])}
    )
    return -value


def potential(params, x, y):
    """Return the potential energy of unconstrained parameters."""
    return numpyro.infer.util.potential_energy(model, (x, y), {}, params)


def bound(params, x, y):
    """Return the negative evidence lower bound of a guide of independent normals, by log scales."""
    guide = numpyro.infer.autoguide.AutoNormal(model)
    with numpyro.handlers.seed(rng_seed=0):
        guide(x, y)
    means = {f"{name}_auto_loc": value for name, value in params["loc"].items()}
    scales = {f"{name}_auto_scale": jnp.exp(value) for name, value in params["scale"].items()}
    elbo = numpyro.infer.Trace_ELBO(num_particles=2)
    return elbo.loss(jax.random.key(3), {**means, **scales}, model, guide, x, y)


def parameters_of_guide():
    return {"loc": points(), "scale": jax.tree.map(lambda x: 0.1 * x - 2, points())}


PROGRAMS = {  # (loss, parameters, for each leaf the primitives that lose its factors)
    "log density": (log_density, points, {"params['w']": {"div"}}),
    "potential": (potential, points, {"params['w']": {"div"}}),
    "bound": (bound, parameters_of_guide, {}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_estimate_is_that_of_jvp(name):
    loss, params, _ = PROGRAMS[name]
    check_estimates(loss, params(), *data(), cases=FEW)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_mean_is_the_gradient_at_weights(name):
    loss, params, _ = PROGRAMS[name]
    check_spaces(loss, params(), *data(), spaces=WEIGHTS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_loss_with_a_prior_that_is_added_once_mixes_the_examples(name):
    loss, params, _ = PROGRAMS[name]
    with pytest.raises(ValueError, match="fun mixes the examples of a minibatch"):
        fwdgrad.check_examples_independent(loss, params(), *data())


@pytest.mark.parametrize("name", PROGRAMS)
def test_explain_lists_the_primitives_that_lose_factors(name):
    loss, params, lost = PROGRAMS[name]
    found = lost_by_leaf(loss, params(), *data())
    assert {leaf: lines for leaf, lines in found.items() if leaf in lost} == lost
