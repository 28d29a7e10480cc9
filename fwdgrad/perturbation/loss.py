"""A user's loss, as the estimators see it: a checked function of the differentiable leaves."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.perturbation.control_variates import Guided
from fwdgrad.propagation.pushforward import Trace, trace
from fwdgrad.util.trees import (
    Array,
    PyTree,
    extract_leaves,
    is_differentiable,
    require_parameters,
    zero_if_number,
)


class Loss:
    """`fun` at given parameters and arguments; `has_aux` is None where no aux can be had.

    Args:
      enter_custom_vjp: as in `forward_value_and_grad`.

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
        enter_custom_vjp: bool = True,
    ):
        check_unguided(params)
        require_parameters(params)
        leaves, self.frame = extract_leaves(params, is_differentiable)
        self.theta: list[Array] = [jnp.asarray(x) for x in leaves]
        self.names = [f"params{name}" for name in self.frame.names]
        self.args, self.kwargs = args, kwargs
        self._fun, self._has_aux, self._enter_custom_vjp = fun, has_aux, enter_custom_vjp

    def replace(self, theta: list[Array]) -> "Loss":
        """Return the same loss at other values of the leaves."""
        other = copy.copy(self)
        other.theta = theta
        return other

    def at(self, theta: Sequence[Array]) -> tuple[Array, PyTree]:
        """(loss, aux) of other values of the leaves."""
        return self.of(theta, self.args)

    def of(self, theta: Sequence[Array], args: tuple[Any, ...]) -> tuple[Array, PyTree]:
        """(loss, aux) of other values of the leaves and of the positional arguments."""
        output = self._fun(self.frame.rebuild(theta), *args, **self.kwargs)
        return check_loss(self._fun, output, self._has_aux)

    def trace(self, fun: Callable[..., Any], leaves: Sequence[Array], *others: Any) -> Trace:
        """Trace `fun(leaves, *others)`, which evaluates the loss and returns (loss, aux)."""
        traced = trace(fun, leaves, *others)
        return traced.entered(len(leaves)) if self._enter_custom_vjp else traced

    def gradient(self, of_leaves: Sequence[Array]) -> PyTree:
        """Return the gradient, a pytree like the parameters, from those by the leaves.

        Other leaves are zero if they are numbers, so that a step leaves them as they are.
        """
        return self.frame.rebuild(of_leaves, map(zero_if_number, self.frame.others))


def check_unguided(params: PyTree) -> None:
    """Raise TypeError if there is a guess beside the parameters, where none is used."""
    if isinstance(params, Guided):
        raise TypeError(
            "params is a Guided, parameters and a guess, which only the estimator that "
            "forward_value_and_grad(...).guided() returns takes; pass its params alone."
        )


def check_loss(fun: Callable[..., Any], output: Any, has_aux: bool | None) -> tuple[Array, PyTree]:
    """Return (loss, aux) of the output of `fun`; raise unless the loss is a real scalar."""
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
