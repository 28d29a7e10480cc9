"""Trainings that leave no record: for measurements within them, and of their steps."""

from typing import Any

from omegaconf import DictConfig

from experiments.common.from_config import estimator, optimizer, problem
from fwdgrad.training import make_stepper, minibatches


class Training:
    """A training in steps, not recorded.

    Args:
      cfg: a `train` config.
      init: key -> the first parameters; None: the config's.
      transformation: the optimizer; None: the config's.
      programs: `Programs` to share with trainings of other seeds; None: they are compiled.

    Attributes:
      state: a `fwdgrad.training.stepping.State`.
      compile_seconds: the time of compiling.
    """

    def __init__(
        self, cfg: DictConfig, init: Any = None, transformation: Any = None, programs: Any = None
    ):
        made = problem(cfg)
        self._step, self._capacity = 0, cfg.steps_per_call
        sizes = {"batch_size": cfg.batch_size, "steps_per_call": cfg.steps_per_call}
        self._minibatches = minibatches(made.train, seed=cfg.seed, **sizes)
        self._stepper = make_stepper(
            made.loss, init or made.init, self._minibatches.block(0, 1)[0], estimator(cfg),
            transformation or optimizer(cfg), seed=cfg.seed, programs=programs, **sizes,
            augment=getattr(made, "augment", None), compiler_options=cfg.compiler_options,
        )  # fmt: skip
        self.state = self._stepper.state
        self.compile_seconds = self._stepper.compile_seconds

    def advance(self, num_steps: int) -> Any:
        """Make `num_steps` steps and return the last loss."""
        for first in range(0, num_steps, self._capacity):
            count = min(self._capacity, num_steps - first)
            examples, indices = self._minibatches.block(self._step, count)
            self.state = self._stepper.advance(self.state, examples, indices, count)
            self._step += count
        return self.state.loss
