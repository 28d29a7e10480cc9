"""Reverse mode in the call of the other estimators, so that one can stand for the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from fwdgrad.estimators.value_and_grad import ValueAndGrad
from fwdgrad.perturbation.loss import Loss
from fwdgrad.propagation.jaxprs import evaluated_by_equations
from fwdgrad.util.trees import Array, FlatAux, PyTree


@dataclass(frozen=True, eq=False)
class ReverseGradient(ValueAndGrad):
    """The gradient by reverse mode; see `fwdgrad.backprop_value_and_grad` for the options."""

    checkpoint: bool
    has_aux: bool
    has_report: bool

    def __call__(self, key: Array, params: PyTree, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        del key
        loss = Loss(self.fun, params, args, kwargs, self.has_aux)
        flat = FlatAux(loss.at)
        at = jax.checkpoint(flat) if self.checkpoint else flat

        def value_and_rest(theta: list[Array]) -> tuple[Array, list[Array]]:
            value, *rest = at(theta)
            return value, rest

        (value, leaves_of_aux), grad = evaluated_by_equations(
            jax.value_and_grad(value_and_rest, has_aux=True), loss.theta
        )
        aux = flat.restore_aux(leaves_of_aux)
        report: tuple[dict, ...] = ({},) if self.has_report else ()
        return (value, aux) if self.has_aux else value, loss.gradient(grad), *report


def backprop_value_and_grad(
    fun: Callable[..., Any],
    *,
    checkpoint: bool = False,
    has_aux: bool = False,
    has_report: bool = False,
) -> ValueAndGrad:
    """Return a function that evaluates `fun` and its exact gradient by reverse mode.

    g = ∇f(θ), with the call and the outputs of `forward_value_and_grad`, so that one can
    stand for the other: the key is ignored (it may be None), and the report is empty.

    Args:
      fun: `fun(params, *args, **kwargs)` returns a real scalar loss, or `(loss, aux)`.
      checkpoint: whether to keep nothing of the forward pass but its inputs, and make it again for
        the backward pass (`jax.checkpoint` of the whole; of parts, put it into `fun`).
      has_aux: as in `jax.value_and_grad`.
      has_report: if true, a third output follows, an empty dict.

    Returns:
      A function `(key, params, *args, **kwargs) -> (value, grad)`; `grad` as described in
      `forward_value_and_grad`.

    Raises:
      TypeError: the loss is not a real scalar, or a parameter is complex.
      ValueError: no leaf of `params` is a floating-point array.

    >>> import jax.numpy as jnp
    >>> value_and_grad = backprop_value_and_grad(lambda params: jnp.sum(params["w"] ** 2))
    >>> value, grad = value_and_grad(None, {"w": jnp.ones(3), "steps": 7})
    >>> float(value), grad["w"].tolist(), grad["steps"]
    (3.0, [2.0, 2.0, 2.0], 0)
    """
    return ReverseGradient(fun, checkpoint, has_aux, has_report)
