"""The laboratory and the race, small: their files and their numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.common import from_config, style
from experiments.common.comparisons import Comparison
from experiments.common.tuning import Rates
from experiments.quality.gradient_quality import quality
from experiments.races import results
from fwdgrad.estimators.value_and_grad import ValueAndGrad
from fwdgrad.records import write_table
from fwdgrad.training import pack_flags


def test_backprop_is_exact(small):
    config, starts = small("estimator=backprop")
    found = quality(config, starts, draws=2, guess_steps=0)
    for name in ("cosine", "hidden_cosine", "squared_cosine", "slope"):
        assert found[name] == pytest.approx([1, 1], abs=1e-5)
    for name in ("error", "bias", "variance"):
        assert found[name] == pytest.approx([0, 0], abs=1e-9)
    assert found["law"] == [0, 0]


@pytest.mark.parametrize(("factor", "noise"), [(0.5, 0.0), (1.0, 2.0), (-3.0, 1.0)])
def test_bias_and_variance_are_told_apart(small, monkeypatch, factor, noise):
    """Of g = a ∇f + s n, n orthogonal to ∇f and as long but for a factor, s a random sign."""

    class Estimator(ValueAndGrad):
        def __call__(self, key, params, batch):
            value, grad = jax.value_and_grad(self.fun)(params, batch)
            flat, unravel = ravel_pytree(grad)
            across = jnp.arange(flat.size) * 1.0
            across = across - (across @ flat) / (flat @ flat) * flat
            across = across * jnp.linalg.norm(flat) / jnp.linalg.norm(across)
            sign = jax.random.rademacher(key, (), flat.dtype)
            return value, unravel(factor * flat + noise * sign * across)

    config, starts = small("estimator=backprop")
    monkeypatch.setattr(from_config, "estimator", lambda cfg: Estimator)
    n = 1000
    found = quality(config, starts, draws=n, guess_steps=0)
    cosine = factor / (factor**2 + noise**2) ** 0.5
    assert found["cosine"] == pytest.approx([cosine] * 2, rel=1e-3)
    assert found["squared_cosine"] == pytest.approx([cosine**2] * 2, rel=1e-3)
    assert found["slope"] == pytest.approx([factor] * 2, rel=1e-3)
    assert found["error"] == pytest.approx([(factor - 1) ** 2 + noise**2] * 2, rel=1e-3)
    # The mean of n signs is within 5/√n; its square, 1/n taken off, enters the bias.
    assert found["bias"] == pytest.approx([(factor - 1) ** 2] * 2, abs=1e-3 + 26 * noise**2 / n)


@pytest.mark.thorough
def test_activities_are_better_than_weights_and_guesses_help(small):
    layerwise = [
        "space=activities", "tangents=rademacher", "estimator.value_and_grad.space.layerwise=true",
        "estimator.value_and_grad.space.exact_last=true",
    ]  # fmt: skip
    found = []
    for overrides in (["tangents=rademacher"], layerwise, [*layerwise, "guess=learned"]):
        config, starts = small(*overrides)
        found.append(quality(config, starts, draws=200, guess_steps=200)["hidden_cosine"])
    of_weights, plain, guided = found
    assert max(of_weights) < 0.2 * min(plain) and max(plain) < min(guided)


def test_results_of_a_seed_do_not_depend_on_other_seeds(small):
    """Its minibatch and its draws, too: seeds that are added later are new samples."""
    config, starts = small("tangents=rademacher")
    starts[1] = starts[0]
    both = quality(config, starts, draws=2, guess_steps=0)
    alone = quality(config, {1: starts[1]}, draws=2, guess_steps=0)
    assert both["cosine"][1] == alone["cosine"][0] != both["cosine"][0]


def race_tables(folder, lines):
    """Tables of a race of (family, seconds a step, shares of right answers) for each line."""
    accuracy_rows, test_rows, samples = [], [], []
    for name, (family, seconds, accuracies) in lines.items():
        for seed, accuracy in enumerate(accuracies):
            accuracy_rows += [
                (family, name, seed, step, 1e9 * step, 0.5 * step * accuracy) for step in (0, 1, 2)
            ]
            correct = np.arange(1000) < round(1000 * accuracy)
            test_rows.append((name, seed, accuracy, 1000, pack_flags(correct)))
        samples += [(name, process, 0, seconds * (1 + process)) for process in range(3)]
    write_table(folder / "race.csv", results.COLUMNS, accuracy_rows)
    write_table(folder / "race_test.csv", results.TEST_COLUMNS, test_rows)
    write_table(folder / "race_timings.csv", ("program", "process", "turn", "seconds"), samples)


def test_the_lines_of_a_race_are_read_back_and_reported(tmp_path):
    race_tables(
        tmp_path,
        {
            "backprop": ("backprop", 0.5, [0.986, 0.988, 0.99]),
            "activity-blocks": ("activity", 1.0, [0.98, 0.981, 0.982]),
        },
    )
    lines = results.read(tmp_path, "race")
    assert lines["activity-blocks"].correct.sum(1).tolist() == [980, 981, 982]
    # The geometric mean of 1, 2 and 3 s, times two steps.
    assert lines["activity-blocks"].seconds == pytest.approx(2 * 6 ** (1 / 3))
    assert lines["activity-blocks"].over_backprop.value == pytest.approx(2)
    about = {name: {"derivatives": 64, "batch_size": 128} for name in lines}
    rates = dict.fromkeys(lines, Rates({0.1: [1.0]}, 0.1, [0.2]))
    *_, first, second = results.line_table(lines, about, rates, None)
    assert first.startswith("| backprop | 1.20 [0.70, 1.70] | 1.20 [0.70, 1.70] | 2 | 1.82 | 1 |")
    assert second.startswith(f"| {style.label('activity-blocks')} | 1.90 [1.65, 2.15]")
    assert second.endswith("| 64 | 128 | 0.1; given up: 0.2 |")


def test_the_comparisons_of_a_race_are_reported():
    rows = [
        Comparison("activity-blocks", "backprop", 0.3, 0.1, 0.5, 0.01, 0.02, 0.15, 0.45, 5),
        Comparison("backprop", "activity-blocks", 0.1, -0.1, 0.3, 0.3, 0.3, -0.05, 0.15, 5),
    ]
    *_, first, second = results.comparison_table(rows, margin=0.2)
    assert first == (
        f"| {style.label('activity-blocks')} | backprop | +0.30 [+0.10, +0.50] | 0.02 | higher |"
    )
    assert second.endswith("| +0.10 [-0.10, +0.30] | 0.3 | equivalent |")
