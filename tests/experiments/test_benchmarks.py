"""The benchmarks, small: their files."""

import csv
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from experiments.common import costs, tables
from experiments.cost import null_test, step_cost
from experiments.paper import deep_network, depth_scaling
from experiments.quality import divergence
from fwdgrad.measurement import Sample, geometric_mean_interval, in_fresh_process, processes
from fwdgrad.records import read_json, read_table, write_table

from .timed import FACTS


@pytest.mark.thorough
def test_null_test(compose, tmp_path, capsys):
    cfg = compose(
        "null_test", "model=logistic", "rounds=2", "repeats=2", "processes=3", "steps_per_call=2",
        "batch_size=4", f"output.root={tmp_path}",
    )  # fmt: skip
    null_test.command(cfg)
    rows = read_table(tmp_path / "timings.csv")
    assert len(rows) == 2 * 3 * 3 * 2 and list(rows[0])[:4] == [
        "repeat", "program", "process", "turn"
    ]  # fmt: skip
    information = read_json(tmp_path / "null_test.json")
    ratios = null_test._ratios(tmp_path)
    held = sum(null_test.holds_1(ratio["library-again"]) for ratio in ratios)
    assert information["holds_1"] == held and len(information["processes_of_repeats"]) == 6
    text = (tmp_path / "README.md").read_text()
    assert f"holds 1 in {held} of 2 repeats" in text and text.count("\n| 2 |") == 1
    assert capsys.readouterr().out.startswith("repeat 1: again ")


def test_no_interval_holds_1_if_there_is_none():
    assert not null_test.holds_1(geometric_mean_interval([1.0, 1.0]))
    assert null_test.holds_1(geometric_mean_interval([0.9, 1.0, 1.1]))
    assert not null_test.holds_1(geometric_mean_interval([0.97, 0.971, 0.972]))


def test_library_and_hand_written_steps_compile_to_the_same_work(key):
    """The exact side of the null test: XLA counts the same operations.

    Bytes differ a little, where primal and tangent share a product instead of taking two.
    """

    def loss(params, batch):
        return jnp.mean(jnp.tanh(batch @ params["w"] + params["b"]) ** 2)

    params, batch = {"w": jnp.ones((5, 3)), "b": jnp.ones(3)}, jnp.ones((4, 5))

    def cost(estimate):
        return jax.jit(estimate).lower(key, params, batch).compile().cost_analysis()

    library = cost(fwdgrad.forward_value_and_grad(loss))
    by_hand = cost(lambda *args: null_test.ByHand(loss)(*args))
    for quantity in ("flops", "transcendentals"):
        assert library[quantity] == by_hand[quantity]
    assert library["bytes accessed"] < 1.1 * by_hand["bytes accessed"]


@pytest.mark.thorough
def test_step_cost(compose, tmp_path):
    """The whole experiment on small models; the table of intervals follows from the raw times."""
    forms = "{cpu: [{steps_per_call: 2, compiler_options: null}, {steps_per_call: 1, \
compiler_options: null}], other: [{steps_per_call: 2, compiler_options: null}]}"
    mlp = "experiments.step_cost.panels.mlp-64"
    cfg = compose(
        "reproduce", "preset=smoke", f"output.root={tmp_path}", f"{mlp}.forms={forms}",
        "experiments.step_cost.processes=3",
    )  # fmt: skip
    step_cost.run(cfg, tmp_path)
    left_out = cfg.experiments.step_cost.panels["mlp-64"].without
    lines = [line for line in cfg.experiments.step_cost.lines if line not in left_out]
    raw = read_table(tmp_path / "step_cost_timings.csv")
    assert len(raw) == len(lines) * 3 * 2 and {row["panel"] for row in raw} == {"mlp-64"}
    forms = read_table(tmp_path / "step_cost_forms.csv")
    assert [row["estimator"] for row in forms[::2]] == lines
    for first, second in itertools.pairwise(forms[::1]):
        if first["estimator"] == second["estimator"]:
            fastest = float(second["seconds"]) < float(first["seconds"])
            assert (first["chosen"], second["chosen"]) == ("01"[not fastest], "01"[fastest])
    table = tables.read_intervals(
        tmp_path / "step_cost.csv", {"panel": str, "estimator": str, "quantity": str}
    )["mlp-64"]
    recomputed = step_cost._read(tmp_path)[1]["mlp-64"]
    for line in lines:
        assert table[line].keys() == recomputed[line].keys()
        for quantity, interval in recomputed[line].items():
            np.testing.assert_allclose(table[line][quantity], interval, rtol=1e-12)
    assert table["loss"]["relative_cost"].value == table["backprop"]["over_reference"].value == 1
    assert table["backprop"]["total_bytes"].value > table["backprop"]["temp_bytes"].value > 0
    assert table["forward-normal"]["relative_cost"].n == 3
    text = step_cost.describe(tmp_path)
    assert "n = 3 fresh processes" in text and "| backprop, a second time | " in text
    again = table["backprop-again"]["over_reference"]
    assert f"holds 1 in {int(again.low <= 1 <= again.high)} of 1 panels" in text
    information = read_json(tmp_path / "step_cost.json")
    assert information["panels"]["mlp-64"]["changed"] == "other settings"
    assert {f.verdict for f in step_cost.findings(tmp_path)} == {"not in this preset"}


def test_steps_after_which_compilation_is_repaid():
    """0.5 s longer to compile, 1 ms less a step; not for a step that is slower."""
    seconds = {"loss": 1, "backprop": 2.5, "forward-low_rank": 1.5, "forward-normal": 3}
    samples = [Sample(line, p, 0, x / 1000) for line, x in seconds.items() for p in range(3)]
    facts = {line: {**FACTS, "compile_seconds": 0.2} for line in seconds}
    facts["forward-low_rank"]["compile_seconds"] = 0.7
    found = step_cost.quantities(samples, facts)
    assert found["forward-low_rank"]["repaid_after"].value == pytest.approx(500, abs=1)
    assert found["forward-normal"]["repaid_after"].value == math.inf
    assert "repaid_after" not in found["backprop"].keys() | found["loss"].keys()
    facts["forward-low_rank"]["compile_seconds"] = 0.1
    assert step_cost.quantities(samples, facts)["forward-low_rank"]["repaid_after"].value == 0


@pytest.mark.thorough
def test_step_costs_of_a_line_in_fresh_processes(compose, tmp_path, monkeypatch):
    """In processes of their own, which find the functions and the configs' data."""
    monkeypatch.setattr(processes, "in_fresh_process", in_fresh_process)
    small = ["model=logistic", "batch_size=4", "steps_per_call=2", f"output.root={tmp_path}"]
    configs = {
        name: compose("train", *small, f"estimator={name}") for name in ("backprop", "forward")
    }
    settings = {"processes": 1, "rounds": 2}
    record = costs.step_costs(configs, tmp_path, **settings)
    again = costs.step_costs(configs, tmp_path, **settings)
    assert record == again and not list(tmp_path.glob("training*"))
    samples = costs.samples_of(record)
    assert {s.program for s in samples} == {"loss", *configs} and len(samples) == 6
    assert costs.relative_cost(samples)["loss"].value == 1
    facts = record["result"]["facts"]["backprop"]
    assert facts.keys() == FACTS.keys() and facts["total_bytes"] >= 4 * 7850
    monkeypatch.setattr(processes, "in_fresh_process", lambda function, *args: function(*args))
    timed = costs.training_costs(configs, tmp_path, **settings)
    assert costs.over_reference(costs.samples_of(timed))["backprop"].value == 1


@pytest.mark.thorough
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
    assert (
        "| low-rank, rank 1 | 0 of 2 [0.00, 0.66]; 2." in text and "| 2 of 2 [0.34, 1.00] |" in text
    )


@pytest.mark.thorough
def test_figure_6_takes_its_times_from_the_raw_ones(compose, tmp_path, monkeypatch):
    """Over three processes; times of the table that were changed are not believed."""
    monkeypatch.setattr(
        deep_network, "_in_processes",
        lambda function, config, names: {name: function(config, name) for name in names},
    )  # fmt: skip
    cfg = compose("reproduce", "preset=smoke", "experiments.depth_scaling.processes=3")
    depth_scaling.run(cfg, tmp_path)
    raw = read_table(tmp_path / "depth_scaling_timings.csv")
    assert len(raw) == 5 * 3 * 2 and {row["program"] for row in raw} == {
        "loss", *depth_scaling.ESTIMATORS
    }  # fmt: skip
    before, text = depth_scaling._read(tmp_path), depth_scaling.describe(tmp_path)
    assert "over n = 3 processes" in text and text.count("\n| 2 | 3 | backprop") >= 2
    rows = read_table(tmp_path / "depth_scaling.csv")
    for number, row in zip(before["relative_cost_low"], rows, strict=True):
        assert float(row["relative_cost_low"]) == pytest.approx(number)
    changed = [{**row, "relative_cost_low": "7"} for row in rows]
    write_table(tmp_path / "depth_scaling.csv", rows[0], [row.values() for row in changed])
    assert depth_scaling._read(tmp_path).equals(before)
