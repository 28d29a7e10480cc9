"""The protocol: decided before the runs, the same for every line of every experiment."""

import pytest

from experiments.common import from_config, protocol
from fwdgrad.records import RecordError

# In a shorter form: fewer rates, and one tuning seed.
SHORTER = (
    "sum_race",
    "sum_race_long",
    "sum_race_shifted",
    "sum_race_deep",
    "sum_race_cnn",
    "cnn_race_long",
    "optimizer_race",
)
EXPERIMENTS = [
    name for name in protocol.EXPERIMENTS if name not in ("scaling_laws", "perturbed_weights")
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_the_protocols_numbers(compose, name):
    cfg = compose("reproduce", "preset=paper")
    experiment, given = cfg.experiments[name], cfg.protocol
    assert experiment.seeds == given.seeds and len(experiment.seeds) >= 5
    if name in SHORTER:
        assert experiment.tuning.num_rates < given.tuning.num_rates
        assert experiment.tuning.factor == given.tuning.factor
    else:
        assert experiment.tuning == given.tuning and len(experiment.tuning.seeds) >= 3
    assert experiment.timing == given.timing and experiment.timing.processes >= 5
    assert not set(experiment.seeds) & set(experiment.tuning.seeds)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_comparisons_are_of_lines_that_run_each_once(compose, name):
    experiment = compose("reproduce", "preset=paper").experiments[name]
    pairs = [tuple(pair) for pair in experiment.comparisons]
    assert len(set(map(frozenset, pairs))) == len(pairs) > 0
    assert {line for pair in pairs for line in pair} <= set(experiment.lines)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_line_has_a_first_rate_and_no_other_option(compose, name):
    """So that no line has a budget of its own, but a control that has more steps."""
    experiment = compose("reproduce", "preset=paper").experiments[name]
    of_race = {"family", "derivatives", "overrides", "first_rate"}
    for line in experiment.lines.values():
        if "times" in line:
            assert line.family == "control" and line.times > 1
        expected = {"overrides", "first_rates"} if name == EXPERIMENTS[0] else of_race
        assert set(line) - {"times"} == expected
        if name == EXPERIMENTS[0]:
            assert set(line.first_rates) == set(experiment.panels)


def test_a_run_that_chose_a_rate_is_not_compared(compose, tmp_path):
    """It has not read the test set, and must not read it afterwards."""
    overrides = ("model=logistic", "num_steps=1", "eval_every=1", f"output.root={tmp_path}")
    from_config.run(compose("train", *overrides, "read_test_set=false"))
    with pytest.raises(RecordError, match=r"has not read the test set.*Train another seed"):
        from_config.run(compose("train", *overrides))
