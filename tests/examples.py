"""How many examples Hypothesis tries of a test, and with which seed.

In the suite they are the same in every run, and `pytest --thorough` tries some more of the tests
that are slow. `pytest --nightly` tries many times as many, new ones
each night, and prints the seed with which `--nightly-seed=N` tries the same again.
"""

import os
from collections.abc import Callable
from typing import Any

import hypothesis

# Set by `tests/conftest.py` before any test is imported; the workers of pytest-xdist inherit it.
SEED, THOROUGH = "FWDGRAD_NIGHTLY_SEED", "FWDGRAD_THOROUGH"


def examples(
    number: int, *, thorough: int | None = None, each_night: int = 25
) -> Callable[[Any], Any]:
    """Return the decorator of a test: `number` examples, or as many as these options say.

    Args:
      number: in every run of the suite.
      thorough: with `pytest --thorough`, if not as many.
      each_night: how many times `number` with `pytest --nightly`.
    """
    seed = os.environ.get(SEED)
    if seed is None:
        number = thorough if thorough and THOROUGH in os.environ else number
        return hypothesis.settings(max_examples=number, deadline=None, derandomize=True)
    settings = hypothesis.settings(
        max_examples=each_night * number, deadline=None, derandomize=False, database=None
    )
    return lambda test: hypothesis.seed(int(seed))(settings(test))
