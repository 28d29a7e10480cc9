"""Running times of functions, compared on a noisy machine.

The functions run in turns in one process, A B C C B A …, so that a slow moment of the machine
affects all alike and none always comes first; each call waits for its result. Quote medians and the
ratios within a turn, with an interval (`fwdgrad.measurement.intervals`).
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

Name = TypeVar("Name")


def interleaved_seconds(
    functions: Mapping[Name, Callable[[], Any]], *, rounds: int, warmup: int = 1
) -> dict[Name, np.ndarray]:
    """Run each function once a round; return the seconds of each, arrays (rounds,).

    Args:
      functions: name -> a function of no arguments that returns JAX arrays.
      rounds: how many rounds are counted.
      warmup: how many rounds before them are not (the first call may compile).
    """
    seconds: dict[Name, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for turn in range(warmup + rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            start = time.perf_counter()
            jax.block_until_ready(functions[name]())
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.asarray(samples) for name, samples in seconds.items()}
