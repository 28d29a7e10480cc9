"""The gains of better allocated noise, against all noise there is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.quality import noise_allocation
from experiments.quality.noise_allocation import gains
from tests.oracle import normal

DELTA = np.array(normal(0, (4, 3)))
DELTA[1, 2] = 0  # a unit that is off


def error(delta, scales):
    """Return the mean over all signs of the squared error of one tangent's estimate."""
    on = delta != 0
    found = []
    for signs in itertools.product([-1.0, 1.0], repeat=len(delta)):
        v = np.where(on, scales * np.array(signs), 0)
        estimate = np.where(on, (delta @ v) * v / scales**2, 0)
        found.append(np.sum((estimate - delta) ** 2))
    return np.mean(found)


def test_gains_are_those_over_all_signs():
    equal = np.array([error(d, np.ones(3)) for d in DELTA])
    rms = np.sqrt((DELTA**2).sum(0) / (DELTA != 0).sum(0))
    of_units = sum(error(d, rms**-0.5) for d in DELTA)
    of_entries = sum(error(d, np.where(d == 0, 1, np.abs(d)) ** -0.5) for d in DELTA)
    found = gains(jnp.asarray(DELTA))
    assert found["units"] == pytest.approx(equal.sum() / of_units, rel=1e-5)
    assert found["entries"] == pytest.approx(equal.sum() / of_entries, rel=1e-5)
    shares = len(equal) * np.sqrt(equal) / np.sqrt(equal).sum()  # of K, one each otherwise
    assert found["examples"] == pytest.approx(equal.sum() / np.sum(equal / shares), rel=1e-5)


def test_no_scales_gain_more_than_those_of_the_entries():
    delta = DELTA[:1]
    most = float(gains(jnp.asarray(delta))["entries"])
    rng = np.random.default_rng(0)
    for scales in rng.uniform(0.2, 5, (200, 3)):
        assert error(delta[0], np.ones(3)) / error(delta[0], scales) <= most * (1 + 1e-6)


@pytest.mark.thorough
def test_a_small_path(compose, tmp_path):
    """On it are the derivatives of `jax.grad` by noise at the hidden layers."""
    cfg = compose(
        "noise_allocation", "model.make.widths=[6,5]", "seeds=[0,1]", "num_steps=4", "steps=[0,3]",
        "batch_size=4", "num_examples=8", f"output.root={tmp_path}",
    )  # fmt: skip
    noise_allocation.run(cfg)
    text = noise_allocation.describe(tmp_path)
    assert "means over 2 seeds" in text and "| 2 | 3 |" in text
    table = (tmp_path / "noise_allocation.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * 2 * 2

    problem = noise_allocation.problems.problem(cfg)
    params = problem.init(jax.random.key(0))
    batch = jax.tree.map(lambda x: x[:8], problem.train)
    if problem.augment is not None:
        batch = problem.augment(jax.random.key(1), batch)
    weights = [x for x in jax.tree.leaves(params) if x.ndim]

    def loss(extra, example):
        (w, b), (v, c), (u, a) = zip(weights[::2], weights[1::2], strict=True)
        x, y = example
        h = jax.nn.relu(w @ x.ravel() + b + extra[0])
        h = jax.nn.relu(v @ h + c + extra[1])
        return -jax.nn.log_softmax(u @ h + a)[y.sum() % 10]

    x, y = batch
    y = jnp.asarray(y)
    zeros = [jnp.zeros(6), jnp.zeros(5)]
    expected = jax.vmap(jax.grad(loss), (None, 0))(zeros, (x, y))
    found = noise_allocation._derivatives(problem, params, batch)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
