"""Seeds trained in one program: every line of a race has the numbers that it has alone."""

import math

import pytest

from experiments.common import from_config, tuning
from experiments.races.race import _Configs
from fwdgrad.training import DivergedError
from tests.sweeps import thorough_but

LINES = (
    "weight-low_rank-exact_last", "activity-blocks-guided", "backprop",
    "control-first-frozen", "activity-blocks", "local-heads", "feedback-fixed", "feedback-learned",
    "weight-low_rank-projection-16", "spsa", "evolution-low_rank-4",
)  # fmt: skip


@pytest.fixture
def configs(compose, tmp_path):
    """The configs of a line for several seeds, in a folder."""

    def make(line, folder, seeds=(0, 1, 2), together=False):
        cfg = compose(
            "reproduce", "preset=smoke", f"output.root={tmp_path / folder}",
            "output.progress=false", f"output.together={together}",
        )  # fmt: skip
        race = _Configs(cfg, "sum_race")
        return [race.run(line, rate=1e-3, num_steps=12, rows=2, seed=seed) for seed in seeds]

    return make


@pytest.mark.parametrize(
    "line", [LINES[0], *(pytest.param(x, marks=pytest.mark.thorough) for x in LINES[1:])]
)
def test_every_estimator_has_the_numbers_that_it_has_alone(configs, line):
    alone = from_config.run_seeds(configs(line, "alone"))
    together = from_config.run_seeds(configs(line, "together", together=True))
    for one, other in zip(alone, together, strict=True):
        assert other.info["together"] == 3 and "together" not in one.info
        for a, b in zip(one.metrics, other.metrics, strict=True):
            assert b.valid_loss == pytest.approx(a.valid_loss, rel=1e-4)
            assert b.train_loss == pytest.approx(a.train_loss, rel=1e-4)


@pytest.fixture
def trained(monkeypatch):
    """The seeds that are trained at once, in order."""
    trained, train = [], from_config.train_together

    def noted(*args, **kwargs):
        trained.append(list(args[5]))
        return train(*args, **kwargs)

    monkeypatch.setattr(from_config, "train_together", noted)
    return trained


def test_a_run_is_trained_when_its_result_is_asked_for(configs, trained):
    results = from_config.run_seeds(configs("backprop", "lazy"))
    assert trained == []
    next(results)
    assert trained == [[0]]
    list(results)
    assert trained == [[0], [1], [2]]


def test_together_trains_what_is_not_recorded_when_it_is_asked_for(configs, trained):
    """Not if those before it are recorded, and nobody asks for more."""
    list(from_config.run_seeds(configs("backprop", "x", (0,))))
    results = from_config.run_seeds(configs("backprop", "x", (0, 3, 4), together=True))
    next(results)
    assert trained == [[0]]
    list(results)
    assert trained == [[0], [3, 4]]
    list(from_config.run_seeds(configs("backprop", "x", (5, 0, 6), together=True)))
    assert trained[2:] == [[5, 6]]


def test_other_differences_than_seeds_are_an_error(configs):
    first, second, _ = configs("backprop", "x")
    second.learning_rate = 0.5
    with pytest.raises(ValueError, match="differ in their seeds alone"):
        next(from_config.run_seeds([first, second]))
    assert list(from_config.run_seeds([])) == []


@pytest.mark.parametrize("together", thorough_but([True], [False, True]))
def test_a_rate_is_out_at_the_first_seed_that_fails(configs, monkeypatch, together):
    """The same trials are reported whether seeds are trained together or not."""
    made, run_seeds = configs("backprop", f"{together}", together=together), from_config.run_seeds

    def fails(cfgs):
        for cfg, found in zip(cfgs, run_seeds(cfgs), strict=True):
            is_out = cfg.seed == 1 and cfg.learning_rate == 0.1
            yield DivergedError("it diverges") if is_out else found

    monkeypatch.setattr(from_config, "run_seeds", fails)
    monkeypatch.setattr(from_config, "recorded_info", lambda cfg: {})
    notes = []

    def make_config(rate, seed, is_tuning):
        config = made[0].copy()
        config.seed, config.learning_rate = seed, rate
        return config

    rule = {"seeds": [0, 1, 2], "num_rates": 2, "factor": 10.0}
    tuned = tuning.tune_and_train(make_config, 0.1, rule, [5, 6], notes.append)
    trials = [(trial.role, trial.rate, trial.seed) for trial in tuned.trials]
    assert trials == [
        *((tuning.TUNING, 0.1, seed) for seed in (0, 1)),
        *((tuning.TUNING, 0.01, seed) for seed in (0, 1, 2)),
        *((tuning.COMPARED, 0.01, seed) for seed in (5, 6)),
    ]
    assert [math.isinf(trial.minimised) for trial in tuned.trials] == [False, True] + 5 * [False]
    assert len(notes) == len(trials) and list(tuned.runs) == [5, 6]
    assert notes[1] == "rate 0.1, tuning seed 1: inf"
