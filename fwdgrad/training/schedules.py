"""Learning-rate schedules, as optax takes them: step -> rate."""

import math
import numbers
from typing import Any

import optax


def exponential_decay(initial: float, rate: float) -> optax.Schedule:
    """Return the paper's decay η_i = η₀ e^(−ik), i the number of the step, k = `rate`.

    Args:
      initial: η₀, positive.
      rate: k, not negative; 0 is a constant rate. The paper's is 1e-4.

    Raises:
      TypeError, ValueError: an argument is no number, or out of its range.

    >>> round(float(exponential_decay(2e-4, rate=1e-4)(10_000) / 2e-4 * math.e), 5)
    1.0

    Source: Baydin et al., Gradients without Backpropagation (2022), section 5.
    """
    _check("initial", initial, "positive", lambda x: x > 0)
    _check("rate", rate, "0 or positive", lambda x: x >= 0)
    if rate == 0:
        return optax.constant_schedule(initial)
    # e^(−ik) as (1/e)^(i/(1/k)). The obvious (e^(−k))^i would raise a base near one, whose
    # rounding error in float32 grows with i, to 6e-4 at step 20,000. Not in the configs as optax's
    # own, since the arguments are part of the identities of recorded runs.
    return optax.exponential_decay(initial, transition_steps=1 / rate, decay_rate=1 / math.e)


def _check(name: str, value: Any, wanted: str, accepts: Any) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number; found {value!r}.")
    if not (math.isfinite(value) and accepts(value)):
        raise ValueError(f"{name} must be {wanted} and finite; found {value}.")
