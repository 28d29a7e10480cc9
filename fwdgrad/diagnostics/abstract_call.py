"""Calls of a loss whose arrays may be abstract: shapes of results, and the cost of a step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.util import backend
from fwdgrad.util.costs import Cost, compile_and_count
from fwdgrad.util.trees import Array, PyTree, extract_leaves, is_differentiable


class Call:
    """Parameters and positional arguments of a loss, split into arrays and all other leaves.

    Attributes:
      params: the differentiable leaves of the parameters, arrays or `jax.ShapeDtypeStruct`.
      arrays: the arrays among the arguments, or their `jax.ShapeDtypeStruct`.
      is_concrete: True if no leaf is a `jax.ShapeDtypeStruct`.
    """

    def __init__(self, params: PyTree, args: tuple[Any, ...]):
        self.params, self._params_around = extract_leaves(params, _is_parameter)
        self.arrays, self._args_around = extract_leaves(args, _is_array)
        both = (*self.params, *self.arrays, *self._params_around.others)
        self.is_concrete = not any(map(_is_abstract, both))

    def rebuild(self, params: Sequence[Any], arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Return (params, *args) with other arrays in the places of their own."""
        return (self._params_around.rebuild(params), *self._args_around.rebuild(arrays))

    def eval_shape(self, function: Callable[..., Any]) -> Any:
        """Return `jax.eval_shape` of function(params, *args); concrete leaves keep their values."""
        leaves = [*self.params, *self.arrays]
        abstract = [x for x in leaves if _is_abstract(x)]

        def of_abstract(*values: Any) -> Any:
            given = iter(values)
            filled = [next(given) if _is_abstract(x) else x for x in leaves]
            n = len(self.params)
            return function(*self.rebuild(filled[:n], filled[n:]))

        return jax.eval_shape(of_abstract, *abstract)


def _is_abstract(x: Any) -> bool:
    """Return True for a `jax.ShapeDtypeStruct`."""
    return isinstance(x, jax.ShapeDtypeStruct)


def _is_array(x: Any) -> bool:
    """Return True for an array or its `jax.ShapeDtypeStruct`."""
    return _is_abstract(x) or isinstance(x, (jax.Array, np.ndarray))


def _is_parameter(x: Any) -> bool:
    """Return True for a differentiable array or its `jax.ShapeDtypeStruct`."""
    return is_differentiable(x) or (_is_abstract(x) and jnp.issubdtype(x.dtype, jnp.floating))


def compile_step(
    value_and_grad: Callable[..., Any],
    call: Call,
    key: Array,
    compiler_options: Mapping[str, Any] | None = None,
) -> Any:
    """Return an estimate and the update p − η g, compiled as one step for keys like `key`.

    The step is (p, key, η, the call's arrays) -> the next p, in the memory of p.
    """

    def step(theta: list[Array], key: Array, rate: Any, arrays: list[Array]) -> list[Array]:
        _, grad = value_and_grad(key, *call.rebuild(theta, arrays))
        of_leaves, _ = extract_leaves(grad, is_differentiable)
        return [p - rate * g for p, g in zip(theta, of_leaves, strict=True)]

    # Arguments that the loss does not read stay, or its memory would not count them.
    program = jax.jit(step, donate_argnums=0, keep_unused=True)
    lowered = program.lower(call.params, key, 1e-3, call.arrays)
    return lowered.compile(backend.compiler_options(compiler_options))


def cost_of_step(
    value_and_grad: Callable[..., Any], call: Call, may_fail: bool = False
) -> Cost | None:
    """Return the cost of an estimate and the update p − η g, compiled as one step.

    Args:
      value_and_grad: (key, params, *args) -> (value, grad).
      call: its arguments.
      may_fail: if True, return None for a step that cannot be compiled.
    """
    try:
        _, cost = compile_and_count(lambda: compile_step(value_and_grad, call, jax.random.key(0)))
        return cost()
    except Exception:
        if may_fail:  # a while_loop has no reverse mode
            return None
        raise
