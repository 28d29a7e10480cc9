"""Errors for what a user passes in: each names the argument, what was found, and the remedy."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.core.guess import Guided
from fwdgrad.core.jax_internals import function_name
from fwdgrad.core.jaxprs import place, uses_references
from fwdgrad.core.tangents import TangentDistribution
from fwdgrad.core.trees import Array, PyTree


@contextmanager
def noting(note: str) -> Iterator[None]:
    """Add a note to any error that is raised inside of the `with`, unless one was added inside.

    For errors of JAX, which cannot know the option of ours that led to them: the note names it and
    the remedy.
    """
    try:
        yield
    except Exception as error:
        if not any(known.startswith("fwdgrad: ") for known in getattr(error, "__notes__", ())):
            error.add_note(f"fwdgrad: {note}")
        raise


def reverse_mode_of_last(space: str) -> AbstractContextManager[None]:
    """Return a context that notes what exact_last=True asks of the loss function."""
    return noting(
        f"space={space}(exact_last=True) asks for reverse mode through what follows the last "
        "layer, the loss function, and JAX has none for something there. Leave exact_last=True "
        "out: then all layers are estimated by forward mode alone."
    )


def derivative_of_kernel(equation: Any) -> AbstractContextManager[None]:
    """Return a context that notes of errors inside of it which kernel has no derivative."""
    return noting(
        f"JAX cannot differentiate the Pallas kernel at {place(equation)}, which a tangent "
        "reaches: kernels that read integers, write to scratch memory, branch, alias their "
        "operands or run on a mesh have no forward mode. Give it a rule by jax.custom_jvp."
    )


def needs_extra(package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return the error of a missing module with the extra that brings it."""
    return ModuleNotFoundError(
        f"{package} needs the module {error.name!r}, which is not installed. Install the extra: "
        "pip install 'fwdgrad[experiments]'.",
        name=error.name,
    )


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


def checked_clip(clip: Any) -> float | None:
    """None or a positive number, as a float; raises TypeError or ValueError if it is no such."""
    if clip is None:
        return None
    return _positive("clip", clip, "None or ", " Use clip=None for no clipping.")


def checked_step(step: Any) -> float:
    """A positive number, as a float; raises TypeError or ValueError if it is no such."""
    return _positive("step", step)


def _positive(name: str, value: Any, alternative: str = "", remedy: str = "") -> float:
    is_array = isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, jax.core.Tracer)
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if is_array:
        is_number = value.shape == () and jnp.issubdtype(value.dtype, jnp.number)
    if not is_number or isinstance(value, (complex, np.complexfloating)):
        raise TypeError(f"{name} must be {alternative}a positive number; found {value!r}.")
    value = float(value)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite; found {value:g}.{remedy}")
    return value


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


def check_unguided(params: PyTree) -> None:
    """Raises TypeError if there is a guess beside the parameters, where none is made use of."""
    if isinstance(params, Guided):
        raise TypeError(
            "params is a Guided, parameters and a guess, which forward_value_and_grad alone makes "
            "use of; pass its params alone."
        )


def check_loss(fun: Callable[..., Any], output: Any, has_aux: bool | None) -> tuple[Array, PyTree]:
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
            remedy = (
                "Return the loss alone: this estimator has no aux."
                if has_aux is None
                else "If it is (loss, aux), say has_aux=True."
            )
            raise TypeError(f"fun{_named(fun)} must return a scalar loss; found a tuple. {remedy}")
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
    raise TypeError(
        "fun calls a function that is defined by jax.custom_vjp and so has no forward-mode "
        f"rule: {function_name(equation)}, called at {place(equation)}. Define it by "
        "jax.custom_jvp instead (JAX derives the reverse mode from that), or leave "
        "enter_custom_vjp=False out, to differentiate what it computes."
    )
