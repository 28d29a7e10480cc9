"""Running times of functions, compared on a noisy machine.

The functions run in turns in one process, A B C C B A …, so that a slow moment of the machine
affects all alike and none always comes first; each call waits for its result. Turns of one process
are not independent: for an interval, time in several processes (`fwdgrad.measurement.processes`).
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

Name = TypeVar("Name")


def interleaved_seconds(
    functions: Mapping[Name, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 1,
    seed: int | None = None,
    max_seconds: float | None = None,
) -> dict[Name, np.ndarray]:
    """Run each function once a round; return the seconds of each, arrays (rounds,).

    Args:
      functions: name -> a function of no arguments that returns JAX arrays.
      rounds: how many rounds are counted.
      warmup: how many rounds before them are not (the first call may compile).
      seed: of a new random order every two rounds, the second in reverse, so that each function
        follows each other one, and itself, equally often; None: always the order of `functions`.
      max_seconds: after this time no further round begins, once one is counted.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in functions}
    order, begin = list(functions), time.perf_counter()
    generator = np.random.default_rng(seed)
    for turn in range(warmup + rounds):
        late = max_seconds is not None and time.perf_counter() - begin > max_seconds
        if late and turn > warmup:
            break
        if seed is not None and turn % 2 == 0:
            order = [order[i] for i in generator.permutation(len(order))]
        for name in order if turn % 2 == 0 else reversed(order):
            start = time.perf_counter()
            jax.block_until_ready(functions[name]())
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.asarray(samples) for name, samples in seconds.items()}
