"""`output.runs_of`: finished runs of another platform are read back, in the place of training."""

import sys

import jax
import pytest

from experiments.common import costs, from_config
from experiments.common.tuning import tune_and_train
from fwdgrad.training import DivergedError


@pytest.fixture
def platform(monkeypatch):
    """Name of a platform -> from then on, runs are named and recorded as those of it."""
    module = sys.modules["fwdgrad.records.jax_settings"]  # its function has the same name
    return lambda name: monkeypatch.setattr(module, "default_platform", lambda: name)


@pytest.fixture
def config(compose, tmp_path):
    def make(*overrides):
        small = ("model=logistic", "estimator=backprop", "num_steps=2", "eval_every=2")
        return compose("train", *small, f"output.root={tmp_path}", *overrides)

    return make


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a run was trained that another platform has finished")

    return lambda: monkeypatch.setattr(from_config, "train_together", fail)


def test_a_finished_run_is_taken(config, platform, no_training):
    platform("gpu")
    trained = from_config.run(config())
    assert trained.info["jax"]["platform"] == "gpu"
    platform("cpu")
    assert from_config.folder(config()) != trained.folder
    no_training()
    record = from_config.run(config("output.runs_of=[tpu,gpu]"))
    assert record == trained
    with pytest.raises(AssertionError, match="was trained"):
        from_config.run(config())


def test_a_run_of_this_platform_comes_first(config, platform):
    here = from_config.run(config())
    platform("gpu")
    from_config.run(config())
    platform("cpu")
    assert from_config.run(config("output.runs_of=[gpu]")) == here


def test_a_run_that_nobody_finished_is_trained_here(config):
    record = from_config.run(config("output.runs_of=[gpu]"))
    assert record.info["jax"]["platform"] == "cpu"


@pytest.mark.thorough
def test_a_diverged_run_is_one_too(config, platform, no_training):
    """A rate that fails on another platform is out, and is read back as such."""
    tuning = {"seeds": [1], "num_rates": 3, "factor": 10.0}

    def make_config(rate, seed, is_tuning):
        return config(f"learning_rate={rate}", f"seed={seed}", "output.runs_of=[gpu]")

    def tuned():
        return tune_and_train(make_config, 1e37, tuning, [2], lambda text: None)

    platform("gpu")
    with pytest.raises(DivergedError, match="every rate"):
        tuned()
    platform("cpu")
    no_training()
    with pytest.raises(DivergedError, match="every rate"):
        tuned()


def test_a_wrong_platform_is_an_error(config):
    with pytest.raises(ValueError, match=r"output\.runs_of must be"):
        from_config.run(config("output.runs_of=[cuda]"))


def test_operations_are_counted_on_a_cpu(config, tmp_path, monkeypatch):
    """A library's products are not in XLA's account on a GPU."""
    seen = []
    monkeypatch.setattr(
        costs, "measured_once", lambda *args: seen.append(jax.config.jax_default_device)
    )
    costs.operations_of_a_step(config(), tmp_path)
    assert [device.platform for device in seen] == ["cpu"]
