"""Training with a guess of the gradient beside the parameters, and with any other estimator."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fwdgrad
from fwdgrad.training import exponential_decay, guided_optimizer, train
from tests.training.regression import SETTINGS, run

X = jax.random.normal(jax.random.key(1), (6, 3))
START = {"w": jnp.array([1.0, -2.0, 0.5])}


def loss(params, batch):
    return jnp.mean((batch @ params["w"]) ** 2)


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_the_guess_is_a_momentum_of_the_estimates(rate, key):
    value_and_grad = fwdgrad.forward_value_and_grad(loss).guided()
    guided = value_and_grad.init(START, X)
    assert guided.params == START and not guided.guess["w"].any()
    optimizer = guided_optimizer(optax.sgd(0.1), rate)
    state = optimizer.init(guided)
    expected = np.zeros(3)
    for k in jax.random.split(key, 3):
        _, grad = value_and_grad(k, guided, X)
        updates, state = optimizer.update(grad, state)
        after = optax.apply_updates(guided, updates)
        step = guided.params["w"] - 0.1 * grad.params["w"]
        np.testing.assert_allclose(after.params["w"], step, rtol=1e-6)
        expected = (1 - rate) * expected + rate * np.asarray(grad.params["w"])
        np.testing.assert_allclose(after.guess["w"], expected, rtol=1e-4, atol=1e-6)
        guided = after


def test_training_learns_the_guess_and_evaluates_the_parameters(problem, tmp_path):
    """With a rate of 0 the guess stays zero, and the run is the one without; else it is learned."""

    def guided(loss, **options):
        return fwdgrad.forward_value_and_grad(loss, **options).guided()

    plain = run(problem, tmp_path / "plain", estimator=fwdgrad.forward_value_and_grad)
    runs = {}
    for rate in (0.0, 0.5):
        schedule = exponential_decay(0.01, 1e-3)
        runs[rate] = train(
            problem, guided, guided_optimizer(optax.sgd(schedule), rate), schedule, SETTINGS,
            seed=3, folder=tmp_path / str(rate), show_progress=False,
        )  # fmt: skip
    losses = {
        name: [row.valid_loss for row in found.metrics]
        for name, found in [("plain", plain), *runs.items()]
    }
    np.testing.assert_allclose(losses[0.0], losses["plain"], rtol=1e-4)
    assert losses[0.5][0] == losses["plain"][0] and losses[0.5][-1] != losses["plain"][-1]


class Own:
    """An estimator with the protocol alone: backprop, with a state around the parameters."""

    draws_ahead = True

    def __init__(self, loss, has_report):
        self.loss = loss

    def init(self, params, batch):
        return {"params": params, "examples": jnp.float32(len(batch[0]))}

    def params_of(self, state):
        return state["params"]

    def draw(self, key, state, batch):
        return {"scale": jnp.ones(())}

    def along(self, drawn, state, batch):
        value, grad = jax.value_and_grad(self.loss)(state["params"], batch)
        grad = {"params": grad, "examples": jnp.zeros(())}
        grad = jax.tree.map(lambda g: drawn["scale"] * g, grad)
        return value, grad, {"mine": 2.0 * value / value}

    def __call__(self, key, state, batch):
        return self.along(self.draw(key, state, batch), state, batch)


class DrawnInTheStep(Own):
    draws_ahead = False

    def draw(self, key, state, batch):
        assert key.shape == ()  # that of the step
        return super().draw(key, state, batch)


@pytest.mark.parametrize("estimator", [Own, DrawnInTheStep])
@pytest.mark.parametrize("steps_per_call", [1, 7])
def test_training_knows_an_estimator_by_its_protocol_alone(
    estimator, steps_per_call, problem, tmp_path
):
    settings = replace(SETTINGS, steps_per_call=steps_per_call)
    backprop = fwdgrad.backprop_value_and_grad
    expected = run(problem, tmp_path / "backprop", estimator=backprop, settings=settings)
    found = run(problem, tmp_path / "own", estimator=estimator, settings=settings)
    for a, b in zip(found.metrics, expected.metrics, strict=True):
        np.testing.assert_allclose(a._replace(seconds=0), b._replace(seconds=0), rtol=1e-5)
    assert found.info["final"]["mine"] == 2.0
