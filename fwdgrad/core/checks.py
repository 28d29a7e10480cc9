"""Errors for what a user passes in: each names the argument, what was found, and the remedy."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.core.blocks import Blocks
from fwdgrad.core.factored import Factored
from fwdgrad.core.forms import is_structured
from fwdgrad.core.jaxprs import uses_references
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


def check_has(name: str, value: Any, attributes: Sequence[str], example: str) -> None:
    """Raises TypeError unless an argument is an object (not its class) with these attributes."""
    if isinstance(value, type):
        raise TypeError(
            f"{name} must be an object, found the class {value.__name__}. Make an instance: "
            f"{name}={value.__name__}()."
        )
    if missing := [attribute for attribute in attributes if not hasattr(value, attribute)]:
        raise TypeError(
            f"{name} must have {' and '.join(missing)}, as {example} has; found {value!r}."
        )


def checked_jaxpr(fun: Callable[..., Any], *args: Any, needed_by: str) -> Any:
    """The ClosedJaxpr of fun; raises TypeError if there is none that can be propagated."""
    remedy = "Write it with jax.numpy.where or jax.lax.cond, or use space=Weights()"
    try:
        jaxpr = jax.make_jaxpr(fun)(*args)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            f"fun cannot be traced, which {needed_by} needs: its Python code asks for the value of "
            f"an array (see the error above). {remedy}."
        ) from error
    if uses_references(jaxpr.jaxpr):
        raise TypeError(
            f"fun works with mutable arrays (jax.new_ref), through which {needed_by} does not "
            f"follow noise. {remedy}."
        )
    return jaxpr


def checked_sample(
    tangents: Any, tangent: PyTree, params: PyTree, number: int | None = None
) -> list[Array | Factored | Blocks]:
    """The leaves of the sampled `tangent`; raises ValueError unless they fit those of `params`.

    Args:
      tangents: the distribution that sampled them.
      tangent, params: pytrees.
      number: how many were drawn together, None for one tangent.
    """
    call = "sample(key, params, splits)" if number is None else "sample_together"
    found: Any = jax.tree.structure(tangent, is_leaf=is_structured)
    expected: Any = jax.tree.structure(params)
    if found != expected:
        raise ValueError(
            f"tangents={tangents!r} sampled a tangent of structure {found}; its {call} must "
            f"return the structure of params, {expected}."
        )
    leaves = [
        v if is_structured(v) else jnp.asarray(v)
        for v in jax.tree.leaves(tangent, is_leaf=is_structured)
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
        shape = (v.number, *v.shape) if isinstance(v, Blocks) else v.shape
        wanted = x.shape if number is None else (number, *x.shape)
        if (shape, v.dtype) != (wanted, x.dtype):
            raise ValueError(
                f"tangents={tangents!r} sampled {v.dtype}{list(shape)} for {name}; its {call} must "
                f"return that leaf's shape and dtype, {x.dtype}{list(wanted)}."
            )
    return leaves


def check_guess(found: PyTree, expected: PyTree) -> None:
    """Raises ValueError unless a guess has the structure, shapes and dtypes of an expected one."""
    remedy = "Make it with the guide of the same estimator, for these parameters."
    structures: list[Any] = [jax.tree.structure(x) for x in (found, expected)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"the guess of params has the structure {structures[0]}; it must be {structures[1]}. "
            f"{remedy}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, x), wanted in pairs:
        if (jnp.shape(x), jnp.result_type(x)) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"guess{jax.tree_util.keystr(path)} is {jnp.result_type(x)}{list(jnp.shape(x))}; "
                f"it must be {wanted.dtype}{list(wanted.shape)}. {remedy}"
            )


def check_drawn(found: Sequence[Any], expected: Sequence[Any], names: Sequence[str]) -> None:
    """Raises ValueError unless tangents that were drawn ahead are such as would be drawn now.

    Args:
      found: one for each name.
      expected: the same, of which only shapes and dtypes matter.
      names: of the leaves or values that they are tangents of.
    """
    remedy = "Draw them by the draw of the same estimator, for these parameters."
    if len(found) != len(expected):
        raise ValueError(
            f"key holds tangents drawn ahead for {len(found)} leaves; params has {len(expected)}. "
            f"{remedy}"
        )
    for name, v, wanted in zip(names, found, expected, strict=True):
        if _shapes(v) != _shapes(wanted):
            raise ValueError(
                f"key holds tangents drawn ahead for {name} that are {_described(v)}; they must be "
                f"{_described(wanted)}. {remedy} Of a stack of draws, take one."
            )


def _shapes(tangent: Any) -> Any:
    leaves, structure = jax.tree.flatten(tangent)
    return structure, [(x.shape, x.dtype) for x in leaves]


def _described(tangent: Any) -> str:
    if isinstance(tangent, Factored):
        lead = tangent.left.shape[: tangent.left.ndim - len(tangent.shape) - 1]
        return f"{tangent.dtype}{[*lead, *tangent.shape]} of rank {tangent.rank}"
    if isinstance(tangent, Blocks):
        return f"{tangent.dtype}{list(tangent.shape)} in {tangent.number} blocks"
    return f"{tangent.dtype}{list(tangent.shape)}"


def number_of_examples(args: PyTree, kwargs: PyTree) -> int:
    """N, the size of the first axis of the arrays in `args`; raises unless it is one number.

    Arrays in `kwargs` that have as many entries are taken for examples in the wrong place.
    """
    leaves = jax.tree_util.tree_leaves_with_path(args)
    sizes = {}
    for path, leaf in leaves:
        at = jax.tree_util.keystr(path)
        if not isinstance(leaf, (jax.Array, np.ndarray)) or leaf.ndim == 0:
            is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            remedy = (
                "give each example a key of its own, jax.random.split(key, N)"
                if is_key
                else "pass what examples share as a keyword argument"
            )
            raise ValueError(
                f"args{at} has no axis of examples: found {type(leaf).__name__} of shape (). With "
                "space=Activities() all positional arguments after params have examples in front; "
                f"{remedy}."
            )
        sizes[at] = jnp.shape(leaf)[0]
    if len(set(sizes.values())) != 1:
        found = ", ".join(f"args{path}: {n}" for path, n in sizes.items()) or "no arrays"
        raise ValueError(
            "the positional arguments after params must have one number of examples in front with "
            f"space=Activities(); found {found}."
        )
    number = next(iter(sizes.values()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(kwargs):
        if number > 1 and jnp.shape(leaf)[:1] == (number,):
            raise ValueError(
                f"the keyword argument{jax.tree_util.keystr(path)} has {number} entries in front, "
                "as many as there are examples; with space=Activities() keyword arguments are the "
                "same for all of them. If they are of the examples, pass them by position; if not, "
                "let fun close over them (functools.partial)."
            )
    return number


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
