"""The version stands in one place and is repeated in two; the changelog has the form it names."""

import re
import tomllib
from pathlib import Path

import yaml

import fwdgrad

ROOT = Path(__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_citation_and_changelog_have_the_version_and_its_date():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    assert {"title", "message", "authors"} <= set(citation)
    assert citation["version"] == fwdgrad.__version__
    (newest, date), *_ = re.findall(r"^## \[([\d.]+)\] - (\S+)$", CHANGELOG, re.MULTILINE)
    assert (newest, date) == (citation["version"], citation["date-released"])


def test_the_changelog_has_the_kinds_of_changes_that_its_form_names():
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)) <= kinds
    assert CHANGELOG.index("## [Unreleased]") < CHANGELOG.index(f"## [{fwdgrad.__version__}]")


def test_the_changelog_names_what_exists():
    public = {name for name in re.findall(r"`([A-Za-z_]\w*)`", CHANGELOG) if name[0].isupper()}
    gone = {"GuidedProblem"}
    assert public - gone and all(hasattr(fwdgrad, name) for name in public - gone)


def test_the_wheel_has_the_library_without_its_data():
    """`.ci/run` builds the wheel, installs it without extras, and looks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["fwdgrad"], "exclude": ["fwdgrad/problems/data"]}
    assert [name for name in project["project"]["dependencies"] if "jax" not in name] == []
    assert (ROOT / "fwdgrad" / "py.typed").exists()
