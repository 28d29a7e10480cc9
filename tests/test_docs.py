"""README and docs: short, runnable, with links that lead somewhere and a source for each number."""

import doctest
import re
import subprocess
from pathlib import Path

import pytest

from docs import measured
from experiments.common import claims
from experiments.common.paper_facts import Finding
from experiments.common.verdicts import Estimate
from fwdgrad.util.layouts import TESTED_VERSIONS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = measured.pages()


def name_of(path):
    return path.name


def without_comments(text):
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def test_the_readme_is_short():
    """At most 900 words, code and tables included, comments that a reader does not see left out."""
    words = re.sub(r"\]\([^)]*\)|[|]|^[-| ]+$", " ", without_comments(README), flags=re.MULTILINE)
    assert len(words.split()) <= 900
    assert len(re.findall(r"^!\[", README, re.MULTILINE)) == 1  # one figure


def test_the_readme_has_the_two_commands_that_ci_and_newcomers_run():
    install = "python3 -m venv {v} && {v}/bin/pip install -q -c constraints.txt -e '.[{extra}]'"
    for comment, venv, extra, command in (
        ("main job", ".venv", "experiments", "experiments.reproduce preset=quick"),
        ("tests", ".venv-test", "test", "pytest"),
    ):
        line = f"{install.format(v=venv, extra=extra)} && {venv}/bin/python -m {command}"
        assert f"<!-- {comment} -->\n```bash\n{line}\n```\n" in README


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_python_of_a_page_runs(path, capsys):
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(path), "exec"), scope)


def test_the_readmes_example_has_fifteen_lines():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.splitlines()) <= 16


@pytest.mark.parametrize(
    "path", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of
)
def test_links_and_pictures_of_a_page_exist(path):
    """Those between pages, with their headings, are checked by `mkdocs build --strict`, too."""
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_mkdocs_shows_every_page():
    shown = re.findall(r"^  - .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(path.name for path in PAGES if path.parent == ROOT / "docs")


def test_messages_that_the_faq_quotes_are_in_the_code():
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("fwdgrad", "experiments")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    code = re.sub(r"\"\s*f?\"", "", code)  # strings that are continued
    headings = re.findall(r"^## .*$", (ROOT / "docs" / "faq.md").read_text("utf-8"), re.MULTILINE)
    quotes = [quote for heading in headings for quote in re.findall(r'"([^"]+)"', heading)]
    assert len(quotes) >= 10
    for part in (part.strip() for quote in quotes for part in quote.split("…")):
        assert part in code, part


def test_each_recipe_counts_the_files_that_it_touches():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    recipes = page.partition("## In this repository")[2]
    found = re.findall(r"^- \*\*(.*?)\*\*.*?\((\d+) files?\)(.*?)(?=^- |\Z)", recipes, re.M | re.S)
    assert len(found) == recipes.count("\n- **")
    most = {"a distribution of tangents": 4, "a rule": 2, "a model": 2, "a data set": 2}
    for name, count, text in found:
        files = set(re.findall(r"`((?:fwdgrad|tests|configs|experiments)/[^`]*)`", text))
        assert len(files) == int(count) <= most.get(name, 6), (name, files)
        for file in files:
            assert "<" in file or (ROOT / file).exists(), file


def test_the_readme_names_the_versions_of_jax_that_ci_runs():
    """They stand in the code. CI runs all tests on the pinned one, and the library on both ends."""
    (line,) = re.findall(r"tested with JAX ([^:]*?), on Python (3\.\d+) to (3\.\d+)", README)
    named = re.findall(r"\d+(?:\.\d+)+", line[0])
    assert tuple(named) == TESTED_VERSIONS
    plan = subprocess.run(
        ["bash", ROOT / ".ci" / "run", "--plan"], capture_output=True, text=True, check=True
    ).stdout
    runs = re.findall(r"^\+ JAX (\S+) on Python (\d+\.\d+)", plan, re.MULTILINE)
    versions, pythons = zip(*runs, strict=True)
    pinned = re.search(r"^jax==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert versions == (pinned, TESTED_VERSIONS[0], TESTED_VERSIONS[-1])
    assert pinned in TESTED_VERSIONS
    assert all(int(line[1][2:]) <= int(x[2:]) <= int(line[2][2:]) for x in pythons)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_each_number_of_a_page_is_that_of_its_table(path):
    text = path.read_text(encoding="utf-8")
    assert measured.updated(text) == text, "run: python -m docs.measured"
    assert measured.unsourced(text) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_page_has_a_number_that_the_main_job_changes(path):
    """The README's first command writes results/quick anew, before its second runs the tests."""
    assert "<!-- results/quick/" not in path.read_text(encoding="utf-8")


def test_the_table_of_claims_is_made_of_the_findings(tmp_path):
    ours, low_rank = (Estimate(x, x - 0.1, x + 0.1, 5, "seeds", 0.9) for x in (0.6, 0.5))
    finding = Finding("mlp.R_ratio", ours, low_rank, "reproduced", "")
    folder = tmp_path / "results" / "paper"
    folder.mkdir(parents=True)
    claims.write(folder, [claims.Sourced(finding, "cpu", "A CPU", "step_cost", "abc")])
    page = "Before.\n\n<!-- claims -->\nold 0.1\n<!-- end of claims -->\n\nAfter.\n"
    new = measured.updated(page, tmp_path)
    assert "| forward gradient over backprop | published | CPU (A CPU) | GPU | verdict |\n|" in new
    assert (
        "| 0.586–0.598 | 0.6 [0.5, 0.7] (5 seeds) | – | reproduced (CPU); below 1 (CPU) |\n" in new
    )
    assert "| – | 0.5 [0.4, 0.6] (5 seeds) | – | below 1 (CPU) |\n" in new
    assert new.endswith("|\n<!-- end of claims -->\n\nAfter.\n") and "old" not in new
    assert measured.updated(new, tmp_path) == new and measured.unsourced(new) == []
    other = finding._replace(ours=low_rank)
    (tmp_path / "results" / "quick").mkdir()
    source = claims.Sourced(other, "cpu", "A CPU", "step_cost", "abc")
    claims.write(tmp_path / "results" / "quick", [source])
    assert measured.updated(new, tmp_path) == new


def test_the_doctests_of_measured_numbers_pass():
    assert doctest.testmod(measured).failed == 0


TABLE = "model,ratio,ratio_low,ratio_high,seconds\nmlp,0.5839,0.5612,0.6049,0.0024\ncnn,0.6,,,1\n"


@pytest.fixture
def table(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "t.csv").write_text(TABLE)
    return tmp_path


@pytest.mark.parametrize(
    ("shown", "column", "expected"),
    [
        ("0.58", "ratio", "0.58"),
        ("?", "ratio", "0.584"),
        ("**0.50 [0.4, 0.6]**", "ratio", "**0.58 [0.56, 0.60]**"),
        ("? ms", "seconds in ms", "2.40 ms"),
        ("1 %", "ratio in %", "58 %"),
    ],
)
def test_a_number_is_brought_up_to_date(table, shown, column, expected):
    marker = f"<!-- results/t.csv model=mlp : {column} -->"
    assert measured.updated(f"A step: {shown} {marker}.", table) == f"A step: {expected} {marker}."


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("results/t.csv model=rnn : ratio", "0 rows"),
        ("results/t.csv seconds=1 : median", "no 'median' in that row. It has model, ratio"),
        ("results/u.csv model=mlp : ratio", "there is no results/u.csv"),
        ("results/t.csv model=cnn : ratio", "no interval"),
    ],
)
def test_an_unknown_source_is_an_error(table, marker, message):
    with pytest.raises(measured.UnknownSource, match=re.escape(message)):
        measured.updated(f"0.58 [0.5, 0.6] <!-- {marker} -->", table)


@pytest.mark.parametrize(
    "claim",
    [
        "0.58 of the time", "a step takes 3 ms", "98 % of them", "2× faster", "7 times faster",
        "in 40 s", "2.4 MiB", "| a | 0.58 |", "ahead by 0.30 points", "JAX, 0.55", "5e-5",
    ],
)  # fmt: skip
def test_a_claim_without_a_source_is_found(claim):
    assert len(measured.unsourced(f"Here:\n\n{claim}\n")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "JAX 0.10.0, 0.10.2 and 0.12.0.1", "`0.58`", "a rate of 0.1, 0.2 or 0.4", "momentum 0.9",
        "layers of 1024 and 10", "8 × 1,024 tokens", "95 % intervals", "arXiv 2202.08587",
        "η₀ = 2e-4", "0.5 <!-- setting -->", "[half](a/0.5)", "```\n0.5\n```",
        "text\n\n    g = 0.5 v\n",
        "0.649 <!-- paper: cnn.R_ratio -->", "2.55 % <!-- cited: MeZO -->",
    ],
)  # fmt: skip
def test_what_is_no_claim_needs_no_source(text):
    assert measured.unsourced(text) == []


def test_a_number_of_the_paper_is_that_of_its_fact():
    assert len(measured.unsourced("0.7 <!-- paper: cnn.R_ratio -->")) == 1
    with pytest.raises(measured.UnknownSource, match="no such key of FACTS"):
        measured.unsourced("0.7 <!-- paper: nothing -->")
    with pytest.raises(measured.UnknownSource, match=r"related_work\.md does not name it"):
        measured.unsourced("0.7 <!-- cited: nobody -->")
