"""The laboratory and the race, small: what they leave, and that their numbers are right."""

import math

import jax
import numpy as np
import pytest

from experiments import accuracy_race, estimator_quality, jobs, race_results, train
from fwdgrad.work.records import write_table

SMALL = ["model=mlp", "model.make.widths=[8]", "batch_size=8", "steps_per_call=2"]


@pytest.fixture
def quality(compose, tmp_path):
    def measure(*overrides, draws=200, guess_steps=0):
        cfg = compose("reproduce", "preset=smoke", f"output.root={tmp_path}")
        config = jobs.compose_train(cfg, [*SMALL, *overrides])
        problem = train.problem(config)
        params = problem.init(jax.random.key(0))
        params = getattr(params, "params", params)
        return estimator_quality.quality(config, params, draws=draws, guess_steps=guess_steps)

    return measure


def test_backprop_is_exact(quality):
    found = quality("estimator=backprop", draws=2)
    for name, value in {"cosine": 1, "hidden_cosine": 1, "slope": 1, "error": 0, "law": 0}.items():
        assert found[name].value == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("tangents", ["normal", "rademacher", "low_rank", "orthogonal"])
def test_the_error_is_the_laws_and_the_slope_is_one(quality, tangents):
    """2.5 half-widths of 95 % are 4.9 standard deviations."""
    found = quality(f"tangents={tangents}", "estimator.value_and_grad.num_tangents=4", draws=1000)
    size = 784 * 8 + 8 + 8 * 10 + 10
    expected = {"normal": (size + 1) / 4, "orthogonal": size / 4 - 1}.get(tangents, (size - 1) / 4)
    assert found["law"].value == pytest.approx(expected)
    for name, value in (("error", expected), ("slope", 1)):
        half = (found[name].high - found[name].low) / 2
        assert abs(found[name].value - value) < 2.5 * half


def test_activities_are_better_than_weights_and_guesses_help(quality):
    of_weights = quality("tangents=rademacher")
    layerwise = [
        "space=activities", "tangents=rademacher", "estimator.value_and_grad.space.layerwise=true",
        "estimator.value_and_grad.space.exact_last=true",
    ]  # fmt: skip
    plain = quality(*layerwise)
    guided = quality(*layerwise, "guess=learned", guess_steps=200)
    assert math.isnan(plain["law"].value)
    assert of_weights["hidden_cosine"].high < plain["hidden_cosine"].low
    assert plain["hidden_cosine"].high < guided["hidden_cosine"].low


def race_table(path, lines):
    """A table of `accuracy_race` of (family, seconds, test accuracies) for each estimator."""
    rows = [
        (family, name, seed, step, seconds * step / 2, 1e9 * step, 0.5 * step * accuracy,
         accuracy if step == 2 else "")
        for name, (family, seconds, accuracies) in lines.items()
        for seed, accuracy in enumerate(accuracies)
        for step in (0, 1, 2)
    ]  # fmt: skip
    write_table(path, accuracy_race.COLUMNS, rows)


def test_who_is_ahead_of_whom(tmp_path):
    race_table(
        tmp_path / "race.csv",
        {
            "backprop-15s": ("backprop", 15, [0.982, 0.9842]),
            "backprop": ("backprop", 120, [0.986, 0.988]),
            "control-last-layer": ("backprop", 120, [0.93, 0.94]),
            "control-first-frozen": ("backprop", 120, [0.980, 0.981]),
            "activity": ("activity", 120, [0.9825, 0.9835]),
            "weight": ("weight", 120, [0.95, 0.951]),
            "local": ("local", 120, [0.9815, 0.9805]),
        },
    )
    lines = race_results.read(tmp_path / "race.csv")
    assert lines["activity"].seconds == 120
    np.testing.assert_allclose(lines["activity"].test_accuracy, [0.9825, 0.9835])
    activity, weight, local = race_results.verdicts(lines)
    assert "beats control-first-frozen, the best control of its time, by 0.25 points;" in activity
    behind = "0.4 [-0.2353, 1.035] points behind Backprop"  # pairs of seeds: 0.35, 0.45
    assert f"{behind}, 8 times the 15 s that backprop takes to it" in activity
    assert "does not beat control-first-frozen" in weight
    assert "is not told from control-first-frozen" in local


def test_the_frontier_is_what_nothing_cheaper_is_as_good_as():
    points = np.random.default_rng(0).random((50, 2)).tolist()
    frontier = estimator_quality._frontier([tuple(p) for p in points])
    for cost, value in frontier:
        assert not any(c < cost and v >= value for c, v in points)
    assert max(v for _, v in points) == frontier[-1][1]
