"""Adam with the second moment of the gradient, without the variance of its estimate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fwdgrad.util.trees import Array, PyTree


class DenoisedAdamState(NamedTuple):
    """The state of `scale_by_denoised_adam`.

    Attributes:
      count: the number of updates.
      mean, square, product: the running means of g_t, g_t² and g_t g_{t−1}.
      previous: g_{t−1}.
    """

    count: Array  # type: ignore[assignment]  # the name in the states of optax
    mean: PyTree
    square: PyTree
    product: PyTree
    previous: PyTree


def scale_by_denoised_adam(
    b1: float = 0.9, b2: float = 0.999, floor: float = 0.1, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Return Adam's scaling with products of successive estimates in the place of squares.

    Adam divides by the root of a running mean of g², whose expectation is ∇² plus the variance of
    the estimate. The noise of two steps is independent, so E[g_t g_{t−1}] = ∇_t ∇_{t−1} (but for
    the change of ∇_t by the step along g_{t−1}):

        p_t = b2 p_{t−1} + (1 − b2) g_t g_{t−1}        v_t = b2 v_{t−1} + (1 − b2) g_t²
        update = m̂_t / (√max(p̂_t, floor² v̂_t) + eps)

    with m_t the running mean of g_t, the hats Adam's correction for the start, and the square of
    the first estimate in the place of its product with one before. For a constant gradient without
    noise it is Adam. Under noise of standard deviation σ the running mean of products has the
    standard deviation σ² √((1 − b2)/2), 0.022 σ² by default: it cannot tell an entry with a much
    smaller ∇² from zero, and the denominator is then `floor` times Adam's. Without a floor such
    entries make huge steps.

    Args:
      b1, b2, eps: as of `optax.scale_by_adam`.
      floor: the denominator is at least this fraction of Adam's, between 0 and 1. With 1 it is
        Adam's or larger.

    Raises:
      ValueError: `floor` is not between 0 and 1.

    >>> tx = scale_by_denoised_adam()
    >>> update, state = tx.update(jnp.array([2.0]), tx.init(jnp.array([0.0])))
    >>> [round(float(x), 3) for x in update]
    [1.0]

    Source: Kingma and Ba, Adam (2015), for the scaling. Tang et al., DP-AdamBC (2024), subtract the
    known variance of noise that was added.
    """
    is_known = not isinstance(floor, jax.core.Tracer)  # under optax.inject_hyperparams it is not
    if is_known and not 0 <= floor <= 1:
        raise ValueError(f"floor must be a number from 0 to 1; found {floor}.")

    def init(params: PyTree) -> DenoisedAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        real = jax.tree.map(lambda x: jnp.zeros_like(x.real), params)
        return DenoisedAdamState(jnp.zeros((), jnp.int32), zeros, real, real, zeros)

    def update(
        updates: PyTree, state: DenoisedAdamState, params: Any = None
    ) -> tuple[PyTree, DenoisedAdamState]:
        is_first = state.count == 0
        count = optax.safe_increment(state.count)

        def running(rate: float, old: PyTree, new: PyTree) -> PyTree:
            return jax.tree.map(lambda a, b: rate * a + (1 - rate) * b, old, new)

        previous = jax.tree.map(lambda g, old: jnp.where(is_first, g, old), updates, state.previous)
        mean = running(b1, state.mean, updates)
        square = running(b2, state.square, jax.tree.map(_product, updates, updates))
        product = running(b2, state.product, jax.tree.map(_product, updates, previous))

        def scaled(m: Array, v: Array, p: Array) -> Array:
            m, v, p = m / (1 - b1**count), v / (1 - b2**count), p / (1 - b2**count)
            return (m / (jnp.sqrt(jnp.maximum(p, floor**2 * v)) + eps)).astype(m.dtype)

        state = DenoisedAdamState(count, mean, square, product, updates)
        return jax.tree.map(scaled, mean, square, product), state

    return optax.GradientTransformation(init, update)


def _product(x: Array, y: Array) -> Array:
    """Return x y of real numbers, and the real part of x y* of complex ones."""
    return (x * y.conj()).real


def denoised_adam(
    learning_rate: Any,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    floor: float = 0.1,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Return Adam whose second moment leaves out the variance of the estimate.

    Args:
      learning_rate: a number or a schedule.
      b1, b2, floor, eps: as of `scale_by_denoised_adam`.

    Raises:
      ValueError: `floor` is not between 0 and 1.

    >>> tx = denoised_adam(0.5)
    >>> update, state = tx.update(jnp.array([2.0]), tx.init(jnp.array([0.0])))
    >>> [round(float(x), 3) for x in update]
    [-0.5]
    """
    scale = scale_by_denoised_adam(b1, b2, floor, eps)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))
