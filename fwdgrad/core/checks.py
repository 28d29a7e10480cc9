"""Errors for what a user passes in: each names the argument, what was found, and the remedy."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.core.factored import Factored, is_factored
from fwdgrad.core.tangents import TangentDistribution
from fwdgrad.core.trees import Array, PyTree


def check_callable(fun: Any) -> None:
    """Raises TypeError unless `fun` can be called."""
    if not callable(fun):
        raise TypeError(
            f"fun must be a function fun(params, *args, **kwargs) of the loss; found "
            f"{type(fun).__name__}."
        )


def check_key(key: Any) -> None:
    """Raises TypeError or ValueError unless `key` is one typed PRNG key."""
    make_one = "Make one with jax.random.key(seed)"
    if not isinstance(key, jax.Array):
        raise TypeError(
            f"key must be a typed PRNG key, the first argument of the call; found "
            f"{type(key).__name__}. {make_one}."
        )
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"key must be a typed PRNG key; found an array {key.dtype}{list(key.shape)}, as "
            f"jax.random.PRNGKey makes. {make_one}, or wrap what you have with "
            "jax.random.wrap_key_data(key)."
        )
    if key.shape != ():
        raise ValueError(
            f"key must be one key; found an array of keys of shape {key.shape}. Take one of "
            "them, or map over them with jax.vmap."
        )


def check_positive_integer(name: str, value: Any) -> None:
    """Raises TypeError or ValueError unless `value` is an integer of at least 1."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer of at least 1; found {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; found {value}.")


def check_clip(clip: Any) -> None:
    """Raises TypeError or ValueError unless `clip` is None or a positive number."""
    if clip is None:
        return
    if not isinstance(clip, (int, float, np.number)) or isinstance(clip, bool):
        raise TypeError(f"clip must be None or a positive number; found {clip!r}.")
    if not (clip > 0 and math.isfinite(clip)):
        raise ValueError(
            f"clip must be positive and finite; found {clip}. Use clip=None for no clipping."
        )


def check_tangents(tangents: Any) -> None:
    """Raises TypeError unless `tangents` is an object that samples tangents."""
    if isinstance(tangents, type):
        raise TypeError(
            f"tangents must be an object, found the class {tangents.__name__}. "
            f"Make an instance: tangents={tangents.__name__}()."
        )
    if not isinstance(tangents, TangentDistribution):
        raise TypeError(
            "tangents must have a method sample(key, params, splits), such as fwdgrad.Normal(); "
            f"found {tangents!r}."
        )
    try:
        inspect.signature(tangents.sample).bind(None, None, None)
    except TypeError:
        raise TypeError(
            "the sample of tangents must take three arguments, sample(key, params, splits); found "
            f"sample{inspect.signature(tangents.sample)} of {tangents!r}. Add splits, which a "
            "distribution without factors can ignore."
        ) from None


def checked_sample(tangents: Any, tangent: PyTree, params: PyTree) -> list[Array | Factored]:
    """The leaves of the sampled `tangent`; raises ValueError unless they fit those of `params`."""
    found: Any = jax.tree.structure(tangent, is_leaf=is_factored)
    expected: Any = jax.tree.structure(params)
    if found != expected:
        raise ValueError(
            f"tangents={tangents!r} sampled a tangent of structure {found}; its sample(key, "
            f"params, splits) must return the structure of params, {expected}."
        )
    leaves = [
        v if isinstance(v, Factored) else jnp.asarray(v)
        for v in jax.tree.leaves(tangent, is_leaf=is_factored)
    ]
    for (path, x), v in zip(jax.tree_util.tree_leaves_with_path(params), leaves, strict=True):
        name = f"params{jax.tree_util.keystr(path)}"
        if isinstance(v, Factored) and not v.is_consistent:
            raise ValueError(
                f"tangents={tangents!r} sampled factors {v.left.dtype}{list(v.left.shape)} and "
                f"{v.right.dtype}{list(v.right.shape)} for {name}; both must have its dtype "
                f"{x.dtype} and the shape (rank, *axes), each axis of the size in "
                f"{list(x.shape)} or 1."
            )
        if (v.shape, v.dtype) != (x.shape, x.dtype):
            raise ValueError(
                f"tangents={tangents!r} sampled {v.dtype}{list(v.shape)} for {name}; its "
                f"sample(key, params, splits) must return that leaf's shape and dtype, "
                f"{x.dtype}{list(x.shape)}."
            )
    return leaves


def check_drawn(tangents: list[Array | Factored], params: PyTree, num_tangents: int) -> None:
    """Raises ValueError unless tangents that were drawn ahead fit `params` and are as many."""
    remedy = "Draw them by the draw of the same estimator, for these parameters."
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if len(tangents) != len(leaves):
        raise ValueError(
            f"key holds tangents drawn ahead for {len(tangents)} leaves; params has {len(leaves)}. "
            f"{remedy}"
        )
    for (path, x), v in zip(leaves, tangents, strict=True):
        if isinstance(v, Factored):
            lead = v.left.shape[: v.left.ndim - x.ndim - 1]
            found = (*lead, *v.shape)
        else:
            found = v.shape
        if found != (num_tangents, *x.shape) or v.dtype != x.dtype:
            raise ValueError(
                f"key holds tangents drawn ahead for params{jax.tree_util.keystr(path)} that are "
                f"{v.dtype}{list(found)}; with num_tangents={num_tangents} they must be "
                f"{x.dtype}{[num_tangents, *x.shape]}. {remedy} Of a stack of draws, take one."
            )


def check_loss(fun: Callable[..., Any], output: Any, has_aux: bool) -> tuple[Array, PyTree]:
    """Takes `fun`'s output apart into (loss, aux); raises unless the loss is a real scalar."""
    if has_aux:
        if not (isinstance(output, tuple) and len(output) == 2):
            raise TypeError(
                f"fun{_named(fun)} must return a pair (loss, aux) because has_aux=True; found "
                f"{type(output).__name__}. Return the pair, or leave has_aux out."
            )
        loss, aux = output
    else:
        if isinstance(output, tuple):
            raise TypeError(
                f"fun{_named(fun)} must return a scalar loss; found a tuple. If it is "
                "(loss, aux), say has_aux=True."
            )
        loss, aux = output, None
    if not isinstance(loss, (jax.Array, np.ndarray, np.generic, int, float, complex)):
        raise TypeError(f"fun{_named(fun)} must return a scalar loss; found {type(loss).__name__}.")
    shape, dtype = jnp.shape(loss), jnp.result_type(loss)
    if shape != ():
        raise TypeError(
            f"fun{_named(fun)} must return a scalar loss, of shape (); found shape {shape}. "
            "Reduce it, for example with .mean()."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"fun{_named(fun)} must return a real floating-point loss; found dtype {dtype}. "
            "Cast an integer with .astype(jnp.float32); take the real part of a complex number."
        )
    return jnp.asarray(loss), aux


def _named(fun: Callable[..., Any]) -> str:
    name = getattr(fun, "__qualname__", None)  # a partial or a module has none
    return f" ({name})" if name else ""


def raise_for_custom_vjp(equation: Any) -> None:
    """Raises the TypeError that names the `custom_vjp` function of an equation, and its place."""
    debug_info = equation.params["call_jaxpr"].jaxpr.debug_info
    name = getattr(debug_info, "func_src_info", None) or "a function without a name"
    raise TypeError(
        "fun calls a function that is defined by jax.custom_vjp and so has no forward-mode "
        f"rule: {name}. Define it by jax.custom_jvp instead (JAX derives the reverse mode from "
        "that), or leave enter_custom_vjp=False out, to differentiate what it computes."
    )
