"""A transformation that puts a gradient estimate in the place of the updates."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fwdgrad import forward_value_and_grad
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype, is_differentiable
from fwdgrad.util.validation import check_key, error_note

_CALL = "tx.update(None, state, params, value_fn=loss, x=x, y=y)"


class ForwardGradientState(NamedTuple):
    """The state of `forward_gradient`.

    Attributes:
      key: the PRNG key that the next step splits.
      value: the loss of the last step at the parameters before it, inf before the first.
    """

    key: Array
    value: Array


def forward_gradient(
    key: Array | int,
    *,
    estimator: Callable[..., Any] = forward_value_and_grad,
    mask: PyTree | Callable[[PyTree], PyTree] = True,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that estimates the gradient of `value_fn`, first in a chain.

    g_t = estimator(value_fn, **options)(k_t, params, ...) with (key_{t+1}, k_t) the two keys that
    `jax.random.split(key_t)` returns.

    The updates that go in must be None, or have no leaves. So a wrapper that averages, tests or
    masks the updates of its inner transformation cannot go around the estimate by mistake: it goes
    around the optimizer that follows.

    Args:
      key: a typed PRNG key or a seed. The state begins with it; members of an ensemble need keys
        that differ, `optax.tree.set(state, key=keys)`.
      estimator: `estimator(value_fn, **options)` returns a function (key, params, *args, **kwargs)
        -> (value, gradient): `fwdgrad.spsa_value_and_grad`, `backprop_value_and_grad` and so on.
        If it is guided, params are the `fwdgrad.Guided` of its method `init`.
      mask: as in `optax.masked`: a pytree of booleans with the structure of params or a prefix of
        it, or a function that returns one. A leaf that is False is a constant of the loss: no
        tangent of it is drawn, and its update is zero. Not for a guided estimator.
      options: of the estimator, such as `tangents`, `num_tangents`, `space`; not `has_aux` and
        `has_report`.

    Returns:
      A transformation. Its `update` needs params, and takes as extra arguments

      - `value_fn`: the loss, (params, *args, **kwargs) -> real scalar;
      - the further arguments of `value_fn` by name. Those that may go by position go by position,
        so the examples of `space=Activities()` are such arguments, and what examples share are
        keyword-only ones, after a `*`. Names that `value_fn` does not have are for others in the
        chain; if it has `**kwargs`, it is given all.

    Raises:
      TypeError, ValueError: a wrong argument or option; at a call of `update` wrong updates, params
        or value_fn, or what the estimator raises.

    >>> import fwdgrad
    >>> def loss(params, x, y):
    ...     return jnp.mean((x @ params["w"] - y) ** 2)
    >>> tx = optax.chain(
    ...     forward_gradient(0, tangents=fwdgrad.Rademacher(), num_tangents=8), optax.adam(0.1)
    ... )
    >>> params, x, y = {"w": jnp.ones(3)}, jnp.eye(3), jnp.zeros(3)
    >>> state = tx.init(params)
    >>> updates, state = tx.update(None, state, params, value_fn=loss, x=x, y=y)
    >>> params = optax.apply_updates(params, updates)
    >>> print(optax.tree.get(state, "value"))
    1.0
    """
    if not isinstance(key, (int, np.integer)):
        check_key(key)
    _check_options(estimator, options)

    def init(params: PyTree) -> ForwardGradientState:
        dtypes = [x.dtype for x in jax.tree.leaves(params) if is_differentiable(x)]
        # A copy: the state may be donated, and the key is the caller's.
        start = jax.random.key(key) if isinstance(key, (int, np.integer)) else jnp.copy(key)
        return ForwardGradientState(start, jnp.full((), jnp.inf, accumulation_dtype(*dtypes)))

    def update(
        updates: PyTree,
        state: ForwardGradientState,
        params: PyTree | None = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ForwardGradientState]:
        _check_updates(updates)
        if params is None:
            raise ValueError(f"params must be given to update: {_CALL}; found None.")
        if not callable(value_fn):
            raise TypeError(
                f"value_fn must be the loss, a function of params, given to update: {_CALL}; found "
                f"{type(value_fn).__name__}."
            )
        args, kwargs = _arguments(value_fn, params, extra_args)
        is_free = _checked_mask(mask(params) if callable(mask) else mask)
        with error_note(
            "mask must have the structure of params or a prefix of it. With a guided estimator, "
            "whose params are a Guided, leave mask out."
        ):
            free = jax.tree.map(lambda m, p: p if m else None, is_free, params)
        _check_floating(free)

        @functools.wraps(value_fn)
        def fun(free: PyTree, *args: Any, **kwargs: Any) -> Any:
            whole = jax.tree.map(lambda m, x, p: x if m else p, is_free, free, params)
            return value_fn(whole, *args, **kwargs)

        key, key_of_step = jax.random.split(state.key)
        with error_note("fun is value_fn, an argument of the update of forward_gradient."):
            value, grad = estimator(fun, **options)(key_of_step, free, *args, **kwargs)
        updates = jax.tree.map(
            lambda m, g, p: g if m else jax.tree.map(jnp.zeros_like, p), is_free, grad, params
        )
        return updates, ForwardGradientState(key, jnp.asarray(value, state.value.dtype))

    return optax.GradientTransformationExtraArgs(init, update)


def _check_options(estimator: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise TypeError or ValueError unless the estimator takes the options."""
    if unwanted := {"has_aux", "has_report"} & {*options}:
        raise TypeError(
            f"forward_gradient has no option {min(unwanted)}: its state keeps the loss alone. To "
            "have it call the estimator yourself, and give its gradient to the optimizer's update."
        )
    if not callable(estimator):
        raise TypeError(
            "estimator must be a function of the loss, such as fwdgrad.spsa_value_and_grad; found "
            f"{type(estimator).__name__}. Its options are those of forward_gradient."
        )
    estimator(lambda params: 0.0, **options)


def _check_updates(updates: PyTree) -> None:
    """Raise ValueError if there are updates, which the estimate would replace."""
    if number := len(jax.tree.leaves(updates)):
        raise ValueError(
            f"updates must be None, since forward_gradient makes the gradient; found {number} "
            f"arrays. Make it the first of a chain, and call {_CALL}. MultiSteps, apply_if_finite, "
            "masked and other wrappers go around the optimizer alone: "
            "optax.chain(forward_gradient(key), optax.apply_if_finite(optimizer, 5))."
        )


def _arguments(
    value_fn: Callable[..., Any], params: PyTree, extra_args: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of `value_fn` after its first, by position where that is allowed."""
    try:
        signature = inspect.signature(value_fn)
    except ValueError:  # a function of C may have none
        return (), extra_args
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    takes_all = inspect.Parameter.VAR_KEYWORD in kinds.values()
    known = {name: x for name, x in extra_args.items() if takes_all or name in [*kinds][1:]}
    try:
        bound = signature.bind(params, **known)
    except TypeError as error:
        given = ", ".join(extra_args) or "none"
        raise TypeError(
            f"value_fn must be given its arguments after params by name, as x and y in {_CALL}: "
            f"{error}; found {given}."
        ) from error
    return bound.args[1:], bound.kwargs


def _checked_mask(mask: PyTree) -> PyTree:
    """Return `mask`; raise TypeError unless its leaves are booleans."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
        if not isinstance(leaf, (bool, np.bool_)):
            raise TypeError(
                f"mask{jax.tree_util.keystr(path)} must be True or False, known before tracing; "
                f"found {type(leaf).__name__}."
            )
    return mask


def _check_floating(params: PyTree) -> None:
    """Raise TypeError if a leaf has no gradient."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not is_differentiable(leaf):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} must be an array of a real floating dtype; "
                f"found {getattr(leaf, 'dtype', type(leaf).__name__)}. An optimizer may change it, "
                "by weight decay for example. Take it out with fwdgrad.partition, and combine in "
                "value_fn; or leave it out with mask=, and put optax.masked around the optimizer."
            )
