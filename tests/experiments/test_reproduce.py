"""The main job and the benchmarks, small: what they leave, and that nothing is done twice."""

import csv
import shutil
import subprocess
import sys

import numpy as np
import pytest

from experiments import learning_curves, overhead, pytorch_step, reproduce, step_cost
from fwdgrad.work.records import write_json, write_table

from .conftest import CONFIGS


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_smoke_preset_and_again(compose, tmp_path, capsys):
    overrides = ("preset=smoke", f"output.root={tmp_path}", "output.progress=false")
    command = [sys.executable, "-m", "experiments.reproduce", *overrides]
    result = subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("seed 0: ") == 6 and "README.md" in result.stdout
    cfg = compose("reproduce", *overrides)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "README.md", "runs", "learning_curves.csv", "learning_curves_runs.csv",
        "learning_curves.json", "learning_curves.png", "learning_curves.pdf",
    }  # fmt: skip
    with (tmp_path / "learning_curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(r["panel"], r["estimator"]) for r in rows} == {
        (panel, line)
        for panel in ("logistic", "mlp")
        for line in ("backprop", "forward-normal", "forward-low_rank")
    }
    report = (tmp_path / "README.md").read_text()
    assert report.count("| Logistic regression |") == report.count("| MLP 1024–1024–10 |") == 3
    assert "learning_curves.png" in report and "jax 0." in report

    before = snapshot(tmp_path)
    assert reproduce.run(cfg) == {}
    assert snapshot(tmp_path) == before

    # Anyone can redraw from the tables alone.
    shutil.rmtree(tmp_path / "runs")
    redraw = compose("reproduce", "preset=smoke", f"output.root={tmp_path}", "draw_only=true")
    assert reproduce.run(redraw) == {}
    assert snapshot(tmp_path) == {p: b for p, b in before.items() if p.parts[0] != "runs"}


def test_a_failure_is_reported_by_name(compose, tmp_path, monkeypatch, capsys):
    def fail(cfg, folder):
        raise OSError("disk full")

    monkeypatch.setattr(learning_curves, "run", fail)
    cfg = compose("reproduce", "preset=smoke", f"output.root={tmp_path}")
    assert reproduce.run(cfg) == {"learning_curves": "OSError: disk full"}
    assert "**learning_curves failed:** OSError: disk full" in (tmp_path / "README.md").read_text()


def line(seconds, losses):
    return {"seconds": np.array([seconds, seconds]), "valid_loss": np.array([losses, losses])}


@pytest.mark.parametrize(("loss", "time"), [(2.5, 5.0), (1.0, 20.0), (3.0, 0.0), (0.9, None)])
def test_time_to_loss_interpolates(loss, time):
    assert learning_curves._time_to(loss, line([0.0, 10.0, 20.0], [3.0, 2.0, 1.0])) == time


def test_report_finds_a_known_ratio_of_times(tmp_path):
    """Two seeds of two lines, of which one is twice as fast."""
    columns = ("panel", "estimator", "seed", *learning_curves.Metrics._fields)
    rows = [
        ("p", estimator, seed, step, factor * step, 0.1, 1 - step / 10, 1 - step / 10, step / 10)
        for estimator, factor in (("backprop", 2.0), ("forward-normal", 1.0))
        for seed in (0, 1)
        for step in (0, 4, 8)
    ]
    write_table(tmp_path / "learning_curves.csv", columns, rows)
    write_table(
        tmp_path / "learning_curves_runs.csv",
        learning_curves._RUN_COLUMNS,
        [("p", e, s, 8, 16, ms + s, 1, 0.2, 0.2, 0.8, 0.8 + s / 100)
         for e, ms in (("backprop", 2), ("forward-normal", 1)) for s in (0, 1)],
    )  # fmt: skip
    write_json(tmp_path / "learning_curves.json", {"titles": {"p": "Title"}, "provenance": []})
    learning_curves.draw(tmp_path)
    text = learning_curves.describe(tmp_path)
    assert "| Title | Backprop | 2 | 8 | 2.5 [-3.853, 8.853] | 1.000 |" in text
    assert "| Title | Forward gradient, normal | 2 | 8 | 1.5 [-4.853, 7.853] | 0.500 |" in text


def test_overhead_benchmark(compose, tmp_path):
    cfg = compose(
        "overhead", "model=logistic", "rounds=7", "num_steps=2", f"output.root={tmp_path}"
    )
    result = overhead.run(cfg)
    assert result["ratio"].n == 7 and result["ratio"].low <= result["ratio"].value
    with (tmp_path / "overhead.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 and all(float(r["library_ms"]) > 0 for r in rows)


def test_library_and_hand_written_steps_compile_to_the_same_work(key):
    """The exact side of the overhead benchmark: XLA counts the same operations.

    Bytes differ a little, where primal and tangent share a product instead of taking two.
    """
    import jax
    import jax.numpy as jnp

    import fwdgrad

    def loss(params, batch):
        return jnp.mean(jnp.tanh(batch @ params["w"] + params["b"]) ** 2)

    params, batch = {"w": jnp.ones((5, 3)), "b": jnp.ones(3)}, jnp.ones((4, 5))

    def cost(estimate):
        return jax.jit(estimate).lower(key, params, batch).compile().cost_analysis()

    library = cost(fwdgrad.forward_value_and_grad(loss))
    by_hand = cost(lambda *args: overhead.by_hand(loss, *args))
    for quantity in ("flops", "transcendentals"):
        assert library[quantity] == by_hand[quantity]
    assert library["bytes accessed"] < 1.1 * by_hand["bytes accessed"]


def test_step_cost(compose, tmp_path):
    """The whole experiment on small models; what it says of them is not tested."""
    cfg = compose(
        "step_cost", "~models.cnn", "models.mlp.overrides=['model=mlp','model.make.widths=[16]']",
        "models.logistic.forms=[{steps_per_call:2,compiler_options:{}}]",
        "models.mlp.forms=[{steps_per_call:1,compiler_options:{}}]",
        "models.logistic.rounds=6", "models.mlp.rounds=6", "selection_rounds=1",
        f"output.root={tmp_path}",
    )  # fmt: skip
    step_cost.run(cfg)
    step_cost.draw(tmp_path)
    with (tmp_path / "step_cost.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], r["estimator"]) for r in rows] == [
        (m, e) for m in ("logistic", "mlp") for e in step_cost.ESTIMATORS
    ]
    for row in rows:
        low, middle, high = (float(row[k]) for k in ("seconds_low", "seconds", "seconds_high"))
        assert 0 < low <= middle <= high and int(row["temp_bytes"]) >= 0
        assert row["estimator"] != "loss" or float(row["relative_cost"]) == 1
    assert (tmp_path / "step_cost.png").exists() and (tmp_path / "step_cost.pdf").exists()
    assert "| mlp | forward_lowrank |" in step_cost.describe(tmp_path)


def test_pytorch_step():
    pytest.importorskip("torch")
    images = np.random.default_rng(0).normal(size=(2, 28, 28)).astype(np.float32)
    losses = {name: step() for name, step in pytorch_step.cnn_steps(images, np.arange(2)).items()}
    assert len(losses) == 2 and all(1 < loss < 4 for loss in losses.values())  # near log 10
