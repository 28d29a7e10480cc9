"""The races on the sum of two digits: lines, lengths, and the report."""

import pytest

from experiments.common import alone
from experiments.races import sum_race
from experiments.races.race import _Configs
from fwdgrad.records import read_json

RACES = {  # the number of hidden layers
    "sum_race": 2, "sum_race_long": 2, "sum_race_shifted": 2, "sum_race_deep": 4,
    "sum_race_cnn": 0, "cnn_race_long": 0,
}  # fmt: skip


def test_lines_have_equal_steps_but_for_the_control_that_has_more(compose):
    cfg = compose("reproduce", "preset=paper")
    race = _Configs(cfg, "sum_race")
    steps = {name: race.num_steps(name, None) for name in race.lines()}
    longer = steps.pop("control-first-frozen-times-3")
    assert set(steps.values()) == {cfg.experiments.sum_race.num_steps}
    assert longer == 3 * steps["control-first-frozen"]
    by_operations = _Configs(cfg, "accuracy_race")
    assert by_operations.num_steps("backprop", 2e9) == by_operations.experiment.operations / 2e9


@pytest.mark.parametrize("lengths", [("null", "null"), ("1e9", "5")])
def test_a_race_has_one_length(compose, lengths):
    keys = ("operations", "num_steps")
    overrides = [f"experiments.sum_race.{k}={x}" for k, x in zip(keys, lengths, strict=True)]
    cfg = compose("reproduce", "preset=smoke", *overrides)
    with pytest.raises(ValueError, match=r"^experiments\.sum_race: a race is by operations or by "):
        _Configs(cfg, "sum_race")


@pytest.mark.thorough
@pytest.mark.parametrize("name", RACES)
def test_every_line_of_the_paper_preset_composes(compose, name):
    race = _Configs(compose("reproduce", "preset=paper"), name)
    for line in race.lines():
        config = race.any_run(line)
        problem = "image_classification" if name == "cnn_race_long" else "digit_sum"
        assert config.problem._target_ == f"fwdgrad.problems.{problem}"
        model = config.model.make.get("make_model", config.model.make)
        assert len(model.get("widths", [])) == RACES[name]


@pytest.mark.thorough
def test_a_small_race_is_run_and_reported(compose, tmp_path):
    cfg = compose(
        "reproduce", "preset=smoke", f"output.root={tmp_path}", "output.progress=false",
        "experiments.sum_race.target_accuracy=0.999",
        "+experiments.sum_race.lines.feedback-learned.times=2",
    )  # fmt: skip
    alone.run_alone(cfg, sum_race)
    lines = read_json(tmp_path / "sum_race.json")["lines"]
    assert lines["feedback-learned"]["times"] == 2 and lines["backprop"]["family"] == "backprop"
    said = sum_race.describe(tmp_path)
    assert "3 rates at full length with one seed and takes" in said
    assert "time to 99.9 % / backprop" in said and "not reached by backprop" in said
    assert "learned feedback alone" in said and "operations (10¹²)" in said
    steps = cfg.experiments.sum_race.num_steps
    assert f"makes {steps} steps" in said and f"| {2 * steps} |" in said
