"""Composing configs as the command line does."""

import copy
from functools import lru_cache
from pathlib import Path

import hydra
import jax
import matplotlib.pyplot as plt
import pytest
from omegaconf import OmegaConf

from experiments.common import from_config, problems
from fwdgrad.measurement import processes
from fwdgrad.problems import Examples, load_dataset

CONFIGS = Path(__file__).parents[2] / "configs"


def committed(name):
    """The folder of the committed tables of an experiment, small ones if there are."""
    shown = OmegaConf.load(CONFIGS / "preset" / "quick.yaml").shown
    return CONFIGS.parent / "results" / ("quick" if name in shown else "paper")


@pytest.fixture
def compose():
    """(config name, *overrides) -> config; `hydra.compose` works within the test."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield lambda name, *overrides: copy.deepcopy(composed(name, overrides))


@lru_cache(maxsize=512)
def composed(name, overrides):
    return hydra.compose(name, overrides=list(overrides))


@lru_cache(maxsize=4)
def load_few(name, folder, source=None):
    """Return the first 1,000 examples of each part of a data set, with the whole set's moments."""
    dataset = load_dataset(name, folder, source)
    few = [Examples(*(array[:1000] for array in part)) for part in dataset[:3]]
    return dataset._replace(train=few[0], valid=few[1], test=few[2])


@pytest.fixture(autouse=True)
def few_examples(monkeypatch):
    """Train and evaluate on few examples in this process; commands have all examples."""
    monkeypatch.setattr(problems, "load_dataset", load_few)
    from_config._shared.cache_clear()


@pytest.fixture(autouse=True)
def close_figures():
    """Close the figures that a failed test leaves open, which would fail the tests after it."""
    yield
    plt.close("all")


@pytest.fixture
def all_examples(few_examples, monkeypatch):
    """Train and evaluate on all examples in one test, and read them anew before and after."""
    monkeypatch.setattr(problems, "load_dataset", load_dataset)
    for cached in (problems._images, problems._problem):
        cached.cache_clear()
    yield
    for cached in (problems._images, problems._problem):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Measure in this process, since a fresh one takes seconds to start."""
    monkeypatch.setattr(processes, "in_fresh_process", lambda function, *args: function(*args))


@pytest.fixture
def small(compose, tmp_path):
    """(overrides, widths) -> a config of a small MLP, and starts of it of the seeds 0 and 1."""

    def make(*overrides, widths=(8,)):
        model = [
            "model=mlp", f"model.make.widths={list(widths)}", "batch_size=8", "steps_per_call=2",
            f"output.root={tmp_path}",
        ]  # fmt: skip
        problem = problems.problem(compose("train", *model, "estimator=backprop"))
        starts = {seed: problem.init(jax.random.key(seed)) for seed in (0, 1)}
        return compose("train", *model, *overrides), starts

    return make
