"""A user's loss, as the estimators see it: a checked function of the differentiable leaves."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.core import checks
from fwdgrad.core.trees import (
    Array,
    Frame,
    PyTree,
    is_differentiable,
    require_parameters,
    take_out,
    zero_if_number,
)


class Loss:
    """`fun` at given parameters and arguments; `has_aux` is None where no aux can be had.

    Attributes:
      theta: the differentiable leaves of the parameters, a list of arrays.
      names: of these leaves, 'params' and the path.
      frame: the parameters without them.
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
        leaves, self.frame = take_out(params, is_differentiable)
        self.theta: list[Array] = [jnp.asarray(x) for x in leaves]
        self.names = [f"params{name}" for name in self.frame.names]
        self.args, self.kwargs = args, kwargs
        self._fun, self._has_aux = fun, has_aux

    def replace(self, theta: list[Array]) -> "Loss":
        """The same at other values of the leaves."""
        other = copy.copy(self)
        other.theta = theta
        return other

    def at(self, theta: Sequence[Array]) -> tuple[Array, PyTree]:
        """(loss, aux) of other values of the leaves."""
        return self.of(theta, self.args)

    def of(self, theta: Sequence[Array], args: tuple[Any, ...]) -> tuple[Array, PyTree]:
        """(loss, aux) of other values of the leaves and of the positional arguments."""
        output = self._fun(self.frame.filled(theta), *args, **self.kwargs)
        return checks.check_loss(self._fun, output, self._has_aux)

    def gradient(self, of_leaves: Sequence[Array]) -> PyTree:
        """Return the gradient, a pytree like the parameters, from those by the leaves.

        Other leaves are zero if they are numbers, so that a step leaves them as they are.
        """
        return self.frame.filled(of_leaves, map(zero_if_number, self.frame.others))


class Flat:
    """A function that returns (loss, aux), as one that returns arrays alone.

    What else aux may hold is put aside when it is called, and put back by `restored`.
    """

    def __init__(self, loss: Callable[..., tuple[Array, PyTree]]):
        self._loss = loss
        self._frame: Frame | None = None

    def __call__(self, *args: Any) -> list[Array]:
        value, aux = self._loss(*args)
        arrays, self._frame = take_out(aux, lambda x: isinstance(x, jax.Array))
        return [value, *arrays]

    def restored(self, leaves: Sequence[Any]) -> PyTree:
        """Aux of these arrays."""
        assert self._frame is not None, "called before the function"
        return self._frame.filled(leaves)
