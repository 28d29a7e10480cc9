"""The benchmarks, small: their files."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from experiments.cost import overhead, pytorch_step, step_cost
from experiments.quality import divergence


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


def test_divergence(compose, tmp_path):
    """A run that ends as NaN, or above its first loss, counts as failed; pairs have one start."""
    cfg = compose(
        "divergence", "model.make.widths=[4]", "num_seeds=2", "num_steps=40", "rates=[1e-4,1e6]",
        "num_train=32", "num_valid=16", f"output.root={tmp_path}",
        "~lines.rank_4", "~lines.rank_16", "~lines.dense_signs", "~lines.dense_normal",
        "~lines.rank_1_at_1_median",
    )  # fmt: skip
    divergence.run(cfg)
    with (tmp_path / "divergence.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 2
    for row in rows:
        like = [r["first_loss"] for r in rows if r["seed"] == row["seed"]]
        assert set(like) == {row["first_loss"]}
        stable = float(row["learning_rate"]) < 1
        assert (float(row["last_loss"]) <= float(row["first_loss"])) == stable
        assert int(row["steps"]) == 40 or not stable
    text = divergence.describe(tmp_path)
    assert "| rank 1 | 0 of 2 [0.00, 0.66]; 2." in text and "| 2 of 2 [0.34, 1.00] |" in text
