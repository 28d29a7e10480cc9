"""Comparisons of sizes that may be symbolic, as where `jax.export` leaves the minibatch open.

Which of two forms is cheaper may depend on such a size. Then neither is known to be, and the
general form is taken, which is right whatever the size. (Equality needs no help: a symbolic size
equals no other.)
"""

from typing import Any

from jax.extend import core as jex_core


def surely_at_most(a: Any, b: Any) -> bool:
    """Whether a ≤ b for every value of a symbolic size.

    >>> surely_at_most(2, 3), surely_at_most(3, 2)
    (True, False)
    >>> import jax
    >>> (n,) = jax.export.symbolic_shape("n")
    >>> surely_at_most(n, 3 * n), surely_at_most(n, 3)
    (True, False)
    """
    try:
        return bool(a <= b)
    except jex_core.InconclusiveDimensionOperation:
        return False


def surely_less(a: Any, b: Any) -> bool:
    """Whether a < b for every value of a symbolic size."""
    return surely_at_most(a + 1, b)
