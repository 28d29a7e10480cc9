"""The paper's learning-rate decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.training import (
    exponential_decay,
)


@pytest.mark.parametrize("rate", [1e-4, 0.0, 0.01])
def test_decay_is_the_papers_formula(rate):
    steps = np.arange(25_000)
    found = jax.jit(jax.vmap(exponential_decay(2e-4, rate)))(jnp.asarray(steps))
    expected = 2e-4 * np.exp(-rate * steps)
    # float32: the exponent i k is rounded to 2⁻²⁴ relative, so the rate to i k 2⁻²⁴.
    np.testing.assert_allclose(
        found, expected, rtol=max(1e-6, 3 * rate * 25_000 * 2**-24), atol=1e-37
    )


@pytest.mark.parametrize(
    ("initial", "rate", "kind", "message"),
    [
        (0.0, 1e-4, ValueError, "initial must be positive and finite; found 0.0"),
        (1e-4, -1e-4, ValueError, "rate must be 0 or positive and finite; found -0.0001"),
        ("1", 0, TypeError, "initial must be a number; found '1'"),
        (1.0, float("inf"), ValueError, "rate must be 0 or positive and finite; found inf"),
    ],
)
def test_a_decay_that_would_be_silently_constant_raises(initial, rate, kind, message):
    with pytest.raises(kind, match=message):
        exponential_decay(initial, rate)
