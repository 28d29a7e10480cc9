"""Lines of a comparison that are trained ahead of it, each by a process of its own."""

import pytest

from experiments import reproduce
from experiments.common import alone, from_config
from experiments.paper import fair_comparison, trajectories
from experiments.races import accuracy_race


@pytest.mark.thorough
@pytest.mark.parametrize("experiment", [fair_comparison, accuracy_race])
def test_the_comparison_reads_the_runs_of_its_lines_back(
    compose, tmp_path, monkeypatch, experiment
):
    def train(*args, **kwargs):
        trained.extend(args[5])
        return original(*args, **kwargs)

    original, trained = from_config.train_together, []
    monkeypatch.setattr(from_config, "train_together", train)
    overrides = ["preset=smoke", f"output.root={tmp_path}"]
    smoke = compose("reproduce", *overrides).experiments[experiment.NAME]
    lines = smoke.shown
    if experiment is fair_comparison:  # one line suffices
        lines = ["backprop"]
        overrides += [
            f"~experiments.{experiment.NAME}.lines.{line}"
            for line in smoke.lines
            if line not in lines
        ]
    for line in lines:
        before = len(trained)
        alone.run_alone(compose("reproduce", *overrides, f"line={line}"), experiment)
        assert len(trained) > before
    assert not list(tmp_path.glob("*.csv")) and not list(tmp_path.glob("*.json"))
    before = len(trained)
    alone.run_alone(compose("reproduce", *overrides), experiment)
    assert len(trained) == before
    assert (tmp_path / f"{experiment.NAME}.json").exists()


def test_a_line_that_cannot_be_trained_alone(compose, tmp_path):
    cfg = compose("reproduce", "preset=smoke", f"output.root={tmp_path}", "line=backprob")
    with pytest.raises(ValueError, match=r"line=backprob .* fair_comparison has backprop, forward"):
        alone.run_alone(cfg, fair_comparison)
    with pytest.raises(ValueError, match=r"but trajectories tunes no lines"):
        alone.run_alone(cfg, trajectories)
    with pytest.raises(ValueError, match=r"but reproduce tunes no lines"):
        reproduce.run(cfg)
    assert not list(tmp_path.iterdir())
