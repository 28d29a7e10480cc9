"""Validation of arguments: an error names the argument, the value found, and the remedy."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@contextmanager
def error_note(note: str) -> Iterator[None]:
    """Add a note to an error that is raised inside of the `with` block.

    An error of JAX cannot name the option of fwdgrad that led to it. The note names the option and
    the remedy. If blocks are nested, the innermost one adds its note.
    """
    try:
        yield
    except Exception as error:
        if not any(known.startswith("fwdgrad: ") for known in getattr(error, "__notes__", ())):
            error.add_note(f"fwdgrad: {note}")
        raise


def exact_last_note(space: str) -> AbstractContextManager[None]:
    """Return a context that explains errors of the reverse mode that exact_last=True needs."""
    return error_note(
        f"space={space}(exact_last=True) needs reverse mode through the loss function that follows "
        "the last layer, and JAX has no reverse mode for an operation there. Leave exact_last=True "
        "out: then forward mode alone estimates all layers."
    )


def missing_extra(package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return the error of a missing module, with the extra that installs it as the remedy."""
    return ModuleNotFoundError(
        f"{package} needs the module {error.name!r}, which is not installed. Install the extra: "
        "pip install 'fwdgrad[experiments]'.",
        name=error.name,
    )


def check_callable(fun: Any) -> None:
    """Raise TypeError unless `fun` is callable."""
    if not callable(fun):
        raise TypeError(
            f"fun must be a function, the loss fun(params, *args, **kwargs) -> loss; found "
            f"{type(fun).__name__}."
        )


def check_key(key: Any) -> None:
    """Raise TypeError or ValueError unless `key` is a single typed PRNG key."""
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
    """Raise TypeError or ValueError unless `value` is an integer of at least 1."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer of at least 1; found {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; found {value}.")


def checked_clip(clip: Any) -> float | None:
    """Return `clip` as a float, or None; raise TypeError or ValueError unless it is positive."""
    if clip is None:
        return None
    return checked_positive("clip", clip, "None or ", " Use clip=None for no clipping.")


def checked_step(step: Any) -> float:
    """Return `step` as a float; raise TypeError or ValueError unless it is positive."""
    return checked_positive("step", step)


def checked_positive(name: str, value: Any, alternative: str = "", remedy: str = "") -> float:
    """Return a positive finite number, or a concrete scalar array of one, as a float.

    Raises:
      TypeError, ValueError: it is not such a number.
    """
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
    """Raise TypeError unless `value` is an object (not its class) with these attributes.

    Args:
      name: the argument.
      value: its value.
      attributes: the names of the attributes it must have.
      example: an object that has them, for the message.
    """
    if isinstance(value, type):
        raise TypeError(
            f"{name} must be an object, found the class {value.__name__}. Make an instance: "
            f"{name}={value.__name__}()."
        )
    if missing := [attribute for attribute in attributes if not hasattr(value, attribute)]:
        raise TypeError(
            f"{name} must have {' and '.join(missing)}, as {example} has; found {value!r}."
        )
