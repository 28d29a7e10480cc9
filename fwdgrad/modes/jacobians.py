"""Jacobians of a chain and of each layer, by columns (forward mode) or by rows (reverse mode).

A pass forward with the tangent e_k gives the k-th column of J, and a pass back with the cotangent
e_j gives the j-th row (`fwdgrad.modes.chains`). So an m × n Jacobian takes n passes forward or m
passes back, and the smaller number is cheaper: reverse mode for wide Jacobians (few outputs, many
inputs, such as a loss by its parameters), forward mode for tall ones.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fwdgrad.modes.chains import chain_values, pull_back, push_forward
from fwdgrad.util.trees import Array, Layer, PyTree

MODES = ("auto", "forward", "reverse")


def jacobian(layers: Sequence[Layer], x: PyTree, *, mode: str = "auto") -> Array:
    """Return the Jacobian J = J^N ⋯ J^1 of a chain, (J)_{jk} = ∂x_j^{N+1}/∂x_k^1.

    Args:
      layers: as in `push_forward`.
      x: x^1, a floating array or a pytree of floating arrays, with n entries in all.
      mode: "forward" computes the n columns, mapped by `jax.vmap`; "reverse" the m rows; "auto" the
        fewer of the two, and the columns if m = n, since forward mode keeps no residuals.

    Returns:
      An array (m, n), with inputs and outputs in the order of `jax.flatten_util.ravel_pytree`. For
      a minibatch use `jax.vmap(lambda x: jacobian(layers, x))(batch)`.

    Raises:
      TypeError, ValueError: as `push_forward`; or `mode` is none of the three names.

    >>> w = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> jacobian([lambda x: w @ x, jnp.square], jnp.ones(2)).tolist()
    [[6.0, 12.0], [42.0, 56.0], [110.0, 132.0]]
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; found {mode!r}.")
    y, unravel_output = ravel_pytree(chain_values(layers, x)[-1])
    flat, unravel_input = ravel_pytree(x)
    if mode == "forward" or (mode == "auto" and flat.size <= y.size):

        def column(tangent: Array) -> Array:
            return ravel_pytree(push_forward(layers, x, unravel_input(tangent))[1])[0]

        return jax.vmap(column, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))

    def row(cotangent: Array) -> Array:
        return ravel_pytree(pull_back(layers, x, unravel_output(cotangent))[1])[0]

    return jax.vmap(row)(jnp.eye(y.size, dtype=y.dtype))


def layer_jacobians(layers: Sequence[Layer], x: PyTree, *, mode: str = "auto") -> list[Array]:
    """Return the Jacobians J^1 … J^N of the layers, each at its input x^i in the chain.

    The product J^N ⋯ J^1 is `jacobian(layers, x)`.

    Args:
      layers: as in `push_forward`.
      x: x^1.
      mode: as in `jacobian`, chosen for each layer.

    Returns:
      The arrays J^i of shape (m^{i+1}, m^i), with inputs and outputs flattened as in `jacobian`.

    Raises:
      TypeError, ValueError: as `jacobian`.

    >>> w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> [j.tolist() for j in layer_jacobians([lambda x: w @ x, jnp.square], jnp.ones(2))]
    [[[1.0, 2.0], [3.0, 4.0]], [[6.0, 0.0], [0.0, 14.0]]]
    """
    values = chain_values(layers, x)
    return [
        jacobian([layer], value, mode=mode)
        for layer, value in zip(layers, values[:-1], strict=True)
    ]
