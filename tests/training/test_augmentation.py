"""A problem's `augment`: the minibatches that training sees, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.training import Batches, Settings
from tests.training.regression import FORWARD, Regression, assert_same_run, run, run_and_kill


class Noisy(Regression):
    """With inputs that are noisy in training."""

    def augment(self, key, batch):
        x, y = batch
        return x + jax.random.normal(key, x.shape), y


@pytest.fixture
def noisy(problem):
    return Noisy(*problem)


@pytest.mark.parametrize("steps_per_call", [1, 7])
def test_each_step_sees_its_own_augmented_minibatch(noisy, tmp_path, steps_per_call):
    """SGD written out, with the same examples and keys."""
    settings = Settings(50, 8, 20, steps_per_call)
    record = run(noisy, tmp_path, estimator=fwdgrad.backprop_value_and_grad, settings=settings)
    init_key, steps_key = jax.random.split(jax.random.key(3))
    params, batches, losses = noisy.init(init_key), Batches(100, 8, seed=3), []
    for step in range(50):
        batch = jax.tree.map(lambda x: x[batches.indices(step, 1, capacity=1)[0]], noisy.train)  # noqa: B023
        key = jax.random.fold_in(jax.random.fold_in(steps_key, 2**32 - 1), step)
        value, grad = jax.value_and_grad(noisy.loss)(params, noisy.augment(key, batch))
        losses.append(float(value))
        rate = 0.01 * np.exp(-1e-3 * step)
        params = jax.tree.map(lambda p, g: p - rate * g, params, grad)  # noqa: B023
    np.testing.assert_allclose(record.metrics[0].train_loss, losses[0], rtol=1e-5)
    np.testing.assert_allclose(record.metrics[1].train_loss, np.mean(losses[:20]), rtol=1e-4)
    final = record.metrics[-1]
    # The validation set is as it was.
    np.testing.assert_allclose(final.valid_loss, noisy.loss(params, noisy.valid), rtol=1e-4)


def test_an_augmentation_that_changes_nothing_changes_no_bit(problem, tmp_path):
    class Same(Regression):
        def augment(self, key, batch):
            return batch

    found = run(Same(*problem), tmp_path / "same", estimator=FORWARD)
    assert_same_run(found, run(problem, tmp_path / "without", estimator=FORWARD))


def test_an_interrupted_run_ends_with_the_same_bits(noisy, problem, tmp_path):
    expected = run(noisy, tmp_path / "whole")
    run_and_kill(noisy, tmp_path / "killed")
    assert_same_run(run(noisy, tmp_path / "killed"), expected)
    without = run(problem, tmp_path / "without")
    assert without.metrics[-1].valid_loss != expected.metrics[-1].valid_loss
    assert jnp.isfinite(expected.metrics[-1].valid_loss)
