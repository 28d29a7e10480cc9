"""The number of Hypothesis examples of a test, and their seed.

The suite tries the same examples in every run, and `pytest --thorough` tries more for slow tests.
`pytest --nightly` tries many times as many, with a new seed each night, and prints the seed;
`--nightly-seed=N` repeats it.
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
    """Return the decorator that sets the number of examples of a test.

    Args:
      number: the number of examples in every run of the suite.
      thorough: the number with `pytest --thorough`, by default the same.
      each_night: the factor of `number` with `pytest --nightly`.
    """
    seed = os.environ.get(SEED)
    if seed is None:
        number = thorough if thorough and THOROUGH in os.environ else number
        return hypothesis.settings(max_examples=number, deadline=None, derandomize=True)
    settings = hypothesis.settings(
        max_examples=each_night * number, deadline=None, derandomize=False, database=None
    )
    return lambda test: hypothesis.seed(int(seed))(settings(test))
