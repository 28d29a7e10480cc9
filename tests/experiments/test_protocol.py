"""The protocol: decided before the runs, the same for every line of every experiment."""

import pytest

EXPERIMENTS = ("fair_comparison", "accuracy_race", "cnn_race")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_the_protocols_numbers(compose, name):
    cfg = compose("reproduce", "preset=paper")
    experiment, protocol = cfg.experiments[name], cfg.protocol
    assert experiment.seeds == protocol.seeds and len(experiment.seeds) >= 5
    assert experiment.tuning == protocol.tuning and len(experiment.tuning.seeds) >= 3
    assert experiment.timing == protocol.timing and experiment.timing.processes >= 5
    assert not set(experiment.seeds) & set(experiment.tuning.seeds)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_comparisons_are_of_lines_that_run_each_once(compose, name):
    experiment = compose("reproduce", "preset=paper").experiments[name]
    pairs = [tuple(pair) for pair in experiment.comparisons]
    assert len(set(map(frozenset, pairs))) == len(pairs) > 0
    assert {line for pair in pairs for line in pair} <= set(experiment.lines)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_line_has_a_first_rate_and_no_other_option(compose, name):
    """So that no line has a budget of its own."""
    experiment = compose("reproduce", "preset=paper").experiments[name]
    of_race = {"family", "derivatives", "overrides", "first_rate"}
    for line in experiment.lines.values():
        assert set(line) == ({"overrides", "first_rates"} if name == EXPERIMENTS[0] else of_race)
        if name == EXPERIMENTS[0]:
            assert set(line.first_rates) == set(experiment.panels)
