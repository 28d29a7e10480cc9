"""`output.root`: the home, and any text as a path."""

from pathlib import Path
from unittest.mock import patch

import hydra
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.common import from_config, jobs
from experiments.common.keys import KEYS

from .conftest import CONFIGS


def test_home(compose, monkeypatch, tmp_path):
    """A ~ is the home, in the folder of runs and in those that experiments name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = compose("train", "output.root='~/x'")
    assert from_config.folder(cfg).parents[1] == tmp_path / "x"
    made = jobs.compose_train(compose("reproduce", "output.root='~/y'"), ["model=logistic"])
    assert made.output.root == str(tmp_path / "y/runs")


@pytest.mark.parametrize("name", KEYS)
def test_home_in_a_sweep(compose, monkeypatch, tmp_path, name):
    """Hydra makes a folder for a sweep by itself."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = hydra.compose(name, ["output.root='~/x'"], return_hydra_config=True)
    swept = {"reproduce": "results"}
    assert cfg.hydra.sweep.dir == swept.get(name, str(tmp_path / "x"))


ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)
NASTY = ["a=b", "a,b", "(a)", "a b", "'", '"', "[x]", "{x}", "${x}", r"\${x}", "$", "\\", "1", "~x"]


@pytest.fixture(scope="module")
def reproduce_and_train():
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("reproduce"), hydra.compose("train")


@given(root=st.one_of(ANY_TEXT, st.sampled_from(NASTY)))
def test_any_text_is_a_root(reproduce_and_train, root):
    """The runs of an experiment have the very root, whatever characters it has."""
    cfg, of_train = reproduce_and_train
    with patch.object(hydra, "compose", lambda *args, **kwargs: of_train):
        cfg.output.root = jobs.literal(f"/{root}")
        assert cfg.output.root == f"/{root}"
        made = jobs.compose_train(cfg, [], seed=3)
    assert made.output.root == str(Path(f"/{root}") / "runs") and made.seed == 3
    assert from_config.folder(made).parents[1] == Path(f"/{root}") / "runs"


@pytest.mark.parametrize("root", [root for root in NASTY if "${" not in root])
def test_nasty_roots_on_the_command_line(compose, tmp_path, root):
    """Quoted as Hydra has it."""
    quoted = f"{tmp_path}/{root}".replace("\\", "\\\\").replace("'", r"\'")
    cfg = compose("walkthrough", f"output.root='{quoted}'")
    assert jobs.compose_train(cfg, ["model=logistic"]).output.root == f"{tmp_path}/{root}/runs"
