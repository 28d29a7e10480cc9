"""The example of a problem that solves an ODE by diffrax trains, and is measured."""

from pathlib import Path

import hydra
import numpy as np
import pytest

from fwdgrad.measurement import processes

from ..problem_checks import check_measured, check_problem

pytest.importorskip("diffrax")
from_config = pytest.importorskip("experiments.common.from_config", reason="needs [experiments]")

CONFIGS = Path(__file__).parents[2] / "configs"
TARGET = "problem._target_=examples.problems.diffrax_model.make_problem"


SHORT = ("num_steps=4", "eval_every=2", "batch_size=8", "steps_per_call=2", "learning_rate=0.01")


@pytest.fixture
def compose():
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield lambda name, *overrides: hydra.compose(name, overrides=list(overrides))


@pytest.fixture
def config(compose, tmp_path):
    return lambda *more: compose("train", TARGET, *SHORT, f"output.root={tmp_path}", *more)


@pytest.mark.parametrize(
    "estimator",
    [
        ["estimator=backprop"],
        ["tangents=low_rank"],
        ["space=activities", "tangents=rademacher"],
    ],
    ids=["backprop", "low_rank", "activities"],
)
def test_the_rates_of_an_ode_are_fitted(config, estimator):
    losses = [row.valid_loss for row in from_config.run(config(*estimator)).metrics]
    assert len(losses) == 3 and np.isfinite(losses).all()


def test_the_arrays_of_the_problem(config, key):
    check_problem(from_config.problem(config()), key)


def test_the_problem_is_measured(compose, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "in_fresh_process", lambda function, *args: function(*args))
    check_measured("diffrax_model", compose, tmp_path)
