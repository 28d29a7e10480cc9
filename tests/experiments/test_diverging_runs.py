"""Runs that diverge: seeds left out, rates given up."""

import math

import pytest

from experiments.common import from_config
from experiments.paper import (
    fair_comparison,
    learning_curves,
)
from fwdgrad.records import read_json, read_table
from fwdgrad.training import DivergedError


@pytest.mark.thorough
def test_a_seed_with_which_a_run_diverges_is_left_out(compose, tmp_path, monkeypatch):
    def run(config):
        if config.seed == bad and config.estimator.name == "backprop":
            raise DivergedError("nan")
        return original(config)

    original, bad = from_config.run, 1
    monkeypatch.setattr(from_config, "run", run)
    monkeypatch.setattr(
        from_config, "recorded_info", lambda config: original(of_another(config)).info
    )
    settings = "experiments.learning_curves"
    of_b = "['model=logistic','steps_per_call=2']"
    small = f"{{title: B, overrides: {of_b}, num_steps: 2, eval_every: 1, seeds: [1], "
    small += f"full: {{num_steps: 2, overrides: {of_b}}}}}"
    overrides = [
        "preset=smoke", f"output.root={tmp_path}", f"{settings}.seeds=[0,1]",
        f"+{settings}.panels.b={small}",
    ]  # fmt: skip

    def of_another(config):
        return compose(
            "train",
            "model=logistic",
            "num_steps=2",
            "steps_per_call=2",
            f"output.root={tmp_path}/other",
        )

    # With the one seed of b backprop diverges: the other panel, of one seed then, is there.
    shown = f"{settings}.shown=[logistic,b]"
    learning_curves.run(compose("reproduce", *overrides, shown), tmp_path)
    rows = read_table(tmp_path / "learning_curves_runs.csv")
    assert {row["panel"] for row in rows} == {"logistic"}
    assert [row["seed"] for row in rows if row["estimator"] == "backprop"] == ["0"]
    for line in ("forward-normal", "forward-low_rank"):
        assert [row["seed"] for row in rows if row["estimator"] == line] == ["0", "1"]
    information = read_json(tmp_path / "learning_curves.json")
    assert information["diverged"] == [["logistic", "backprop", 1], ["b", "backprop", 1]]
    assert "B: backprop diverged with seed 1" in learning_curves.describe(tmp_path)
    found = {f.key: f for f in learning_curves.findings(tmp_path)}
    assert found["logistic.loss_f"].ours.n == 2 and found["logistic.loss_b"].ours.n == 1
    assert found["logistic.loss_ratio"].ours.n == 1
    with pytest.raises(DivergedError, match=r"with every seed backprop diverges"):
        learning_curves.run(compose("reproduce", *overrides, f"{settings}.shown=[b]"), tmp_path)


@pytest.mark.thorough
def test_a_rate_that_diverges_is_not_chosen(compose, tmp_path, monkeypatch):
    """In tuning, or later with another seed."""
    made, trained = [], {}

    def run(config):
        rate = config.learning_rate
        made.append((rate, config.seed))
        assert config.read_test_set == (config.seed in (0, 1))  # not while a rate is chosen
        if rate == 4 or (rate == 2 and config.seed == 1):
            raise DivergedError("nan")
        if config.read_test_set not in trained:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(from_config, "run_seeds", original_seeds)
                trained[config.read_test_set] = original(config)
        record = trained[config.read_test_set]
        loss = 3 if rate == 2.83 else 1 / rate  # larger is better, but 2.83 ends above its start
        rows = [
            record.metrics[0]._replace(valid_loss=2),
            record.metrics[-1]._replace(valid_loss=loss),
        ]
        final = {**record.info["final"], "valid_loss": loss}
        return record._replace(info={**record.info, "final": final}, metrics=rows)

    def run_seeds(configs):
        for config in configs:
            try:
                yield run(config)
            except DivergedError as error:
                yield error

    original, original_seeds = from_config.run, from_config.run_seeds
    panel = "experiments.fair_comparison.panels.logistic"
    monkeypatch.setattr(from_config, "run_seeds", run_seeds)
    monkeypatch.setattr(from_config, "recorded_info", lambda config: trained[False].info)
    fair = "experiments.fair_comparison"
    overrides = [
        "preset=smoke", f"output.root={tmp_path}", f"{fair}.shown=[logistic]",
        f"{fair}.seeds=[0,1]", f"{panel}.num_steps=8", f"{panel}.num_rows=2",
        f"{fair}.tuning={{seeds:[1000],num_rates:4,factor:2}}",
        f"{fair}.lines.backprop.first_rates={{logistic:2}}",
        *(f"~{fair}.lines.{line}" for line in compose("reproduce").experiments.fair_comparison.lines
          if line != "backprop"),
    ]  # fmt: skip
    cfg = compose("reproduce", *overrides)
    fair_comparison.run(cfg, tmp_path)
    rates = fair_comparison._rates(tmp_path, "logistic")["backprop"]
    assert rates.tried == {2.0: [0.5], 1.0: [1.0], 4.0: [math.inf], 2.83: [math.inf]}
    assert rates.chosen == 1.0 and rates.given_up == [2.0]
    assert made[4:] == [(2, 0), (2, 1), (1, 0), (1, 1)]
    assert {seed for _, seed in made[:4]} == {1000}
    fair_comparison.draw(tmp_path)
    text = fair_comparison.describe(tmp_path)
    assert "| 1 (end of the grid); given up: 2 |" in text
