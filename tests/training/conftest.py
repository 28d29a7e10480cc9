"""A problem, and folders of its runs: never interrupted, finished, unfinished."""

import shutil

import jax
import jax.numpy as jnp
import pytest

from tests.training.regression import CONFIG, Regression, run, run_and_kill


@pytest.fixture(scope="module")
def problem():
    def examples(seed, n):
        x = jax.random.normal(jax.random.key(seed), (n, 4))
        return x, x @ jnp.arange(4.0) + 1

    return Regression(examples(0, 100), examples(1, 30), examples(2, 40))


@pytest.fixture(scope="module")
def alone(problem, tmp_path_factory):
    """A run that is never interrupted."""
    return run(problem, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def finished(problem, tmp_path_factory):
    """A folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    run(problem, folder, config=CONFIG)
    return folder


@pytest.fixture(scope="module")
def unfinished(problem, tmp_path_factory):
    """A folder of a run that was stopped in the middle, with a checkpoint."""
    folder = tmp_path_factory.mktemp("unfinished")
    run_and_kill(problem, folder, config=CONFIG)
    return folder


@pytest.fixture
def copied(tmp_path):
    """A folder -> a copy of it."""
    return lambda folder: shutil.copytree(folder, tmp_path / "copy")
