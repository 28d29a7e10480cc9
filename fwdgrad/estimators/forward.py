"""The forward gradient, with the call of `jax.value_and_grad` plus a key.

    (key, params, *args, **kwargs) -> (value, grad)

For K tangents v_k with E[v vᵀ] = I,

    d_k = ∇f(θ)·v_k          one forward-mode pass each, exact, no backward pass
    g   = (1/K) Σ_k d_k v_k   E[g] = ∇f(θ)
"""

from collections.abc import Callable
from typing import Any

from fwdgrad.estimators.aggregation import Aggregation, Mean
from fwdgrad.estimators.forward_gradient import ForwardGradient
from fwdgrad.perturbation.space import Space
from fwdgrad.perturbation.weights import Weights
from fwdgrad.tangents.independent import Normal, TangentDistribution


def forward_value_and_grad(
    fun: Callable[..., Any],
    *,
    tangents: TangentDistribution = Normal(),
    num_tangents: int = 1,
    space: Space = Weights(),
    aggregation: Aggregation = Mean(),
    chunk_size: int | None = None,
    clip: float | None = None,
    shrink: bool = False,
    enter_custom_vjp: bool = True,
    has_aux: bool = False,
    has_report: bool = False,
) -> ForwardGradient:
    """Return an estimator that evaluates `fun` and estimates its gradient in forward mode.

    g = (1/K) Σ_k (∇f·v_k) v_k with K = `num_tangents` independent tangents; E[g] = ∇f. For one
    normal tangent E‖g‖² = (d + 2)‖∇f‖², with d parameters: use a smaller learning rate than for
    backprop, or average over many tangents.

    Distribution, number, space and aggregation combine freely. An error names the two that do not
    go together: chunks, and tangents that are sampled or aggregated jointly.

    Args:
      fun: `fun(params, *args, **kwargs)` returns a real scalar loss, or `(loss, aux)`.
      tangents: the distribution of the tangents, any `TangentDistribution`.
      num_tangents: K, the number of tangents.
      space: `Weights()` for tangents of the parameters, or `Activities()` for noise at the
        pre-activations of each example. `Activities` documents its demands on `fun`.
      aggregation: `Mean()`, or `Projection()` onto the span of the tangents, which is biased.
      chunk_size: the number of tangents that go through `fun` together, by default all. Memory
        grows with it, and `fun` itself is evaluated once for each chunk. The estimate does not
        depend on it, except for rounding.
      clip: clip each directional derivative d_k to [−clip, clip]. The step after a rare large d_k
        is then bounded, and the estimate is biased towards zero. With a guess the rest of d_k is
        clipped, so the bias is towards the guess. `Projection` solves for the clipped derivatives,
        and its step is not bounded.
      shrink: scale the mean by 1/(1 + E‖g − ∇f‖²/‖∇f‖²), for normal tangents 1/(1 + (d + 1)/K).
        That factor minimises the mean squared error. It is also the ratio of the best step along g
        to the best step along ∇f, so a learning rate that suits backprop suits the scaled mean. At
        `Activities` the law is that of a single example, with d its units that are on. The mean
        over a minibatch has less variance, so the factor is smaller than necessary there, except
        for jointly sampled tangents; see `Orthogonal` and `BlockSparse` for their law.
      enter_custom_vjp: if true, differentiate the forward computation of a `jax.custom_vjp`
        function that a tangent reaches, also inside calls and loops. JAX has no forward rule for
        such a function, and its reverse rule is not used: a straight-through estimator has the
        derivative of its rounding, zero. If false, raise an error that names the function. (A loss
        that uses mutable arrays, or asks for the value of a parameter, goes to `jax.jvp` as a
        whole, and such a function is JAX's own error either way.)
      has_aux: as in `jax.value_and_grad`.
      has_report: return a third output, a dict of scalars about the estimate: `clip_rate`, the
        fraction of the directional derivatives that were clipped.

    Returns:
      A callable object `(key, params, *args, **kwargs) -> (value, grad)`; with `has_aux` value is
      `(value, aux)`. It is pure, so it composes with `jit`, `vmap`, `scan` and donation. It can be
      pickled if `fun` can be.

      Call it under `jit`. Otherwise each call traces the loss and evaluates it operation by
      operation, even a jitted loss; only loops are compiled, once for the same equations.

      `key` is one typed PRNG key, `params` any pytree. Both go by position, so `fun` may have a
      keyword argument `key`; give it another key. The signature is (key, params, /) and the
      arguments of `fun` after its first, so `jax.jit` finds `static_argnames` given by position.

      `grad` is a pytree like `params`. A floating leaf has its own shape and dtype. A leaf that is
      another number or array of numbers (integers, booleans, Python floats) is zero, so that a step
      p − η g leaves it as it is. Any other leaf is that of `params`. For optax take the floating
      leaves out with `fwdgrad.partition(grad)[0]`. Python floats are not parameters; but `jax.jit`
      turns those among its arguments into arrays, and so into parameters, as for `jax.grad`. Let
      `fun` close over floats that are not to be learned.

      Further methods of the object:

      - `draw(key, params, *args, **kwargs)` returns the tangents alone, a `Drawn`, unless they go
        in chunks (`draws_ahead`). `along(drawn, params, *args, **kwargs)` is the call with them in
        the place of the key. A loop of very short steps is faster if `jax.vmap` draws for all
        steps before it.
      - `guided()` returns the estimator with a guess of the gradient beside the parameters, a
        control variate; see `fwdgrad.Guided`.
      - `init(params, *args, **kwargs)` returns the state that training starts from: `params`, or
        for a guided estimator `Guided(params, guess)` with the guess zero.

      In `jax.shard_map` value and derivatives are those of the device. Its key may be its own,
      `jax.random.fold_in(key, jax.lax.axis_index(axis_name))`, for that many more tangents. The
      gradient by parameters that devices share is the sum over devices, as in `jax.grad`; that of a
      guess is the mean. Parameters that are sharded by hand need keys that differ. A `fun` that
      communicates must return the same value on all devices, by `jax.lax.psum`. With
      `check_vma=False` all is the device's own.

    Raises:
      TypeError: an argument is of a wrong kind; the loss is not a real scalar; a parameter is
        complex; `key` is not a typed key; a tangent reaches a `custom_vjp` function and
        `enter_custom_vjp` is false.
      ValueError: `num_tangents` or `chunk_size` below 1; `clip` not positive; no leaf of `params`
        is a floating-point array; `key` is an array of keys; the sampled tangent does not fit
        `params`.

    >>> import jax, jax.numpy as jnp
    >>> def loss(params, x, y):
    ...     return jnp.mean((x @ params["w"] - y) ** 2)
    >>> value_and_grad = forward_value_and_grad(loss, num_tangents=8)
    >>> params, x, y = {"w": jnp.ones(3)}, jnp.eye(3), jnp.zeros(3)
    >>> value, grad = jax.jit(value_and_grad)(jax.random.key(0), params, x, y)
    >>> float(value), grad["w"].shape
    (1.0, (3,))

    Source: Baydin et al., Gradients without Backpropagation (2022).
    """
    return ForwardGradient(
        fun, tangents, num_tangents, space, aggregation, chunk_size, clip, shrink,
        enter_custom_vjp, has_aux, has_report,
    )  # fmt: skip
