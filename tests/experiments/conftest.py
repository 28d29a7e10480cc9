"""Composing configs as the command line does."""

from pathlib import Path

import hydra
import pytest

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def compose():
    """(config name, *overrides) -> config; `hydra.compose` works within the test."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield lambda name, *overrides: hydra.compose(name, overrides=list(overrides))
