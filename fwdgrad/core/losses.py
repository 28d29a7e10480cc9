"""A user's loss, as the estimators see it: a checked function of the differentiable leaves."""

import copy
from collections.abc import Callable
from typing import Any

import jax

from fwdgrad.core import checks
from fwdgrad.core.trees import Array, PyTree, combine, partition, require_parameters, split


class Loss:
    """`fun` at given parameters and arguments; `has_aux` is None where no aux can be had.

    Attributes:
      theta: the differentiable leaves of the parameters, a pytree.
      args: the positional arguments after the parameters.
      kwargs: the keyword arguments.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        params: PyTree,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        has_aux: bool | None,
    ):
        checks.check_unguided(params)
        require_parameters(params)
        self.theta, self.rest = partition(params)
        self.args, self.kwargs = args, kwargs
        self._fun, self._has_aux = fun, has_aux

    def replace(self, theta: PyTree) -> "Loss":
        """The same at other values of the leaves."""
        other = copy.copy(self)
        other.theta = theta
        return other

    def at(self, theta: PyTree) -> tuple[Array, PyTree]:
        """(loss, aux) of other values of the leaves."""
        return self.of(theta, self.args)

    def of(self, theta: PyTree, args: tuple[Any, ...]) -> tuple[Array, PyTree]:
        """(loss, aux) of other values of the leaves and of the positional arguments."""
        output = self._fun(combine(theta, self.rest), *args, **self.kwargs)
        return checks.check_loss(self._fun, output, self._has_aux)


class Flat:
    """A function that returns (loss, aux), as one that returns arrays alone.

    What else aux may hold is put aside when it is called, and put back by `restored`.
    """

    def __init__(self, loss: Callable[..., tuple[Array, PyTree]]):
        self._loss = loss
        self._rest: PyTree = None
        self._structure: Any = None

    def __call__(self, *args: Any) -> list[Array]:
        value, aux = self._loss(*args)
        arrays, self._rest = split(aux, lambda x: isinstance(x, jax.Array))
        leaves, self._structure = jax.tree.flatten(arrays)
        return [value, *leaves]

    def restored(self, leaves: list[Any]) -> PyTree:
        """Aux of these arrays."""
        return combine(jax.tree.unflatten(self._structure, leaves), self._rest)
