"""Names and signatures of the functions that estimators return, for `jax.jit` and for a reader."""

import inspect
from collections.abc import Callable
from typing import Any


def like(fun: Callable[..., Any], value_and_grad: Callable[..., Any]) -> Callable[..., Any]:
    """Give `value_and_grad` name, documentation and signature of `fun`, and a key in front.

    `jax.jit` reads off the signature which argument is that of `static_argnames`, so that it may
    be passed by position as well, as with `jax.value_and_grad`.

    >>> def loss(params, x, train=False): ...
    >>> print(inspect.signature(like(loss, lambda key, params, /, *args, **kwargs: None)))
    (key, params, /, x, train=False)
    """
    value_and_grad.__name__ = getattr(fun, "__name__", type(fun).__name__)
    value_and_grad.__qualname__ = getattr(fun, "__qualname__", value_and_grad.__name__)
    value_and_grad.__module__ = getattr(fun, "__module__", value_and_grad.__module__)
    value_and_grad.__doc__ = (
        "Return (value, gradient by the first argument after the key) of "
        f"{value_and_grad.__name__}.\n\n{inspect.getdoc(fun) or ''}".rstrip()
    )
    signature = _signature(fun)
    if signature is not None:
        value_and_grad.__signature__ = signature  # type: ignore[attr-defined]
    return value_and_grad


def _signature(fun: Callable[..., Any]) -> inspect.Signature | None:
    """(key, params, /, whatever comes after the first argument of fun), if that is known."""
    try:
        given = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):  # a function of C, for one
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if given and given[0].kind in positional:
        given = given[1:]
    taken = {parameter.name for parameter in given}
    first = []
    for name in ("key", "params"):
        while name in taken:  # the function has an argument of that name
            name += "_"
        taken.add(name)
        first.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY))
    return inspect.Signature([*first, *given])
