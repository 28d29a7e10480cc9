"""Composing configs as the command line does."""

from pathlib import Path

import hydra
import jax
import pytest

from experiments import train
from fwdgrad.problems import Examples, load_dataset

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def compose():
    """(config name, *overrides) -> config; `hydra.compose` works within the test."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield lambda name, *overrides: hydra.compose(name, overrides=list(overrides))


@pytest.fixture
def few_examples(monkeypatch):
    """Of the data sets 1,000 examples of each part: what is trained or evaluated is soon done."""

    def load(name, folder):
        dataset = load_dataset(name, folder)
        few = [Examples(*(array[:1000] for array in part)) for part in dataset[:3]]
        return dataset._replace(train=few[0], valid=few[1], test=few[2])

    def forget():
        train._problem.cache_clear()
        train._examples.cache_clear()

    forget()
    monkeypatch.setattr(train, "load_dataset", load)
    yield
    forget()


@pytest.fixture
def small(compose, tmp_path):
    """(overrides, widths) -> a config of a small MLP, and starts of it of the seeds 0 and 1."""

    def make(*overrides, widths=(8,)):
        model = [
            "model=mlp", f"model.make.widths={list(widths)}", "batch_size=8", "steps_per_call=2",
            f"output.root={tmp_path}",
        ]  # fmt: skip
        problem = train.problem(compose("train", *model, "estimator=backprop"))
        starts = {seed: problem.init(jax.random.key(seed)) for seed in (0, 1)}
        return compose("train", *model, *overrides), starts

    return make
