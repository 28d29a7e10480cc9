"""Errors for what a user passes in: each names the argument, what was found, and the remedy."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

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
            f"tangents must have a method sample(key, params), such as fwdgrad.Normal(); "
            f"found {tangents!r}."
        )


def check_sample(tangents: Any, tangent: PyTree, params: PyTree) -> None:
    """Raises ValueError unless the sampled `tangent` fits `params` leaf by leaf."""
    found: Any = jax.tree.structure(tangent)
    expected: Any = jax.tree.structure(params)
    if found != expected:
        raise ValueError(
            f"tangents={tangents!r} sampled a tangent of structure {found}; its sample(key, "
            f"params) must return the structure of params, {expected}."
        )
    for (path, x), v in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(tangent), strict=True
    ):
        if (jnp.shape(v), jnp.result_type(v)) != (x.shape, x.dtype):
            raise ValueError(
                f"tangents={tangents!r} sampled {jnp.result_type(v)}{list(jnp.shape(v))} for "
                f"params{jax.tree_util.keystr(path)}; its sample(key, params) must return that "
                f"leaf's shape and dtype, {x.dtype}{list(x.shape)}."
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


def check_no_custom_vjp(loss: Callable[[PyTree], Any], theta: PyTree) -> None:
    """Raises TypeError if a tangent of `theta` reaches a function defined by `jax.custom_vjp`.

    JAX's own message does not say which function of a large model is meant, and under `jit` it
    comes only when the program is lowered. So this traces the pushforward, in whose jaxpr such
    a function has become the primitive `custom_lin`, and then the loss itself, whose jaxpr has
    the names and places. If the loss cannot be traced because it needs the values of its
    parameters, nothing is raised.
    """

    def pushforward(theta: PyTree, tangent: PyTree) -> Any:
        return jax.jvp(lambda t: loss(t)[0], (theta,), (tangent,))

    try:
        reached = "custom_lin" in set(_primitives(jax.make_jaxpr(pushforward)(theta, theta).jaxpr))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        return
    if reached:
        raise_for_custom_vjp(loss, theta)


def raise_for_custom_vjp(loss: Callable[[PyTree], Any], theta: PyTree) -> None:
    """Raises the TypeError that names the `custom_vjp` functions that `loss` calls."""
    jaxpr = jax.make_jaxpr(lambda t: loss(t)[0])(theta).jaxpr
    if places := sorted(set(_custom_vjp_places(jaxpr))):
        raise TypeError(
            "fun calls a function that is defined by jax.custom_vjp and so has no forward-mode "
            f"rule: {'; '.join(places)}. Define it by jax.custom_jvp instead (JAX derives the "
            "reverse mode from that), or use a version of it without custom derivatives."
        )


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(inner, jex_core.ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, jex_core.Jaxpr):
                yield inner


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in _inner_jaxprs(equation):
            yield from _primitives(inner)


def _custom_vjp_places(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("custom_vjp_call"):
            called = equation.params.get("call_jaxpr") or equation.params.get("fun_jaxpr")
            debug_info = getattr(getattr(called, "jaxpr", called), "debug_info", None)
            yield getattr(debug_info, "func_src_info", None) or "a function without a name"
        else:
            for inner in _inner_jaxprs(equation):
                yield from _custom_vjp_places(inner)
