"""A guess that is learned beside the parameters, in the loop that trains them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fwdgrad
from fwdgrad.training import GuidedProblem, guided_optimizer

X = jax.random.normal(jax.random.key(1), (6, 3))
START = {"w": jnp.array([1.0, -2.0, 0.5])}


def scores(params, batch):
    return {"loss": (batch @ params["w"]) ** 2}


PLAIN = SimpleNamespace(
    init=lambda key: START, scores=scores, loss=lambda p, x: scores(p, x)["loss"].mean(),
    train=X, valid=X[:2], test=X[2:],
)  # fmt: skip


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_the_guess_is_a_momentum_of_the_estimates(rate, key):
    value_and_grad = fwdgrad.forward_value_and_grad(PLAIN.loss)
    problem = GuidedProblem(PLAIN, value_and_grad.guide, batch_size=4)
    guided = problem.init(key)
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


def test_it_is_evaluated_without_the_guess(key):
    problem = GuidedProblem(PLAIN, lambda p, batch: fwdgrad.Guided(p, batch.sum()), batch_size=4)
    guided = problem.init(key)
    assert problem.train is X and guided.guess == 0  # made for a minibatch of zeros
    np.testing.assert_array_equal(problem.scores(guided, X)["loss"], PLAIN.scores(START, X)["loss"])
    assert problem.loss(guided, X) == problem.loss(guided.params, X) == PLAIN.loss(START, X)
