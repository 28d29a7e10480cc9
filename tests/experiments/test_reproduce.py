"""The main job, small: its files, no work done twice, figures drawn again."""

import csv
import math
import shutil
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import reproduce
from experiments.common import alone, style
from experiments.common import report as reports
from experiments.modes import differentiation
from experiments.paper import (
    deep_network,
    depth_scaling,
    learning_curves,
    trajectories,
)
from experiments.races import race
from fwdgrad.measurement import StepProgram
from fwdgrad.records import read_json, write_json
from fwdgrad.training import unpack_flags

from .conftest import CONFIGS

RACES = (
    "accuracy_race", "cnn_race", "sum_race", "sum_race_long", "sum_race_shifted",
    "sum_race_deep", "sum_race_cnn", "cnn_race_long", "optimizer_race",
)  # fmt: skip
FIGURES = {
    "trajectories", "trajectories_more", "step_cost", "learning_curves", "depth_scaling",
    "fair_comparison", "small_rates", "estimator_quality", "scaling_laws",
    "perturbed_weights", *RACES,
}  # fmt: skip


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.thorough
def test_smoke_preset_and_again(compose, tmp_path, capsys, monkeypatch):
    def of_one_process(function, config, names):
        """A process takes seconds to start: what is found of one estimator stands for all."""
        first, *others = names
        (found,) = in_processes(function, config, [first]).values()
        return {first: found, **dict.fromkeys(others, found)}

    in_processes = deep_network._in_processes
    monkeypatch.setattr(deep_network, "_in_processes", of_one_process)
    # Coarse, and not laid out: test_axes lays out every figure.
    monkeypatch.setitem(plt.rcParams, "savefig.dpi", 40)
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda figure: None)
    overrides = (
        "preset=smoke", f"output.root={tmp_path}", "output.progress=false",
        *(f"~experiments.fair_comparison.lines.{line}" for line in (
            "forward-normal", "backprop-cosine", "forward-low_rank-cosine-clipped")),
        "experiments.fair_comparison.lines.forward-low_rank.first_rates.mlp=1e-4",
    )  # fmt: skip
    cfg = compose("reproduce", *overrides)
    assert reproduce.run(cfg) == {}
    printed = capsys.readouterr().out
    assert printed.count("seed 0: ") == 3 + 2 + 2 + 3 + 1 + 2 + 7 + 2 and "README.md" in printed
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "laboratory.md", "races.md", "sum_races.md", "modes.md", "findings.csv",
        "runs", "learning_curves_runs.csv", "small_rates.md", "small_rates_rates.csv",
        *(f"{name}_{table}.csv" for name in (*RACES, "fair_comparison")
          for table in ("tuning", "timings", "comparisons")), "estimator_quality_timings.csv",
        *(f"{name}_test.csv" for name in RACES), "estimator_quality_samples.csv",
        "step_cost_timings.csv", "step_cost_forms.csv", "depth_scaling_timings.csv",
        *(f"{name}.{kind}" for name in FIGURES for kind in ("csv", "json", "png", "svg")),
        *(f"scaling_laws_{x}.csv" for x in ("fits", "training", "tuning", "timings")),
        *(f"perturbed_weights_{x}.csv" for x in ("law", "tuning")),
        *(f"scaling_laws_training.{kind}" for kind in ("png", "svg")),
        "differentiation.json",
        *(f"{p.NAME}.{kind}" for p in differentiation.PARTS for kind in ("csv", "png", "svg")),
    }  # fmt: skip
    pages = ("README.md", "laboratory.md", "small_rates.md", "races.md", "sum_races.md", "modes.md")
    texts = [(tmp_path / page).read_text() for page in pages]
    assert reports.count_words(texts[0]) <= reports.MOST_WORDS
    report = "".join(texts)
    assert "not in this preset" in report  # the facts of deeper networks
    for name in (*FIGURES, *(part.NAME for part in differentiation.PARTS)):
        assert f"]({name}.png)" in report
    for part in differentiation.PARTS:
        assert tuple(table(tmp_path / f"{part.NAME}.csv")[0]) == tuple(part.COLUMNS)

    rows = table(tmp_path / "depth_scaling.csv")
    assert [(r["axis"], r["depth"], r["batch_size"]) for r in rows[::4]] == [
        ("depth", "2", "3"), ("batch_size", "2", "3")
    ]  # fmt: skip
    assert [r["estimator"] for r in rows[:4]] == list(depth_scaling.ESTIMATORS)
    for row in rows:
        assert float(row["seconds"]) > 0 and row["seconds_low"] == "nan" and row["n"] == "1"
        assert int(row["parameter_bytes"]) == 4 * int(row["depth"]) * 16**2
        assert int(row["total_bytes"]) >= int(row["parameter_bytes"]) + int(row["temp_bytes"])

    raced = table(tmp_path / "accuracy_race.csv")
    assert tuple(raced[0]) == tuple(race.COLUMNS)
    assert {(row["family"], row["estimator"]) for row in raced} == {
        ("backprop", "backprop"), ("activity", "activity-blocks")
    }  # fmt: skip
    assert all(float(row["flops"]) > 0 for row in raced if row["step"] != "0")
    tested = table(tmp_path / "accuracy_race_test.csv")
    for row in tested:
        right = unpack_flags(row["test_correct"], int(row["num_examples"]))
        assert right.mean() == pytest.approx(float(row["test_accuracy"]))
    assert {row["role"] for row in table(tmp_path / "accuracy_race_tuning.csv")} == {
        "tuning", "compared"
    }  # fmt: skip
    for path in (tmp_path / "runs").rglob("run.json"):  # none that tunes reads the test set
        assert path.parent.name != "seed-1000" or "test_correct" not in read_json(path)
    of_quality = table(tmp_path / "estimator_quality.csv")
    cosines = {
        (r["line"], r["stage"]): int(r["n"]) for r in of_quality if r["quantity"] == "cosine"
    }
    assert cosines["backprop", "0"] == cosines["activities-rademacher-1", "3"] == 2
    samples = table(tmp_path / "estimator_quality_samples.csv")
    names = ("backprop", "0", "cosine")
    of_line = [x for x in samples if (x["line"], x["stage"], x["quantity"]) == names]
    assert [x["seed"] for x in of_line] == ["0", "1"]
    assert [float(x["value"]) for x in of_line] == pytest.approx([1, 1])
    assert {row["quantity"] for row in of_quality} == {
        "cosine", "hidden_cosine", "squared_cosine", "slope", "error", "bias", "variance",
        "cosine_over_dense", "hidden_over_dense", "law", "law_cosine", "error_over_law", "time",
        "operations",
    }  # fmt: skip

    before = snapshot(tmp_path)
    for module in reproduce.EXPERIMENTS.values():
        module.run(cfg, tmp_path)
    capsys.readouterr()
    alone.run_alone(cfg, depth_scaling)
    assert capsys.readouterr().out.endswith(f"drawn in {tmp_path}\n")
    assert snapshot(tmp_path) == before

    # Anyone can redraw from the tables alone; of some figures it is enough that they are drawn.
    def save_some(figure, folder, stem, caption):
        drawn.add(stem)
        if stem in ("trajectories", "fair_comparison", "step_sizes"):
            save(figure, folder, stem, caption)
        plt.close(figure)

    drawn, save = set(), style.save
    monkeypatch.setattr(style, "save", save_some)
    shutil.rmtree(tmp_path / "runs")
    redraw = compose("reproduce", *overrides, "draw_only=true")
    assert reproduce.run(redraw) == {}
    assert snapshot(tmp_path) == {p: b for p, b in before.items() if p.parts[0] != "runs"}
    assert drawn == FIGURES | {"scaling_laws_training"} | {
        part.NAME for part in differentiation.PARTS
    }


@pytest.mark.thorough
def test_nothing_to_draw_is_one_error_and_leaves_nothing(tmp_path):
    root = tmp_path / "mistyped"
    overrides = ("preset=smoke", f"output.root={root}", "draw_only=true")
    command = [sys.executable, "-m", "experiments.reproduce", *overrides]
    result = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("Error: ") == 1
    assert f"draw_only=true finds nothing to draw in output.root={root}: no such" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_fails_if_an_experiment_does(compose, tmp_path, capsys):
    """An experiment without a record has a line in the report, and no traceback."""
    cfg = compose("reproduce", "preset=smoke", f"output.root={tmp_path}", "draw_only=true")
    for command in (lambda: reproduce.run(cfg), lambda: alone.run_alone(cfg, trajectories)):
        with pytest.raises(FileNotFoundError, match=r"trajectories\.json.*leave draw_only out"):
            command()
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "differentiation.json", {"provenance": [], "wall_seconds": 1})
    with pytest.raises(SystemExit, match=r"failed: differentiation$"):
        reproduce.command(cfg)
    report, errors = (tmp_path / "README.md").read_text(), capsys.readouterr().err
    (line,) = (line for line in report.splitlines() if line.startswith("Not yet run: "))
    for name in set(reproduce.EXPERIMENTS) - {"differentiation"}:
        assert name in line and f"{name}.json" not in errors
    assert "**differentiation failed:** drawing: FileNotFoundError" in report


def test_a_failure_is_reported_by_name(compose, tmp_path, monkeypatch):
    def fail(cfg, folder):
        raise OSError("disk full")

    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"learning_curves": learning_curves})
    monkeypatch.setattr(learning_curves, "run", fail)
    cfg = compose("reproduce", "preset=smoke", f"output.root={tmp_path}")
    assert reproduce.run(cfg) == {"learning_curves": "OSError: disk full"}
    assert "**learning_curves failed:** OSError: disk full" in (tmp_path / "README.md").read_text()


@pytest.mark.thorough
def test_after_a_failure_the_others_go_on(compose, tmp_path, monkeypatch):
    """Results of an earlier run are marked as such, also if they cannot be read."""

    def fail(*args):
        raise RuntimeError("out of memory\nand a lot more")

    def write(cfg, folder):
        write_json(folder / "other.json", {"provenance": [], "wall_seconds": 1})

    other = SimpleNamespace(
        NAME="other", run=write, draw=lambda folder: None, describe=lambda folder: "## Another",
        findings=lambda folder: [],
    )  # fmt: skip
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {m.NAME: m for m in (other, trajectories)})
    monkeypatch.setattr(trajectories, "draw", lambda folder: None)  # it takes long
    cfg = compose("reproduce", "preset=smoke", f"output.root={tmp_path}")
    assert reproduce.run(cfg) == {}

    with monkeypatch.context() as patched:
        patched.setattr(other, "run", fail)
        patched.setattr(trajectories, "run", fail)
        assert reproduce.run(cfg) == dict.fromkeys(
            reproduce.EXPERIMENTS, "RuntimeError: out of memory"
        )
    report = (tmp_path / "README.md").read_text()
    assert report.count("failed:** RuntimeError: out of memory\n") == 2
    (line,) = (line for line in report.splitlines() if "Beale: final value" in line)
    assert line.startswith("- Not in this preset, num steps is 40, not 1,000; of an earlier time. ")

    with monkeypatch.context() as patched:  # what it says of the paper fails, or its figure alone
        patched.setattr(other, "findings", fail)
        patched.setattr(trajectories, "draw", fail)
        assert reproduce.run(cfg) == {
            "other": "its numbers: RuntimeError: out of memory",
            "trajectories": "drawing: RuntimeError: out of memory",
        }
    report = (tmp_path / "README.md").read_text()
    assert "## Test functions" in report and "## Another" in report
    assert "of an earlier time" not in report

    monkeypatch.setattr(other, "describe", fail)
    (tmp_path / "trajectories.json").unlink()
    redraw = compose("reproduce", "preset=smoke", f"output.root={tmp_path}", "draw_only=true")
    assert set(reproduce.run(redraw)) == {"other"}
    report = (tmp_path / "README.md").read_text()
    assert "## Another" not in report and "Not yet run: trajectories." in report


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
    found = {f.key: f for f in trajectories.findings(tmp_path)}
    assert set(found) == {
        f"{name}.{key}" for name in ("beale", "rosenbrock") for key in ("final", "time")
    }
    assert found["beale.final"].why == "num steps is 40, not 1,000"
    assert found["rosenbrock.final"].why == "no interval of fewer than 3 seeds"


def test_segments_that_are_checkpointed_compute_the_same(key):
    config = {"depth": 7, "batch_size": 3, "width": 8}
    for depth in (1, 2, 7):
        steps, network, batches = deep_network.steps({**config, "depth": depth})
        found, expected = (
            steps[name].value_and_grad(key, network, batches[0]) for name in
            ("backprop-checkpointed", "backprop")
        )  # fmt: skip
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


def test_segments_are_computed_again_and_their_activations_not_kept():
    """A third more operations, and less memory: XLA on a CPU undoes `jax.checkpoint` itself."""
    steps, network, batches = deep_network.steps({"depth": 16, "batch_size": 512, "width": 32})
    kept, again = (
        StepProgram(steps[name], network, batches) for name in ("backprop", "backprop-checkpointed")
    )
    assert 1.2 < again.operations / kept.operations < 1.4
    assert again.temp_bytes < 0.7 * kept.temp_bytes
