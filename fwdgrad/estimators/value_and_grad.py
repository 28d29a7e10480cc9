"""The callable object that every estimator is, with the call of `jax.value_and_grad` plus a key."""

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar


@dataclasses.dataclass(frozen=True, eq=False)
class ValueAndGrad(ABC):
    """An estimator of the gradient of `fun`: (key, params, *args, **kwargs) -> (value, gradient).

    An object has the name and the documentation of `fun`, and its signature with a key in front:
    `jax.jit` reads off the signature which argument is that of `static_argnames`, so that it may be
    passed by position as well, as with `jax.value_and_grad`. It can be pickled if `fun` can be.

    Attributes:
      fun: the function.
      draws_ahead: whether the object has a method `draw` of the same arguments, whose result may
        be given in the place of the key.

    >>> class Zero(ValueAndGrad):
    ...     def __call__(self, key, params, /, *args, **kwargs):
    ...         return self.fun(params, *args, **kwargs), 0 * params
    >>> def loss(params, x, train=False): ...
    >>> print(inspect.signature(Zero(loss)))
    (key, params, /, x, train=False)
    """

    fun: Callable[..., Any]
    draws_ahead: ClassVar[bool] = False

    def __post_init__(self) -> None:
        fun, kind = self.fun, type(self)
        name = getattr(fun, "__name__", type(fun).__name__)
        doc = f"Return (value, gradient by the first argument after the key) of {name}."
        told = {
            "__name__": name,
            "__qualname__": getattr(fun, "__qualname__", name),
            "__module__": getattr(fun, "__module__", kind.__module__),
            "__doc__": f"{doc}\n\n{inspect.getdoc(fun) or ''}".rstrip(),
        }
        if (signature := _signature(fun)) is not None:
            told["__signature__"] = signature
        self.__dict__.update(told)

    @abstractmethod
    def __call__(self, key: Any, params: Any, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return (value, gradient), as the subclass describes."""

    def __reduce__(self) -> Any:
        # Made anew from its options: a signature may hold annotations that cannot be pickled.
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _make, (type(self), options)


def _make(kind: type[ValueAndGrad], options: dict[str, Any]) -> ValueAndGrad:
    return kind(**options)


def _signature(fun: Callable[..., Any]) -> inspect.Signature | None:
    """(key, params, /, whatever comes after the first argument of fun), if that is known."""
    try:
        given = list(inspect.signature(fun).parameters.values())
    except Exception:  # of a function of C, or of a property that the object has of its own
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
