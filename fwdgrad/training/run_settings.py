"""Length and pieces of a training, and its arguments, checked before anything compiles."""

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fwdgrad.util.validation import check_positive_integer

# jax.random.key takes larger seeds, too, and without 64-bit types silently drops the upper bits.
_LARGEST_SEED = 2**32 - 1
_LARGEST_STEP = 2**31 - 1  # the step is counted in int32


@dataclass(frozen=True)
class Settings:
    """The length and the pieces of a training.

    Attributes:
      num_steps: the number of updates.
      batch_size: examples in a minibatch.
      eval_every: steps between two rows of `metrics.csv`.
      steps_per_call: the most steps in one compiled call (see `fwdgrad.training.stepping`).
      compiler_options: XLA's, by name, for compiling the step; without those of other platforms.
    """

    num_steps: int
    batch_size: int
    eval_every: int
    steps_per_call: int
    compiler_options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "eval_every", "steps_per_call"):
            check_positive_integer(name, getattr(self, name))
        if self.num_steps > _LARGEST_STEP:
            raise ValueError(f"num_steps must be at most {_LARGEST_STEP}; found {self.num_steps}.")
        options = self.compiler_options
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"compiler_options must be a dict or None; found {options!r}.")


class Identity(NamedTuple):
    """The identity of a run: seed, settings, config, and further files of its code."""

    seed: int
    settings: Settings
    config: str
    sources: tuple[Path, ...]

    def plain(self) -> dict[str, Any]:
        return {"seed": self.seed, "settings": asdict(self.settings)}


def check_arguments(
    seed: Any, checkpoint_seconds: Any, show_progress: Any, rate: Callable[[int], Any], steps: int
) -> None:
    """Raise an error if an argument of `train` is wrong, before anything is compiled."""
    check_seed(seed)
    if not isinstance(checkpoint_seconds, numbers.Real) or isinstance(checkpoint_seconds, bool):
        raise TypeError(f"checkpoint_seconds must be a number; found {checkpoint_seconds!r}.")
    if not float(checkpoint_seconds) >= 0:
        raise ValueError(f"checkpoint_seconds must be at least 0; found {checkpoint_seconds}.")
    if show_progress is not None and not isinstance(show_progress, bool):
        raise TypeError(f"show_progress must be True, False or None; found {show_progress!r}.")
    for step in (0, steps):
        finite_rate(rate, step)


def check_seed(seed: Any) -> None:
    """Raise an error unless `seed` is an integer that `jax.random.key` keeps in full."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer; found {seed!r}.")
    if not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1; found {seed}.")


def finite_rate(rate: Callable[[int], Any], step: int) -> float:
    """Return the learning rate of a step.

    Raises:
      ValueError: it is not finite.
    """
    found = float(rate(step))
    if not math.isfinite(found):
        raise ValueError(f"the learning rate must be finite; found {found} at step {step}.")
    return found
