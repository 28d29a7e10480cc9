"""Errors for what a user passes in: each names the argument, what was found, and the remedy."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@contextmanager
def error_note(note: str) -> Iterator[None]:
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


def exact_last_note(space: str) -> AbstractContextManager[None]:
    """Return a context that notes what exact_last=True asks of the loss function."""
    return error_note(
        f"space={space}(exact_last=True) asks for reverse mode through what follows the last "
        "layer, the loss function, and JAX has none for something there. Leave exact_last=True "
        "out: then all layers are estimated by forward mode alone."
    )


def missing_extra(package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
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
