"""Each script of `examples/` runs, prints one line, and passes its own assertions."""

import runpy
from pathlib import Path

import pytest

from tests.sweeps import thorough_but

SCRIPTS = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize(
    "script",
    thorough_but([x for x in SCRIPTS if "flax" not in x.stem], SCRIPTS),
    ids=lambda script: script.stem,
)
def test_an_example_runs_and_shows_one_line(script, capsys):
    assert "\n    assert " in script.read_text()
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.count("\n") == 1


def test_there_are_these_examples():
    assert [script.stem for script in SCRIPTS] == [
        "equinox_three_lines",
        "flax_nnx_transformer",
        "optax_activity_perturbation",
        "optax_chain",
    ]
