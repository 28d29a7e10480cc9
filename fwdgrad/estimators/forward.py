"""The forward gradient, with the call of `jax.value_and_grad` plus a key.

    (key, params, *args, **kwargs) -> (value, grad)

`forward_value_and_grad` is the forward gradient: for K tangents v_k with E[v vᵀ] = I,

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
    """Makes a function that evaluates `fun` and estimates its gradient in forward mode.

    g = (1/K) Σ_k (∇f·v_k) v_k with K = `num_tangents` independent tangents; E[g] = ∇f.
    For one normal tangent E‖g‖² = (d + 2)‖∇f‖², d the number of parameters, so expect to
    need a smaller learning rate than backprop could use, or many tangents to average over.

    Distribution, number, space and aggregation are chosen for themselves and combine freely; what
    does not go together (chunks of tangents that are drawn or weighed together) says so.

    Args:
      fun: `fun(params, *args, **kwargs)` returns a real scalar loss, or `(loss, aux)`.
      tangents: the distribution of the tangents, any `TangentDistribution`.
      num_tangents: K, the number of tangents that are averaged.
      space: where the tangents live: `Weights()`, the parameters, or `Activities()`, what the
        layers compute for each example; see there what that asks of `fun`.
      aggregation: `Mean()`, or `Projection()` onto the span of the tangents, which is biased.
      chunk_size: how many tangents go through `fun` together. Memory grows with it, and
        the primal is evaluated once for each chunk; by default all K go together and it is
        evaluated once. The estimate does not depend on it, but for rounding.
      clip: if given, each directional derivative d_k is clipped to [−clip, clip]. This
        bounds the step after a rare large d_k, and biases the estimate towards zero; with a guess,
        towards the guess: what is clipped is what d_k has besides that. `Projection` solves for
        the clipped derivatives, so its step is not bounded.
      shrink: whether to scale the mean by 1/(1 + E‖g − ∇f‖²/‖∇f‖²), for normal tangents 1/(1 +
        (d + 1)/K): the factor with which it is nearest to ∇f, and the one by which the best step
        along it is shorter than along ∇f. So a learning rate that suits backprop suits it too. At
        `Activities` the law is that of each example by itself, with d of its units that are on; the
        mean over a minibatch has less noise, so there it is smaller than need be, but of tangents
        that are drawn together, of whose law see `Orthogonal` and `BlockSparse`.
      enter_custom_vjp: what to do where a tangent reaches a function defined by
        `jax.custom_vjp`, which has no forward-mode rule, in the loss or in what it calls or
        loops over. By default what it computes is differentiated, and its reverse rule is not
        used: a straight-through estimator has the derivative of its rounding, zero. If false,
        it is an error that names the function. (A loss that works with mutable arrays, or that
        asks for the value of a parameter, goes to `jax.jvp` as a whole, and there such a function
        is JAX's own error either way.)
      has_aux: as in `jax.value_and_grad`.
      has_report: if true, a third output follows, a dict of scalars about the estimate:
        `clip_rate`, the fraction of the K directional derivatives that were clipped.

    Returns:
      A function `(key, params, *args, **kwargs) -> (value, grad)`, with `(value, aux)` in
      the place of value if `has_aux`. Key and params go by position, so that `fun` may have a
      keyword argument `key` of its own; give it another one. It is pure, so it composes with
      `jit`, `vmap`, `scan` and donation. Call it under `jit`: by itself it traces the loss in each
      call and evaluates it operation by operation, also where the loss is jitted (loops by programs
      that are compiled once for the same equations). `key` is one typed PRNG key, `params`
      any pytree. `grad` is a pytree like `params`: each floating leaf has its own shape and dtype,
      and every other leaf is zero if it is a number or an array of numbers (integers, booleans,
      Python floats), so that a step p − η g leaves it at its value, or else that of `params`. For
      optax take the floating leaves out with `fwdgrad.partition(grad)[0]`. Python floats are no
      parameters; but `jax.jit` makes arrays of those among its arguments, and so parameters, as
      for `jax.grad`: let `fun` close over such as are not to be learned.

      Its signature is (key, params, /) and what comes after the first argument in that of `fun`, so
      that `jax.jit` finds `static_argnames` given by position.

      The function is an object, `ForwardGradient`, that can be pickled if `fun` can be. Unless it
      works in chunks, its method `draw` of the same arguments only draws the tangents; what that
      returns can be given in the place of the key. A loop of very short steps saves time if
      `jax.vmap` draws for all of them before it.

      In `jax.shard_map` value and derivatives are those of the device, whose key may be its own
      (`jax.random.fold_in(key, jax.lax.axis_index(axis_name))`, for as many more tangents). The
      gradient by parameters that devices share is the sum of theirs, as in `jax.grad`, and that of
      a guess their mean. Parameters that are sharded by hand need keys that differ, and a `fun`
      that communicates must return what is the same on all devices, by `jax.lax.psum`. With
      `check_vma=False` all is the device's own.

      In the place of params it takes `Guided(params, guess)`, a guess of the gradient beside them,
      and returns their gradients as the same pair; see `fwdgrad.Guided`. Its method `guide`, of
      params and the arguments after them, makes the pair with a first guess, zero.

    Raises:
      TypeError: an argument is of a wrong kind; the loss is not a real scalar; a parameter
        is complex; `key` is not a typed key; a tangent reaches a `custom_vjp` function and
        `enter_custom_vjp` is false.
      ValueError: `num_tangents` or `chunk_size` below 1; `clip` not positive; no leaf of
        `params` is a floating-point array; `key` is an array of keys; the sampled tangent
        does not fit `params`.

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
