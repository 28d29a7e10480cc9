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
from fwdgrad.core.factored import Factored, weighted_sum
from fwdgrad.core.pushforward import Pushforward
from fwdgrad.core.tangents import Normal, TangentDistribution
from fwdgrad.core.trees import (
    Array,
    PyTree,
    accumulation_dtype,
    combine,
    partition,
    require_parameters,
)

ValueAndGrad = Callable[..., tuple[Any, ...]]
Tangents = list[Array | Factored]


class Drawn(NamedTuple):
    """Tangents drawn ahead by `value_and_grad.draw`, to be given to it in the place of the key."""

    tangents: Tangents


def forward_value_and_grad(
    fun: Callable[..., Any],
    *,
    tangents: TangentDistribution = Normal(),
    num_tangents: int = 1,
    chunk_size: int | None = None,
    clip: float | None = None,
    enter_custom_vjp: bool = True,
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
      `jit`, `vmap`, `scan` and donation. Call it under `jit`: by itself it evaluates the loss
      operation by operation, also where the loss is jitted. `key` is one typed PRNG key, `params`
      any pytree. `grad` is a pytree like `params`: each floating leaf has its own shape and dtype,
      and every other leaf (integers, booleans, Python numbers, functions) is that of `params`,
      untouched; take the floating ones out with `fwdgrad.partition(grad)[0]`, for optax.

      Unless it works in chunks, the function has an attribute `draw`, a function of the same
      arguments that only draws the tangents; what it returns can be given in the place of the
      key. A loop of very short steps saves time if `jax.vmap` draws for all of them before it.

    Raises:
      TypeError: an argument is of a wrong kind; the loss is not a real scalar; a parameter
        is complex; `key` is not a typed key; a tangent reaches a `custom_vjp` function and
        `enter_custom_vjp` is false.
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

    def sample_each(pushforward: Pushforward, theta: PyTree, keys: Array) -> Tangents:
        """A tangent for each key: for each leaf of theta an array (K, ...) or its factors."""

        def sample(key: Array) -> Tangents:
            tangent = tangents.sample(key, theta, pushforward.splits)
            return checks.checked_sample(tangents, tangent, theta)

        if len(keys) == 1:
            return jax.tree.map(lambda x: x[None], sample(keys[0]))
        return jax.vmap(sample)(keys)

    def draw(key: Array, params: PyTree, /, *args: Any, **kwargs: Any) -> Drawn:
        checks.check_key(key)
        loss, theta, _ = on_parameters(fun, params, args, kwargs, has_aux)
        keys = _split(key, num_tangents)
        return Drawn(sample_each(Pushforward(loss, theta), theta, keys))

    def value_and_grad(
        key: Array | Drawn, params: PyTree, /, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        if not isinstance(key, Drawn):
            checks.check_key(key)
        loss, theta, rest = on_parameters(fun, params, args, kwargs, has_aux)
        leaves, structure = jax.tree.flatten(theta)
        pushforward = Pushforward(loss, theta)

        def sum_along(drawn: Tangents, count: int) -> _Sum:
            value, derivatives, aux = pushforward(
                drawn, num_tangents=count, enter_custom_vjp=enter_custom_vjp
            )
            num_clipped = jnp.zeros((), jnp.float32)
            if clip is not None:
                num_clipped = jnp.sum(jnp.abs(derivatives) > clip, dtype=jnp.float32)
                derivatives = jnp.clip(derivatives, -clip, clip)
            grad = [
                weighted_sum(v, derivatives / num_tangents, accumulation_dtype(x.dtype))
                for v, x in zip(drawn, leaves, strict=True)
            ]
            return _Sum(value, aux, grad, num_clipped)

        def sum_over(keys: Array) -> _Sum:
            return sum_along(sample_each(pushforward, theta, keys), len(keys))

        if isinstance(key, Drawn):
            checks.check_drawn(key.tangents, theta, num_tangents)
            total = sum_along(key.tangents, num_tangents)
        else:
            total = _sum_over_tangents(sum_over, _split(key, num_tangents), chunk_size)
        grad = [g.astype(x.dtype) for g, x in zip(total.grad, leaves, strict=True)]
        value = (total.value, total.aux) if has_aux else total.value
        report = ({"clip_rate": total.num_clipped / num_tangents},) if has_report else ()
        return value, combine(jax.tree.unflatten(structure, grad), rest), *report

    if chunk_size is None or chunk_size >= num_tangents:
        value_and_grad.draw = draw  # type: ignore[attr-defined]
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
        loss, theta, rest = on_parameters(fun, params, args, kwargs, has_aux)
        (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(theta)
        report: tuple[dict, ...] = ({},) if has_report else ()
        return (value, aux) if has_aux else value, combine(grad, rest), *report

    return value_and_grad


class _Sum(NamedTuple):
    """The loss, and sums over some of the tangents."""

    value: Array
    aux: PyTree
    grad: list[Array]  # of d_k v_k / K, in accumulation dtypes
    num_clipped: Array


def on_parameters(
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


def _split(key: Array, num_tangents: int) -> Array:
    """A key for each tangent; of one, the key itself."""
    return key[None] if num_tangents == 1 else jax.random.split(key, num_tangents)


def _sum_over_tangents(
    sum_over: Callable[[Array], _Sum], keys: Array, chunk_size: int | None
) -> _Sum:
    """The sum over the keys' tangents, `chunk_size` of them at a time.

    The tangents of a chunk go through the loss together, with the primal evaluated once.
    (`jax.linearize` would evaluate it once for all chunks, but only by keeping every
    intermediate value, as reverse mode does.)
    """

    def add_chunk(sums: PyTree, keys: Array) -> tuple[PyTree, None]:
        chunk = sum_over(keys)
        return jax.tree.map(jnp.add, sums, (chunk.grad, chunk.num_clipped)), None

    # The remainder, or else the first whole chunk, comes first and gives value and aux; then
    # all that is left are whole chunks, for one scan.
    number = len(keys)
    chunk = min(chunk_size or number, number)
    head = number % chunk or chunk
    total = sum_over(keys[:head])
    if head == number:
        return total
    sums = (total.grad, total.num_clipped)
    (grad, num_clipped), _ = jax.lax.scan(add_chunk, sums, keys[head:].reshape(-1, chunk))
    return total._replace(grad=grad, num_clipped=num_clipped)
