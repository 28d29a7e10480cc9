"""The main job, small: what it leaves, that nothing is done twice, and that figures redraw."""

import csv
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from experiments import (
    deep_network,
    depth_scaling,
    fair_comparison,
    learning_curves,
    reproduce,
    train,
    trajectories,
)
from fwdgrad.work import DivergedError, Metrics
from fwdgrad.work.records import read_json, write_json, write_table
from fwdgrad.work.step_program import StepProgram

from .conftest import CONFIGS

FIGURES = {
    "trajectories", "trajectories_more", "learning_curves", "depth_scaling", "fair_comparison"
}  # fmt: skip


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_smoke_preset_and_again(compose, tmp_path, capsys):
    overrides = ("preset=smoke", f"output.root={tmp_path}", "output.progress=false")
    cfg = compose("reproduce", *overrides)
    assert reproduce.run(cfg) == {}
    printed = capsys.readouterr().out
    assert printed.count("seed 0: ") == 3 + 3 and "README.md" in printed
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "runs", "learning_curves_runs.csv", "learning_curves_costs.csv",
        "fair_comparison_tuning.csv",
        *(f"{name}.{kind}" for name in FIGURES for kind in ("csv", "json", "png", "pdf")),
    }  # fmt: skip
    report = (tmp_path / "README.md").read_text()
    assert "not in this preset" in report  # the facts of deeper networks
    for name in FIGURES:
        assert f"]({name}.png)" in report

    rows = table(tmp_path / "depth_scaling.csv")
    assert [(r["axis"], r["depth"], r["batch_size"]) for r in rows[::4]] == [
        ("depth", "2", "3"), ("batch_size", "2", "3")
    ]  # fmt: skip
    assert [r["estimator"] for r in rows[:4]] == list(depth_scaling.ESTIMATORS)
    for row in rows:
        assert float(row["seconds_low"]) <= float(row["seconds"]) <= float(row["seconds_high"])
        assert int(row["parameter_bytes"]) == 4 * int(row["depth"]) * 16**2

    before = snapshot(tmp_path)
    for module in reproduce.EXPERIMENTS.values():
        module.run(cfg, tmp_path)
    assert snapshot(tmp_path) == before

    # Anyone can redraw from the tables alone.
    shutil.rmtree(tmp_path / "runs")
    redraw = compose("reproduce", *overrides, "draw_only=true")
    assert reproduce.run(redraw) == {}
    assert snapshot(tmp_path) == {p: b for p, b in before.items() if p.parts[0] != "runs"}


def test_the_command_fails_if_an_experiment_does(tmp_path):
    """There is nothing to draw: the report names all experiments, and the exit status is 1."""
    overrides = ("preset=smoke", f"output.root={tmp_path}", "draw_only=true")
    command = [sys.executable, "-m", "experiments.reproduce", *overrides]
    result = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"failed: {', '.join(reproduce.EXPERIMENTS)}" in result.stderr
    report = (tmp_path / "README.md").read_text()
    for name in reproduce.EXPERIMENTS:
        assert f"**{name} failed:** FileNotFoundError" in report


def test_a_failure_is_reported_by_name(compose, tmp_path, monkeypatch):
    def fail(cfg, folder):
        raise OSError("disk full")

    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"learning_curves": learning_curves})
    monkeypatch.setattr(learning_curves, "run", fail)
    cfg = compose("reproduce", "preset=smoke", f"output.root={tmp_path}")
    assert reproduce.run(cfg) == {"learning_curves": "OSError: disk full"}
    assert "**learning_curves failed:** OSError: disk full" in (tmp_path / "README.md").read_text()


def test_learning_curves_find_a_known_ratio_of_times(tmp_path):
    """Two seeds of three lines, of which one is twice as fast and one never gets there."""
    columns = ("panel", "estimator", "seed", *Metrics._fields)
    speeds = {"backprop": (2.0, 1), "forward-normal": (1.0, 1), "forward-low_rank": (1.0, 0.5)}
    write_table(
        tmp_path / "learning_curves.csv",
        columns,
        [("p", name, seed, step, factor * step, 0.1, *[1 - far * step / 10] * 2, far * step / 10)
         for name, (factor, far) in speeds.items() for seed in (0, 1) for step in (0, 4, 8)],
    )  # fmt: skip
    write_table(
        tmp_path / "learning_curves_runs.csv",
        learning_curves._RUN_COLUMNS,
        [("p", name, seed, 8, 16, 2 + seed, 1, 0.2, 0.2, 0.8, 0.8 + seed / 100)
         for name in speeds for seed in (0, 1)],
    )  # fmt: skip
    write_table(
        tmp_path / "learning_curves_costs.csv",
        ("panel", "estimator", "quantity", "value", "low", "high", "n"),
        [("p", name, quantity, 2.5, 2, 3, 9)
         for name in ("loss", *speeds)
         for quantity in ("seconds", "relative_cost", "over_reference")],
    )  # fmt: skip
    write_json(
        tmp_path / "learning_curves.json",
        {"titles": {"p": "Title"}, "shortened": {"p": "8 of 20"}, "provenance": []},
    )
    learning_curves.draw(tmp_path)
    text = learning_curves.describe(tmp_path)
    assert (
        "| Title | Backprop | 2 | 8 | 2.5 [-3.853, 8.853] | 2.5 [2, 3] | 2.5 [2, 3] | 1 [" in text
    )
    assert "| 2.5 [2, 3] | 0.5 [0.5, 0.5] | 0.5 [0.5, 0.5] | 0.2 [0.2, 0.2] | 0.805" in text
    assert "| reached by 0 of 2 |" in text
    assert "Title is shortened to 8 of 20 iterations." in text


def test_a_rate_that_diverges_is_not_chosen(compose, tmp_path, monkeypatch):
    """In tuning, or later with another seed."""
    made, trained = [], {}

    def run(config):
        rate = config.learning_rate
        made.append((rate, config.seed))
        if rate == 3 or (rate == 2 and config.seed == 1):
            raise DivergedError("nan")
        if config.num_steps not in trained:
            trained[config.num_steps] = original(config)
        record = trained[config.num_steps]
        loss = 3 if rate == 1.5 else 1 / rate  # larger is better, but 1.5 ends above its start
        rows = [
            record.metrics[0]._replace(valid_loss=2),
            record.metrics[-1]._replace(valid_loss=loss),
        ]
        final = {**record.info["final"], "valid_loss": loss}
        return record._replace(info={**record.info, "final": final}, metrics=rows)

    original, panel = train.run, "experiments.fair_comparison.panels.logistic"
    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(fair_comparison, "read_run", lambda folder: trained[first.num_steps])
    overrides = [
        "preset=smoke", f"output.root={tmp_path}", "experiments.fair_comparison.shown=[logistic]",
        "experiments.fair_comparison.seeds=[0,1]",
        f"{panel}.rates=[1,1.5,2,3]", f"{panel}.tuning_steps=4", f"{panel}.num_steps=8",
        f"{panel}.num_rows=2",
        "~experiments.fair_comparison.lines.forward-normal",
        "~experiments.fair_comparison.lines.forward-low_rank",
    ]  # fmt: skip
    cfg = compose("reproduce", *overrides)
    first = fair_comparison._train_config(cfg, "logistic", "backprop", 1, 4, 0)
    fair_comparison.run(cfg, tmp_path)
    assert fair_comparison._tuning(tmp_path, "logistic") == {
        "backprop": {1.0: 1.0, 1.5: math.inf, 2.0: math.inf, 3.0: math.inf}
    }
    assert made[4:] == [(2, 0), (2, 1), (1, 0), (1, 1)]
    assert len({seed for _, seed in made[:4]} & {0, 1}) == 0
    fair_comparison.draw(tmp_path)
    assert "| 1 (end of the grid) | 2 | 8 |" in fair_comparison.describe(tmp_path)


def test_trajectories_go_down(compose, tmp_path):
    """Backprop's path is gradient descent; and the paper's starts have the paper's values."""
    cfg = compose(
        "reproduce", "preset=smoke", f"output.root={tmp_path}",
        "experiments.trajectories.figures={trajectories:[beale,rosenbrock]}",
    )  # fmt: skip
    trajectories.run(cfg, tmp_path)
    paths = trajectories._read(tmp_path, "trajectories")
    for name, value in (("beale", 14.203125), ("rosenbrock", 104.0)):
        for line in paths[name].values():
            np.testing.assert_allclose(line["value"][:, 0], value)
            assert (line["value"][:, -1] < value / 2).all()
        values = paths[name]["backprop"]["value"]
        assert (np.diff(values, axis=1) < 0).all() and (values[0] == values[1]).all()
    assert read_json(tmp_path / "trajectories.json")["functions"]["beale"]["title"] == "Beale"
    assert not math.isnan(trajectories._minimum({"function": "sphere", "start": [1] * 3}))
    assert {f.key for f in trajectories.findings(tmp_path)} == {
        "beale.final", "beale.time", "rosenbrock.final", "rosenbrock.time"
    }  # fmt: skip


def test_segments_that_are_checkpointed_compute_the_same(key):
    config = {"depth": 7, "batch_size": 3, "width": 8}
    import jax

    for depth in (1, 2, 7):
        steps, network, batches = deep_network.steps({**config, "depth": depth})
        found, expected = (
            steps[name].make(key, network, batches[0]) for name in
            ("backprop-checkpointed", "backprop")
        )  # fmt: skip
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_segments_are_computed_again_and_their_activations_not_kept():
    """A third more operations, and less memory: XLA on a CPU undoes `jax.checkpoint` itself."""
    steps, network, batches = deep_network.steps({"depth": 16, "batch_size": 512, "width": 32})
    kept, again = (
        StepProgram(steps[name], network, batches) for name in ("backprop", "backprop-checkpointed")
    )
    assert 1.2 < again.operations / kept.operations < 1.4
    assert again.temp_bytes < 0.7 * kept.temp_bytes


@pytest.mark.parametrize("name", sorted(reproduce.EXPERIMENTS))
def test_every_experiment_runs_alone(name):
    assert callable(reproduce.EXPERIMENTS[name].main)
