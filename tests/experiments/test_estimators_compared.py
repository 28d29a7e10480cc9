"""The laboratory and the race, small: their files and their numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.common import from_config
from experiments.quality.gradient_quality import quality
from experiments.races import race, results
from fwdgrad.estimators.value_and_grad import ValueAndGrad
from fwdgrad.measurement import mean_interval
from fwdgrad.records import write_table


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


def race_table(path, lines):
    """A table of a race of (family, seconds, test accuracies) for each estimator."""
    rows = [
        (family, name, seed, step, seconds * step / 2, 1e9 * step, 0.5 * step * accuracy,
         accuracy if step == 2 else "")
        for name, (family, seconds, accuracies) in lines.items()
        for seed, accuracy in enumerate(accuracies)
        for step in (0, 1, 2)
    ]  # fmt: skip
    write_table(path, race.COLUMNS, rows)


def test_who_is_ahead_of_whom(tmp_path):
    race_table(
        tmp_path / "race.csv",
        {
            "backprop-5s": ("backprop", 5, [0.97, 0.97]),
            "backprop-15s": ("backprop", 15, [0.982, 0.9842]),
            "backprop": ("backprop", 120, [0.986, 0.988]),
            "backprop-equal": ("backprop", 60, [0.985, 0.985]),
            "control-last-layer": ("backprop", 120, [0.93, 0.94]),
            "control-first-frozen": ("backprop", 120, [0.980, 0.981]),
            "control-last-layer-600s": ("backprop", 600, [0.94, 0.95]),
            "activity": ("activity", 120, [0.9825, 0.9835]),
            "activity-plain": ("activity", 120, [0.9815, 0.9805]),
            "weight-600s": ("weight", 600, [0.96, 0.961]),
            "weight-equal": ("weight", 600, [0.96, 0.96]),
        },
    )
    lines = results.read(tmp_path / "race.csv")
    assert lines["activity"].seconds == 120
    np.testing.assert_allclose(lines["activity"].test_accuracy, [0.9825, 0.9835])
    none = dict.fromkeys(
        ("operations", "wanted", "behind", "times", "ablates", "remark", "overrides")
    )
    about = {name: {**none, "like": name.partition("-1")[0]} for name in lines}
    about["backprop-5s"]["like"] = "backprop"
    about["control-first-frozen"]["overrides"] = ["optimizer.momentum=0.9"]
    about["activity"] |= {"wanted": 0.983, "behind": 0.3, "times": 20, "ablates": "activity-plain"}
    about["weight-600s"] |= {"wanted": 0.985, "times": 8, "remark": "Tried besides: less."}
    for name in ("backprop-equal", "weight-equal"):
        about[name]["operations"] = 1e12
    # Of the shorter backprop nothing is said: no control is as short.
    backprop, activity, plain, weight, equal = results.comparisons(lines, about)
    assert backprop.startswith(
        "- backprop: beats first layer frozen (control), the best control of its t"
    )
    assert "98.30 [97.66, 98.94] %, at least 98.3 wanted: reached by the mean, not b" in activity
    assert (
        "beats first layer frozen (control), the best control of its time: +0.25 [0.25" in activity
    )
    assert "+0.25 [0.25, 0.25] on the validation images)" in activity
    # Pairs of seeds: 0.35 and 0.45; 0.1 and 0.3.
    assert (
        "+0.40 [-0.24, 1.04] points behind backprop, at most 0.3 wanted: missed by the m"
        in activity
    )
    assert (
        "; cannot be told from last layer alone (control), the best of those with its optimizer: +4"
        in activity
    )
    # At 5 s 0.97, at 15 s 0.9831: 0.983 at 5 · 3^(130/131) s.
    assert "; 8.07 [" in activity
    assert (
        "] times backprop's time to that mean, which is between 5 s, whose runs are worse, and "
        "15 s, at most 20 wanted: reached; " in activity
    )
    assert "+0.20 [-1.07, 1.47] points over activity-plain" in activity
    assert "cannot be told from first layer frozen (control)" in plain and "wanted" not in plain
    assert (
        "is behind first layer frozen (control), the best control, of 120 s alone: -2.00" in weight
    )
    assert "98.5 wanted: missed" in weight and weight.endswith(". Tried besides: less.")
    assert "more than 120 times backprop's time to that mean (5 s)" in weight
    assert "+2.50 [2.50, 2.50] points behind backprop, equal operations; is behind first" in equal


def test_the_interval_of_a_time_is_that_of_the_means(tmp_path):
    """Backprop's runs do not vary here, so the ends are its times to the ends of the line's."""
    accuracies = [0.960, 0.962, 0.964, 0.966, 0.968]
    race_table(
        tmp_path / "race.csv",
        {
            "backprop-1s": ("backprop", 1, [0.95] * 5),
            "backprop": ("backprop", 4, [0.97] * 5),
            "activity": ("activity", 8, accuracies),
        },
    )
    lines = results.read(tmp_path / "race.csv")
    said = results._when_backprop(lines["activity"], lines, None)
    value, low, high = map(float, re.findall(r"[\d.]+", said)[:3])
    mean = mean_interval(np.array(accuracies))
    for found, accuracy, tolerance in (
        (value, mean.value, 0.005),
        (low, mean.high, 0.1),  # of 2,000 draws the quantile is known to some per cent
        (high, mean.low, 0.1),
    ):
        expected = 8 / 4 ** ((accuracy - 0.95) / 0.02)
        assert found == pytest.approx(expected, rel=tolerance)
