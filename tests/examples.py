"""How many examples Hypothesis tries of a test, and with which seed.

In the suite they are the same in every run. `pytest --nightly` tries many times as many, new ones
each night, and prints the seed with which `--nightly-seed=N` tries the same again.
"""

import os
from collections.abc import Callable
from typing import Any

import hypothesis

# Set by `tests/conftest.py` before any test is imported; the workers of pytest-xdist inherit it.
SEED = "FWDGRAD_NIGHTLY_SEED"


def examples(number: int, *, each_night: int = 25) -> Callable[[Any], Any]:
    """Return the decorator of a test: `number` examples, and `each_night` times that by night."""
    seed = os.environ.get(SEED)
    if seed is None:
        return hypothesis.settings(max_examples=number, deadline=None, derandomize=True)
    settings = hypothesis.settings(
        max_examples=each_night * number, deadline=None, derandomize=False, database=None
    )
    return lambda test: hypothesis.seed(int(seed))(settings(test))
