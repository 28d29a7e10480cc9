"""Gradient estimators with the call of `jax.value_and_grad` plus a key.

    (key, params, *args, **kwargs) -> (value, grad)

`forward_value_and_grad` is the forward gradient: for K tangents v_k with E[v vᵀ] = I,

    d_k = ∇f(θ)·v_k          one forward-mode pass each, exact, no backward pass
    g   = (1/K) Σ_k d_k v_k   E[g] = ∇f(θ)

`backprop_value_and_grad` is reverse mode in the same call, so that whatever trains or
measures need not know which of the two it was given.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.core import checks
from fwdgrad.core.tangents import Normal, TangentDistribution
from fwdgrad.core.trees import (
    Array,
    PyTree,
    accumulation_dtype,
    combine,
    partition,
    require_parameters,
    split,
)

ValueAndGrad = Callable[..., tuple[Any, ...]]


def forward_value_and_grad(
    fun: Callable[..., Any],
    *,
    tangents: TangentDistribution = Normal(),
    num_tangents: int = 1,
    chunk_size: int | None = None,
    clip: float | None = None,
    has_aux: bool = False,
    has_report: bool = False,
) -> ValueAndGrad:
    """Makes a function that evaluates `fun` and estimates its gradient in forward mode.

    g = (1/K) Σ_k (∇f·v_k) v_k with K = `num_tangents` independent tangents; E[g] = ∇f.
    For one normal tangent E‖g‖² = (d + 2)‖∇f‖², d the number of parameters, so expect to
    need a smaller learning rate than backprop could use, or many tangents to average over.

    Args:
      fun: `fun(params, *args, **kwargs)` returns a real scalar loss, or `(loss, aux)`.
      tangents: the distribution of the tangents, any `TangentDistribution`.
      num_tangents: K, the number of tangents that are averaged.
      chunk_size: how many tangents go through `fun` together. Memory grows with it, and
        the primal is evaluated once for each chunk; by default all K go together and it is
        evaluated once. The estimate does not depend on it, but for rounding.
      clip: if given, each directional derivative d_k is clipped to [−clip, clip]. This
        bounds the step after a rare large d_k, and biases the estimate towards zero.
      has_aux: as in `jax.value_and_grad`.
      has_report: if true, a third output follows, a dict of scalars about the estimate:
        `clip_rate`, the fraction of the K directional derivatives that were clipped.

    Returns:
      A function `(key, params, *args, **kwargs) -> (value, grad)`, with `(value, aux)` in
      the place of value if `has_aux`. Key and params go by position, so that `fun` may have a
      keyword argument `key` of its own. It is pure, so it composes with `jit`, `vmap`, `scan`
      and donation. `key` is one typed PRNG key, `params` any pytree. `grad` is a pytree
      like `params`: each floating leaf has its own shape and dtype, and every other leaf
      (integers, booleans, Python numbers, functions) is that of `params`, untouched; take
      the floating ones out with `fwdgrad.partition(grad)[0]`, for optax.

    Raises:
      TypeError: an argument is of a wrong kind; the loss is not a real scalar; a parameter
        is complex; `key` is not a typed key; `fun` calls a `custom_vjp` function.
      ValueError: `num_tangents` or `chunk_size` below 1; `clip` not positive; no leaf of
        `params` is a floating-point array; `key` is an array of keys; the sampled tangent
        does not fit `params`.

    >>> def loss(params, x, y):
    ...     return jnp.mean((x @ params["w"] - y) ** 2)
    >>> value_and_grad = forward_value_and_grad(loss, num_tangents=8)
    >>> params, x, y = {"w": jnp.ones(3)}, jnp.eye(3), jnp.zeros(3)
    >>> value, grad = jax.jit(value_and_grad)(jax.random.key(0), params, x, y)
    >>> float(value), grad["w"].shape
    (1.0, (3,))

    Source: Baydin et al., Gradients without Backpropagation (2022).
    """
    checks.check_callable(fun)
    checks.check_tangents(tangents)
    checks.check_positive_integer("num_tangents", num_tangents)
    if chunk_size is not None:
        checks.check_positive_integer("chunk_size", chunk_size)
    checks.check_clip(clip)

    def value_and_grad(key: Array, params: PyTree, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        checks.check_key(key)
        loss, theta, rest = _on_parameters(fun, params, args, kwargs, has_aux)
        # Where JAX is tracing, it objects to a custom_vjp only after this function has returned.
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((key, theta))):
            checks.check_no_custom_vjp(loss, theta)

        def forward_pass(key: Array) -> _Estimate:
            tangent = tangents.sample(key, theta)
            checks.check_sample(tangents, tangent, theta)
            value, derivative, aux = _pushforward(loss, theta, tangent)
            clipped = jnp.zeros((), jnp.float32)
            if clip is not None:
                clipped = (jnp.abs(derivative) > clip).astype(jnp.float32)
                derivative = jnp.clip(derivative, -clip, clip)
            return _Estimate(value, aux, _scale(tangent, derivative), clipped)

        estimate = _mean_over_tangents(forward_pass, key, num_tangents, chunk_size)
        grad = jax.tree.map(lambda g, x: g.astype(x.dtype), estimate.grad, theta)
        value = (estimate.value, estimate.aux) if has_aux else estimate.value
        report = ({"clip_rate": estimate.clip_rate},) if has_report else ()
        return value, combine(grad, rest), *report

    return value_and_grad


def backprop_value_and_grad(
    fun: Callable[..., Any], *, has_aux: bool = False, has_report: bool = False
) -> ValueAndGrad:
    """Makes a function that evaluates `fun` and its exact gradient by reverse mode.

    g = ∇f(θ), with the call and the outputs of `forward_value_and_grad`, so that one can
    stand for the other: the key is ignored (it may be None), and the report is empty.

    Args:
      fun: `fun(params, *args, **kwargs)` returns a real scalar loss, or `(loss, aux)`.
      has_aux: as in `jax.value_and_grad`.
      has_report: if true, a third output follows, an empty dict.

    Returns:
      A function `(key, params, *args, **kwargs) -> (value, grad)`; `grad` as described in
      `forward_value_and_grad`.

    Raises:
      TypeError: the loss is not a real scalar, or a parameter is complex.
      ValueError: no leaf of `params` is a floating-point array.

    >>> value_and_grad = backprop_value_and_grad(lambda params: jnp.sum(params["w"] ** 2))
    >>> value, grad = value_and_grad(None, {"w": jnp.ones(3), "steps": 7})
    >>> float(value), grad["w"].tolist(), grad["steps"]
    (3.0, [2.0, 2.0, 2.0], 7)
    """
    checks.check_callable(fun)

    def value_and_grad(key: Array, params: PyTree, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        del key
        loss, theta, rest = _on_parameters(fun, params, args, kwargs, has_aux)
        (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(theta)
        report: tuple[dict, ...] = ({},) if has_report else ()
        return (value, aux) if has_aux else value, combine(grad, rest), *report

    return value_and_grad


class _Estimate(NamedTuple):
    """The loss, and a mean (or, on the way to it, a sum) over tangents."""

    value: Array
    aux: PyTree
    grad: PyTree  # in accumulation dtypes
    clip_rate: Array


def _on_parameters(
    fun: Callable[..., Any],
    params: PyTree,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    has_aux: bool,
) -> tuple[Callable[[PyTree], tuple[Array, PyTree]], PyTree, PyTree]:
    """`fun` as a checked function theta -> (loss, aux) of the differentiable leaves theta."""
    require_parameters(params)
    theta, rest = partition(params)

    def loss(theta: PyTree) -> tuple[Array, PyTree]:
        return checks.check_loss(fun, fun(combine(theta, rest), *args, **kwargs), has_aux)

    return loss, theta, rest


def _pushforward(
    loss: Callable[[PyTree], tuple[Array, PyTree]], theta: PyTree, tangent: PyTree
) -> tuple[Array, Array, PyTree]:
    """(loss, ∇loss·tangent, aux) in one forward-mode pass."""
    try:
        return jax.jvp(loss, (theta,), (tangent,), has_aux=True)
    except TypeError as error:
        if "custom_vjp" in str(error):
            checks.raise_for_custom_vjp(loss, theta)
        raise


def _scale(tangent: PyTree, derivative: Array) -> PyTree:
    """The tangent times the derivative, in the accumulation dtype of each leaf."""

    def scale(v: Array) -> Array:
        dtype = accumulation_dtype(v.dtype)
        return derivative.astype(dtype) * v.astype(dtype)

    return jax.tree.map(scale, tangent)


def _mean_over_tangents(
    forward_pass: Callable[[Array], _Estimate],
    key: Array,
    num_tangents: int,
    chunk_size: int | None,
) -> _Estimate:
    """The mean of `forward_pass` over `num_tangents` keys, `chunk_size` of them at a time.

    Within a chunk the passes are mapped by `vmap`: only the tangents carry the mapped axis,
    so the primal is evaluated once for the chunk. (`jax.linearize` would evaluate it once for
    all chunks, but only by keeping every intermediate value, as reverse mode does.)
    """
    if num_tangents == 1:
        return forward_pass(key)

    def chunk_sum(keys: Array) -> _Estimate:
        not_arrays: list[PyTree] = []  # of aux, which may hold anything, around the vmap

        def mapped_pass(key: Array) -> _Estimate:
            estimate = forward_pass(key)
            arrays, rest = split(estimate.aux, lambda x: isinstance(x, jax.Array))
            not_arrays.append(rest)
            return estimate._replace(aux=arrays)

        axes: Any = _Estimate(value=None, aux=None, grad=0, clip_rate=0)  # type: ignore[arg-type]
        each = jax.vmap(mapped_pass, out_axes=axes)(keys)
        grad, clip_rate = jax.tree.map(lambda x: x.sum(0), (each.grad, each.clip_rate))
        aux = combine(each.aux, not_arrays[-1])
        return _Estimate(each.value, aux, grad, clip_rate)

    def add_chunk(total: PyTree, keys: Array) -> tuple[PyTree, None]:
        chunk = chunk_sum(keys)
        return jax.tree.map(jnp.add, total, (chunk.grad, chunk.clip_rate)), None

    # The remainder, or else the first whole chunk, comes first and gives value and aux; then
    # all that is left are whole chunks, for one scan.
    keys = jax.random.split(key, num_tangents)
    chunk = min(chunk_size or num_tangents, num_tangents)
    head = num_tangents % chunk or chunk
    total = chunk_sum(keys[:head])
    sums = (total.grad, total.clip_rate)
    if head < num_tangents:
        sums, _ = jax.lax.scan(add_chunk, sums, keys[head:].reshape(-1, chunk))
    grad, clip_rate = jax.tree.map(lambda x: x / num_tangents, sums)
    return total._replace(grad=grad, clip_rate=clip_rate)
