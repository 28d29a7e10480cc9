"""Learning a guess of the gradient beside the parameters, by the same loop (`fwdgrad.Guided`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fwdgrad import Guided
from fwdgrad.util.trees import Array, PyTree


class GuidedProblem:
    """A problem whose parameters go with a guess.

    Args:
      problem: the problem, a `TrainableProblem`.
      guide: (params, batch) -> `Guided`, as an estimator's `guide` of the problem's loss makes it.
      batch_size: examples in a minibatch.
    """

    def __init__(self, problem: Any, guide: Callable[[PyTree, PyTree], Guided], batch_size: int):
        self._problem, self._guide = problem, guide
        self.train, self.valid, self.test = problem.train, problem.valid, problem.test
        self._batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), problem.train
        )

    def init(self, key: Array) -> Guided:
        batch = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self._batch)
        return self._guide(self._problem.init(key), batch)

    def scores(self, params: Guided, batch: PyTree) -> dict[str, Array]:
        return self._problem.scores(params.params, batch)

    def loss(self, params: PyTree, batch: PyTree) -> Array:
        """The loss, of guided parameters, or of those within, which estimators give it."""
        return self._problem.loss(params.params if isinstance(params, Guided) else params, batch)


def guided_optimizer(
    optimizer: optax.GradientTransformation, rate: float
) -> optax.GradientTransformation:
    """The optimizer for the parameters, and steps of `rate` along the guess's own gradient.

    Args:
      rate: from 0 to 1. Of a guess of the parameters' gradient 1 makes it the last estimate, 1 − β
        a momentum of decay β; of feedback it is the rate of (normalised) least mean squares.
    """
    labels: Any = Guided("params", "guess")
    return optax.partition({"params": optimizer, "guess": optax.sgd(rate)}, labels)
