"""The example of a problem that solves an ODE by diffrax goes through `train`."""

from pathlib import Path

import hydra
import numpy as np
import pytest

from ..problem_checks import check_problem

pytest.importorskip("diffrax")
from_config = pytest.importorskip("experiments.common.from_config", reason="needs [experiments]")

CONFIGS = Path(__file__).parents[2] / "configs"
TARGET = "problem._target_=examples.problems.diffrax_model.make_problem"


@pytest.fixture
def config(tmp_path):
    short = (
        "num_steps=4",
        "eval_every=2",
        "batch_size=8",
        "steps_per_call=2",
        "learning_rate=0.01",
    )
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield lambda *more: hydra.compose(
            "train", overrides=[TARGET, *short, f"output.root={tmp_path}", *more]
        )


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
