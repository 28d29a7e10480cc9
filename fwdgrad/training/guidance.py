"""Learning a guess of the gradient, a control variate, beside the parameters (`fwdgrad.Guided`)."""

from typing import Any

import optax

from fwdgrad import Guided


def guided_optimizer(
    optimizer: optax.GradientTransformation, rate: float
) -> optax.GradientTransformation:
    """Return the optimizer for the parameters, and steps of `rate` along the guess's own gradient.

    Args:
      optimizer: of the parameters.
      rate: from 0 to 1. Of a guess of the parameters' gradient 1 makes it the last estimate, 1 − β
        a momentum of decay β; of feedback it is the rate of (normalised) least mean squares.
    """
    labels: Any = Guided("params", "guess")
    return optax.partition({"params": optimizer, "guess": optax.sgd(rate)}, labels)
