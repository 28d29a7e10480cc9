"""A small problem for the training loop, and comparisons of its runs."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import fwdgrad
from fwdgrad.records import checkpoints
from fwdgrad.training import Settings, exponential_decay, train
from fwdgrad.training.run_in_progress import RunInProgress


class Regression(NamedTuple):
    """A small problem for the loop: least squares, "accurate" where the error is below one."""

    train: tuple
    valid: tuple
    test: tuple

    def init(self, key):
        return {"w": jax.random.normal(key, (4,)), "b": jnp.zeros(())}

    def scores(self, params, batch):
        x, y = batch
        error = (x @ params["w"] + params["b"] - y) ** 2
        return {"loss": error, "accuracy": (error < 1).astype(jnp.float32)}

    def loss(self, params, batch):
        return self.scores(params, batch)["loss"].mean()


FORWARD = functools.partial(fwdgrad.forward_value_and_grad, tangents=fwdgrad.Rademacher())
SETTINGS = Settings(num_steps=50, batch_size=8, eval_every=20, steps_per_call=7)


CONFIG = "seed: 3\nmodel: {name: mlp}\n"


def run(problem, folder, *, estimator=FORWARD, rate=0.01, settings=SETTINGS, **options):
    schedule = exponential_decay(rate, 1e-3)
    options = {"seed": 3, "checkpoint_seconds": 0.0, "show_progress": False, **options}
    return train(
        problem, estimator, optax.sgd(schedule), schedule, settings, folder=folder, **options
    )


def run_and_kill(problem, folder, **options):
    """Start a run and stop it after four calls of its compiled step."""
    advance, made = RunInProgress.advance, []

    def stop(self, count):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(count)
        advance(self, count)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunInProgress, "advance", stop)
        run(problem, folder, **options)


def without_seconds(rows):
    return [row._replace(seconds=0) for row in rows]


def assert_same_run(found, expected):
    """The same numbers to the bit, but for the times."""
    assert without_seconds(found.metrics) == without_seconds(expected.metrics)
    final, other = ({**r.info["final"], "seconds": 0} for r in (found, expected))
    assert final == other
    first, second = (checkpoints._read(r.folder)[0] for r in (found, expected))
    assert first == second


def rewrite(path, change):
    """Change the content of a JSON file."""
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
