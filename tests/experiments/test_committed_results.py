"""The results that are kept: tables as they were measured, and reports made of them."""

import re
import shutil

import pytest
import yaml

from experiments import reproduce
from experiments.common import claims, from_config, jobs, report
from experiments.common.paper_facts import FACTS
from fwdgrad.records import read_json, read_table

from .conftest import CONFIGS

COMMITTED = [
    (preset, name)
    for preset in ("paper", "quick")
    for name in reproduce.EXPERIMENTS
    if (CONFIGS.parent / "results" / preset / f"{name}.json").exists()
]


@pytest.mark.parametrize("preset", ["paper", "quick"])
def test_a_committed_report_is_short_and_speaks_of_methods_by_name(preset):
    """Names of lines in configs are no names of methods, and nobody else's targets are ours."""
    folder = CONFIGS.parent / "results" / preset
    assert report.count_words((folder / "README.md").read_text()) <= report.MOST_WORDS
    lines = [yaml.safe_load(path.read_text()) for path in (CONFIGS / "experiment").glob("*.yaml")]
    keys = {key for config in lines for key in config.get("lines", {}) if re.search("[-_]", key)}
    assert len(keys) > 50
    for path in folder.glob("*.md"):
        prose = re.sub(r"\]\([^)]*\)|`[^`]*`", "", path.read_text())  # without links and code
        for key in keys:
            assert not re.search(rf"\b{re.escape(key)}\b", prose), f"{path}: {key}"


def test_every_claim_is_measured_by_some_experiment_or_says_why_not():
    results = CONFIGS.parent / "results"
    measured = {x.finding.key for name in ("paper", "h200") for x in claims.read(results / name)}
    assert {key for key, fact in FACTS.items() if not fact.unchecked} <= measured <= FACTS.keys()


@pytest.mark.parametrize("preset", ["paper", "quick"])
def test_a_committed_report_is_that_of_its_tables(preset, compose, tmp_path, monkeypatch):
    """The command `reproduce draw_only=true` writes it, with the findings of folders beside it."""
    results = CONFIGS.parent / "results"
    for findings in results.glob("*/findings.csv"):
        (tmp_path / findings.parent.name).mkdir()
        shutil.copy(findings, tmp_path / findings.parent.name)
    for path in (results / preset).iterdir():
        if path.suffix in (".csv", ".json"):
            shutil.copy(path, tmp_path / preset)
    recorded = [x for x in reproduce.EXPERIMENTS if (results / preset / f"{x}.json").exists()]
    for name in recorded:
        monkeypatch.setattr(reproduce.EXPERIMENTS[name], "draw", lambda folder: None)
    root = f"output.root={tmp_path / preset}"
    shown = f"shown=[{','.join(recorded)}]"
    cfg = compose("reproduce", f"preset={preset}", root, "draw_only=true", shown)
    assert reproduce.run(cfg) == {}
    made = {path.name for path in (tmp_path / preset).glob("*.md")}
    assert made == {path.name for path in (results / preset).glob("*.md")}
    for name in (*made, "findings.csv"):
        found, committed = (x / preset / name for x in (tmp_path, results))
        assert found.read_text() == committed.read_text(), "run: reproduce with draw_only=true"


@pytest.mark.parametrize(("preset", "name"), COMMITTED)
def test_the_committed_tables_are_those_that_were_measured(preset, name):
    folder = CONFIGS.parent / "results" / preset
    assert len(COMMITTED) >= 8 and read_json(folder / f"{name}.json")["tables"]
    jobs.check_tables(folder, name)


@pytest.mark.parametrize("line", ["backprop", "forward-normal", "forward-low_rank"])
def test_a_recorded_run_can_be_repeated(line, compose, tmp_path, all_examples):
    """The beginning of a run of the paper's logistic regression; sums are rounded differently."""
    lines = yaml.safe_load((CONFIGS / "experiment" / "learning_curves.yaml").read_text())["lines"]
    length = ["num_steps=500", "eval_every=250", "seed=1", f"output.root={tmp_path}"]
    config = compose("train", "model=logistic", "learning_rate=1e-4", *lines[line], *length)
    rows = read_table(CONFIGS.parent / "results" / "paper" / "learning_curves.csv")
    recorded = {
        int(row["step"]): float(row["valid_loss"])
        for row in rows
        if (row["panel"], row["estimator"], row["seed"]) == ("logistic", line, "1")
    }
    for row in from_config.run(config).metrics:
        assert row.valid_loss == pytest.approx(recorded[row.step], rel=1e-4), row.step
