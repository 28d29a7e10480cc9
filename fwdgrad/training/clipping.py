"""Clipping the norm of a gradient estimate at a running quantile of the norms before it."""

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fwdgrad.util.trees import Array, PyTree
from fwdgrad.util.validation import check_positive_integer


class ClippingState(NamedTuple):
    """The state of `clip_by_running_quantile`.

    Attributes:
      history: norms before clipping, oldest first, float32 (size,): those of the finite estimates
        0, stride, 2 stride, …; the entries after the first `num_kept` are 0.
      num_kept: the number of norms in the history, int32.
      stride: a power of two, int32.
      num_finite: the number of finite estimates so far, int32.
      num_clipped: the number of estimates that were shortened, int32.
      num_skipped: the number of estimates that were not finite, int32.
      skipped_in_a_row: the number of them since the last finite one, int32.
    """

    history: Array
    num_kept: Array
    stride: Array
    num_finite: Array
    num_clipped: Array
    num_skipped: Array
    skipped_in_a_row: Array


def clip_by_running_quantile(
    quantile: float = 0.5,
    multiple: float = 2.0,
    *,
    size: int = 256,
    warmup: int = 32,
    max_skips: int = 100,
) -> optax.GradientTransformation:
    """Shorten estimates whose norm is above `multiple` times a quantile of all norms before.

        g ← g min(1, c / ‖g‖),    c = multiple · quantile of the norms so far.

    For one tangent ‖g‖ = |∇f·v| ‖v‖. With dense or rank-one signs and on the sphere ‖v‖² is the
    number of parameters, always, so clipping the norm is clipping |∇f·v|, as `clip` of
    `fwdgrad.forward_value_and_grad` does, at a bound that follows the norms. Any other
    estimate can be clipped in the same way.

    Divergence of a training by forward gradients is a run-away: steps are noise of √d times the
    gradient's norm, noise enlarges the parameters, and larger parameters have larger gradients. A
    quantile of the *whole* history follows this growth slowly (the median takes as many steps again
    as there were before), and so stops it; that of a short window follows it at once.

    - **Bias.** The clipped estimate is shorter in the mean. For normal tangents and a fixed bound
      on |∇f·v| its mean is exactly P(|∇f·v| ≤ bound) ∇f, by Stein's lemma; at twice the median
      of |∇f·v| that is 0.82 ∇f.
    - **Warm-up.** No estimate is clipped before `warmup` norms are known.
    - **History.** Norms are kept before clipping, so that the bound can rise. When `size` norms
      are kept, every second one is dropped and from then on only every second norm is kept:
      the memory is fixed, and the history is of the whole training. If the bound is 0, no
      estimate is clipped.
    - **Estimates that are not finite**, or whose squares overflow in float32, become zero and
      are not kept. After `max_skips` of them in a row they pass, so that a run that can get no
      further ends as a diverged one.

    Leaves in half precision are scaled in float32. Leaves that are not floating-point arrays stay
    as they are, and so does an estimate below the bound, to the bit.

    Args:
      quantile: between 0 and 1; interpolated as by `numpy.quantile`.
      multiple: positive.
      size: the most norms to keep, even.
      warmup: the number of norms to wait for, at most `size`.
      max_skips: the most estimates in a row that are set to zero.

    Raises:
      TypeError, ValueError: an argument is of a wrong type, or out of its range.

    >>> clipping = clip_by_running_quantile(quantile=0.5, multiple=1.0, warmup=3)
    >>> state = clipping.init(None)
    >>> for x in (1.0, 2.0, 3.0, 10.0):
    ...     updates, state = clipping.update({"w": jnp.array([0.0, x])}, state)
    >>> updates["w"].tolist(), int(state.num_clipped)  # 2 is the median of 1, 2 and 3
    ([0.0, 2.0], 1)

    Source: Seetharaman et al., AutoClip: Adaptive Gradient Clipping for Source Separation
    Networks (2020).
    """
    _check_between("quantile", quantile, 0, 1)
    _check_between("multiple", multiple, 0, math.inf)
    for name, value in {"size": size, "warmup": warmup, "max_skips": max_skips}.items():
        check_positive_integer(name, value)
    if size % 2:
        raise ValueError(f"size must be even; found {size}.")
    if warmup > size:
        raise ValueError(f"warmup must be at most size={size}; found {warmup}.")

    def init(params: PyTree) -> ClippingState:
        del params
        zero = jnp.zeros((), jnp.int32)
        return ClippingState(
            jnp.zeros(size, jnp.float32), zero, jnp.ones((), jnp.int32), zero, zero, zero, zero
        )

    def update(
        updates: PyTree, state: ClippingState, params: PyTree = None
    ) -> tuple[PyTree, ClippingState]:
        del params
        norm = _norm(updates)
        is_finite = jnp.isfinite(norm)
        bound = multiple * _quantile(state.history, state.num_kept, quantile)
        is_clipped = is_finite & (norm > bound) & (bound > 0) & (state.num_finite >= warmup)
        scale = jnp.where(is_clipped, bound / norm, 1)
        skipped_in_a_row = jnp.where(is_finite, 0, state.skipped_in_a_row + 1)
        is_zero = ~is_finite & (skipped_in_a_row <= max_skips)

        def scaled(x: Any) -> Any:
            if not _is_floating(x):
                return x
            wide = jnp.promote_types(x.dtype, jnp.float32)
            return jnp.where(is_zero, 0, x.astype(wide) * scale.astype(wide)).astype(x.dtype)

        after = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old), _kept(state, norm), state
        )
        return jax.tree.map(scaled, updates), after._replace(
            num_clipped=state.num_clipped + is_clipped,
            num_skipped=state.num_skipped + ~is_finite,
            skipped_in_a_row=skipped_in_a_row,
        )

    return optax.GradientTransformation(init, update)


def clipped_sgd(
    learning_rate: Any, *, momentum: float | None = None, **clipping: Any
) -> optax.GradientTransformation:
    """Return SGD with estimates clipped by `clip_by_running_quantile`.

    Args:
      learning_rate, momentum: as of `optax.sgd`.
      clipping: the arguments of `clip_by_running_quantile`.

    >>> optimizer = clipped_sgd(0.5, quantile=0.9)
    >>> optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))[0].tolist()
    [-0.5, -0.5]
    """
    return optax.chain(clip_by_running_quantile(**clipping), optax.sgd(learning_rate, momentum))


def _norm(updates: PyTree) -> Array:
    """Return the norm of all floating leaves, float32."""
    squares = [
        jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))))
        for x in jax.tree.leaves(updates)
        if _is_floating(x)
    ]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32))).astype(jnp.float32)


def _is_floating(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _quantile(history: Array, num_kept: Array, quantile: float) -> Array:
    """Return a quantile of the first `num_kept` norms, or 0 if there are none."""
    is_kept = jnp.arange(history.shape[0]) < num_kept
    ordered = jnp.sort(jnp.where(is_kept, history, jnp.inf))
    last = jnp.maximum(num_kept - 1, 0)
    position = quantile * last.astype(jnp.float32)
    below = jnp.floor(position).astype(jnp.int32)
    low, high = ordered[below], ordered[jnp.minimum(below + 1, last)]
    return jnp.where(num_kept > 0, low + (position - below) * (high - low), 0)


def _kept(state: ClippingState, norm: Array) -> ClippingState:
    """Return the state after one more finite norm."""
    size = state.history.shape[0]
    is_due = state.num_finite % state.stride == 0
    is_full = is_due & (state.num_kept == size)
    thinned = jnp.concatenate([state.history[::2], jnp.zeros(size // 2, state.history.dtype)])
    history = jnp.where(is_full, thinned, state.history)
    num_kept = jnp.where(is_full, size // 2, state.num_kept)
    return state._replace(
        history=jnp.where(is_due & (jnp.arange(size) == num_kept), norm, history),
        num_kept=num_kept + is_due,
        stride=jnp.where(is_full, 2 * state.stride, state.stride),
        num_finite=state.num_finite + 1,
    )


def _check_between(name: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number; found {value!r}.")
    if not low < float(value) < high:
        wanted = f"between {low} and {high}" if math.isfinite(high) else "positive and finite"
        raise ValueError(f"{name} must be {wanted}; found {value}.")
