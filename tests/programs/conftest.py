"""Programs of other libraries run in float64, where rounding hides no error, and may warn."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def _in_float64(x64):
    """Compare in double precision."""
