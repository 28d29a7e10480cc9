"""The results that are kept: tables as they were measured, and reports made of them."""

import re
import shutil

import pytest
import yaml

from experiments import reproduce
from experiments.common import claims, jobs, report
from experiments.common.paper_facts import FACTS
from fwdgrad.records import read_json

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
    for module in reproduce.EXPERIMENTS.values():
        monkeypatch.setattr(module, "draw", lambda folder: None)
    root = f"output.root={tmp_path / preset}"
    cfg = compose("reproduce", f"preset={preset}", root, "draw_only=true")
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
