"""Presets: what they promise of the paper's settings, and the GPU's, small, on this machine."""

import re

import matplotlib.pyplot as plt
import pytest

from experiments import reproduce
from experiments.common import alone, jobs, style
from experiments.races import accuracy_race
from fwdgrad.records import read_json, read_table


def panels_of(cfg, name):
    experiment = cfg.experiments[name]
    return {panel: experiment.panels[panel] for panel in experiment.shown}


def test_the_preset_of_a_gpu_has_the_papers_lengths_and_three_seeds(compose):
    cfg = compose("reproduce", "preset=gpu")
    assert cfg.platform == "gpu" and cfg.budget_seconds < 600 and cfg.share_processes
    assert set(cfg.expected_seconds) == set(cfg.shown)
    curves = panels_of(cfg, "learning_curves")
    assert set(curves) == {"logistic", "mlp_2e-5", "mlp_2e-4", "cnn"}
    for panel in curves.values():
        assert jobs.differences(panel) == ""
        assert len(panel.seeds or cfg.experiments.learning_curves.seeds) >= 3
    steps = panels_of(cfg, "step_cost").values()
    sizes = {(step.overrides[0], step.overrides[1]) for step in steps}
    assert sizes == {
        (f"model={model}", f"batch_size={size}")
        for model in ("logistic", "mlp", "cnn") for size in (64, 1024)
    }  # fmt: skip
    assert cfg.experiments.step_cost.processes >= 3
    assert cfg.experiments.depth_scaling.processes >= 3
    assert {1, 10, 100} <= set(cfg.experiments.depth_scaling.depths)
    with pytest.raises(RuntimeError, match="preset=gpu needs a GPU"):
        reproduce.run(cfg)


def test_the_quick_preset_has_an_interval_wherever_it_can(compose):
    cfg = compose("reproduce", "preset=quick")
    assert cfg.budget_seconds < 600 and sum(cfg.expected_seconds.values()) < cfg.budget_seconds
    assert set(cfg.expected_seconds) == set(cfg.shown)
    assert cfg.experiments.step_cost.processes >= 3
    curves = panels_of(cfg, "learning_curves")
    assert curves["logistic"].num_steps == curves["logistic"].full.num_steps
    for panel in curves.values():
        assert len(panel.seeds or cfg.experiments.learning_curves.seeds) >= 3
    assert cfg.experiments.trajectories.num_seeds == 10
    for function in cfg.experiments.trajectories.figures.trajectories:
        assert jobs.differences(cfg.experiments.trajectories.functions[function]) == ""
    with pytest.raises(ValueError, match=r"preset=quick has no accuracy_race, but trajectories"):
        alone.run_alone(cfg, accuracy_race)


def shrink(cfg):
    """Make a `reproduce` config of the preset of a GPU small, and for any platform."""
    cfg.platform, cfg.expected_seconds = None, {}
    steps, curves, scaling = (cfg.experiments[name] for name in cfg.shown)
    sizes = {
        "logistic": [], "mlp": ["model.make.widths=[8]"],
        "cnn": ["model.make.channels=2", "model.make.width=8"],
    }  # fmt: skip
    of_all = ["batch_size=4", "steps_per_call=2"]
    for experiment in (curves, steps):
        for name, panel in experiment.panels.items():
            panel.overrides = [*panel.overrides, *sizes[re.split("[-_]", name)[0]], *of_all]
    curves.seeds = [0, 1]
    for panel in curves.panels.values():
        panel.num_steps, panel.seeds = 4, None
    steps.processes = 1
    for panel in steps.panels.values():
        panel.rounds = 2
        panel.forms = {"other": [{"steps_per_call": 2, "compiler_options": None}]}
    scaling.width, scaling.depths, scaling.processes, scaling.rounds = 8, [1, 10], 1, 2
    scaling.depth, scaling.batch_sizes = 2, [4]
    return cfg


@pytest.mark.thorough
def test_every_part_of_the_preset_of_a_gpu_compiles_and_keeps_a_budget(
    compose, tmp_path, monkeypatch
):
    """With small sizes, on any platform; a rerun does what was left out.

    One process makes all measurements, and a line is compiled for its first seed alone.
    """
    monkeypatch.setattr(style, "save", lambda figure, *args, **kwargs: plt.close(figure))
    cfg = shrink(compose("reproduce", "preset=gpu", f"output.root={tmp_path}"))
    cfg.budget_seconds = 1e-3
    assert reproduce.run(cfg) == {}
    report = (tmp_path / "README.md").read_text()
    for name in cfg.shown:
        assert f"Left out of {name}, to keep the budget of 0.001 s: all of it." in report
        assert not (tmp_path / f"{name}.json").exists()
    cfg.budget_seconds = None
    assert reproduce.run(cfg) == {}
    assert "Left out" not in (tmp_path / "README.md").read_text()
    runs = read_table(tmp_path / "learning_curves_runs.csv")
    assert {row["panel"] for row in runs} == {"logistic", "mlp_2e-5", "mlp_2e-4", "cnn"}
    assert len(runs) == 24
    for row in runs:
        assert (float(row["compile_seconds"]) > 0) == (row["seed"] == "0")
    assert len(read_json(tmp_path / "step_cost.json")["panels"]) == 6
    before = {
        process.get("before", 0)
        for name in ("step_cost", "depth_scaling")
        for process in read_json(tmp_path / f"{name}.json")["processes"]
    }
    assert before == set(range(6))  # panels of small sizes are the same for both minibatches
    assert "The processes are the same for all panels" in (tmp_path / "README.md").read_text()
