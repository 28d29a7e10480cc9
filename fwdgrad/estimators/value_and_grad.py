"""The callable object that every estimator is, with the call of `jax.value_and_grad` plus a key."""

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from fwdgrad.tangents.independent import TangentDistribution
from fwdgrad.tangents.sampling import check_tangents
from fwdgrad.util.validation import check_callable, check_positive_integer

R = TypeVar("R")


class method_of_fun(Generic[R]):
    """Decorate a method (self, a, b, /, *args, **kwargs) that passes *args, **kwargs to `fun`.

    The signature of the method then has the arguments of `fun` by name, in which `jax.jit` finds
    `static_argnames`.
    """

    def __init__(self, function: Callable[..., R]):
        self._function = function

    def __get__(self, instance: "ValueAndGrad | None", owner: Any = None) -> Callable[..., R]:
        if instance is None:
            return self._function
        # The same object each time, as `jax.jit` looks it up. By function, not by name: a subclass
        # may override the method and call this one by `super()`.
        methods = instance.__dict__.setdefault("_methods", {})
        if self._function not in methods:
            methods[self._function] = _BoundMethod(self._function, instance)
        return methods[self._function]


class _BoundMethod:
    """A method of an estimator, with its documentation and a signature of its own."""

    def __init__(self, function: Callable[..., Any], instance: "ValueAndGrad"):
        self._function, self._instance = function, instance
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self.__qualname__, self.__module__ = function.__qualname__, function.__module__
        own = inspect.signature(function).parameters.values()
        names = [x.name for x in own if x.kind is inspect.Parameter.POSITIONAL_ONLY]
        if (signature := _signature(names[1:], instance.fun)) is not None:
            self.__signature__ = signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self._instance, *args, **kwargs)

    def __reduce__(self) -> Any:
        return getattr, (self._instance, self.__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class ValueAndGrad(ABC):
    """An estimator of the gradient of `fun`: (key, params, *args, **kwargs) -> (value, gradient).

    An object has the name and the documentation of `fun`, and its signature with a key in front:
    `jax.jit` reads off the signature which argument is that of `static_argnames`, so that it may be
    passed by position as well, as with `jax.value_and_grad`. It can be pickled if `fun` can be.

    Attributes:
      fun: the function.
      draws_ahead: True if tangents can be drawn before they are used. Then the object has two more
        methods: `draw(key, params, *args, **kwargs)` returns the tangents of a key, and
        `along(drawn, params, *args, **kwargs)` the estimate by them.

    >>> class Zero(ValueAndGrad):
    ...     def __call__(self, key, params, /, *args, **kwargs):
    ...         return self.fun(params, *args, **kwargs), 0 * params
    >>> def loss(params, x, train=False): ...
    >>> print(inspect.signature(Zero(loss)))
    (key, params, /, x, train=False)
    >>> print(inspect.signature(Zero(loss).init))
    (params, /, x, train=False)
    """

    fun: Callable[..., Any]
    draws_ahead: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_callable(self.fun)
        fun, kind = self.fun, type(self)
        name = getattr(fun, "__name__", type(fun).__name__)
        doc = f"Return (value, gradient by the first argument after the key) of {name}."
        told = {
            "__name__": name,
            "__qualname__": getattr(fun, "__qualname__", name),
            "__module__": getattr(fun, "__module__", kind.__module__),
            "__doc__": f"{doc}\n\n{inspect.getdoc(fun) or ''}".rstrip(),
        }
        if (signature := _signature(["key", "params"], fun)) is not None:
            told["__signature__"] = signature
        self.__dict__.update(told)

    @method_of_fun
    def init(self, params: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Return the state that training starts from, to be given to the call as its params.

        For most estimators the state is the parameters themselves.
        """
        del args, kwargs
        return params

    def params_of(self, state: Any, /) -> Any:
        """Return the parameters of `fun` in a state of `init`, or in its gradient."""
        return state

    @abstractmethod
    def __call__(self, key: Any, params: Any, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return (value, gradient), as the subclass describes."""

    @property
    def _options(self) -> dict[str, Any]:
        """The fields of the object by name, `fun` among them: the arguments that make its like."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __reduce__(self) -> Any:
        # Made anew from its options: a signature may hold annotations that cannot be pickled.
        return _make, (type(self), self._options)


@dataclasses.dataclass(frozen=True, eq=False)
class TangentEstimator(ValueAndGrad):
    """An estimator that samples K tangents; the options of all of these come first."""

    tangents: TangentDistribution
    num_tangents: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tangents(self.tangents)
        check_positive_integer("num_tangents", self.num_tangents)


def _make(kind: type[ValueAndGrad], options: dict[str, Any]) -> ValueAndGrad:
    return kind(**options)


def _signature(names: Sequence[str], fun: Callable[..., Any]) -> inspect.Signature | None:
    """Return (*names, /, the arguments of fun after its first), if these are known."""
    try:
        given = list(inspect.signature(fun).parameters.values())
    except Exception:  # of a function of C, or of a property that the object has of its own
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if given and given[0].kind in positional:
        given = given[1:]
    taken = {parameter.name for parameter in given}
    first = []
    for name in names:
        while name in taken:  # the function has an argument of that name
            name += "_"
        taken.add(name)
        first.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY))
    return inspect.Signature([*first, *given])
