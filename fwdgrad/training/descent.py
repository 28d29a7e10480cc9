"""Gradient descent on a function of one vector, with the path it takes."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.training.stepping import draw_ahead
from fwdgrad.util.trees import Array
from fwdgrad.util.validation import check_positive_integer

_CALLS = 20  # the clock is read after each


class Descent(NamedTuple):
    """A path: row i is after i updates, row 0 the start.

    Attributes:
      seconds: float (rows,), of descent alone, without compilation; between two readings of the
        clock they are spread evenly.
      points: float (rows, n).
      values: float (rows,), of the function at the points.
    """

    seconds: np.ndarray
    points: np.ndarray
    values: np.ndarray


def make_descend(
    function: Callable[[Array], Array],
    start: Array,
    estimator: Callable[..., Callable[..., tuple[Any, ...]]],
    *,
    learning_rate: float,
    num_steps: int,
) -> Callable[[int], Descent]:
    """Return a function, seed of the tangents -> descent by x ← x − η g, g the estimated gradient.

    Args:
      function: (n,) -> a scalar.
      start: float (n,).
      estimator: function -> ((key, x) -> (value, g)).
      learning_rate: η, constant.
      num_steps: the number of updates.

    Raises:
      TypeError, ValueError: `num_steps` is not a positive integer.

    >>> import fwdgrad
    >>> descend = make_descend(
    ...     lambda x: jnp.sum(x**2), jnp.ones(2), fwdgrad.backprop_value_and_grad,
    ...     learning_rate=0.25, num_steps=2,
    ... )
    >>> descend(0).points.tolist()
    [[1.0, 1.0], [0.5, 0.5], [0.25, 0.25]]
    """
    check_positive_integer("num_steps", num_steps)
    value_and_grad = estimator(function)
    steps_per_call = -(-num_steps // _CALLS)
    start = jnp.asarray(start)

    @jax.jit
    def advance(x: Array, key: Array, first: Array) -> tuple[Array, Array]:
        """Return the last point of a call's steps, and all points of them."""
        steps = first + jnp.arange(steps_per_call)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, steps)

        estimate, sources = draw_ahead(value_and_grad, keys, x)

        def step(x: Array, source: Any) -> tuple[Array, Array]:
            _, grad = estimate(source, x)
            x = x - learning_rate * grad
            return x, x

        return jax.lax.scan(step, x, sources)

    def descend(seed: int) -> Descent:
        key = jax.random.key(seed)
        jax.block_until_ready(advance(start, key, jnp.int32(0)))  # compiles, the first time
        x, points, seconds = start, [np.asarray(start)[None]], [np.zeros(1)]
        for done in range(0, num_steps, steps_per_call):
            before = time.perf_counter()
            x, passed = jax.block_until_ready(advance(x, key, jnp.int32(done)))
            took = time.perf_counter() - before
            points.append(np.asarray(passed))
            share = np.arange(1, steps_per_call + 1) / steps_per_call
            seconds.append(seconds[-1][-1] + took * share)
        path = np.concatenate(points)[: num_steps + 1]
        values = np.asarray(jax.vmap(function)(jnp.asarray(path)))
        return Descent(np.concatenate(seconds)[: num_steps + 1], path, values)

    return descend
