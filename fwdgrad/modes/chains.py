"""Forward and reverse mode through a chain of layers, one layer at a time.

A network is a chain of layers x^{i+1} = L^i(x^i), i = 1 … N, with x^i ∈ R^{m^i} and Jacobians
J^i ∈ R^{m^{i+1} × m^i}, (J^i)_{jk} = ∂x_j^{i+1}/∂x_k^i. Its own Jacobian is J = J^N ⋯ J^1.

    forward mode    v^{i+1} = J^i v^i        a tangent is pushed forward      v^{N+1} = J v^1
    reverse mode    v^i = (J^i)ᵀ v^{i+1}     a cotangent is pulled back       v^1 = Jᵀ v^{N+1}

A tangent c gives the combination Σ_k c_k ∂x^{N+1}/∂x_k^1 of the columns of J, so e_k gives the
k-th column. A cotangent c gives the combination Σ_j c_j ∂x_j^{N+1}/∂x^1 of the rows. No J^i is ever
formed. For one tangent v and one cotangent c both modes give the same number, ⟨c, J v⟩ = ⟨Jᵀ c, v⟩.

The derivative by the weights of a layer is the derivative of the chain that begins at this layer,
with the weights as its input (`at_weights`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.util.trees import Layer, PyTree, extract_leaves, is_differentiable


def apply_chain(layers: Sequence[Layer], x: PyTree) -> Any:
    """Return the output x^{N+1} of a chain.

    Args:
      layers: callables of one argument.
      x: x^1, an array or a pytree.

    >>> apply_chain([jnp.sqrt, jnp.sum], jnp.array([4.0, 9.0])).item()
    5.0
    """
    for layer in layers:
        x = layer(x)
    return x


def chain_values(layers: Sequence[Layer], x: PyTree) -> list[PyTree]:
    """Return the values x^1 … x^{N+1} along a chain; raise the errors of `push_forward`.

    >>> [v.tolist() for v in chain_values([jnp.sqrt, jnp.sum], jnp.array([4.0, 9.0]))]
    [[4.0, 9.0], [2.0, 3.0], 5.0]
    """
    layers, values = _checked_layers(layers), [jax.tree.map(jnp.asarray, x)]
    for i, layer in enumerate(layers):
        values.append(_apply(layers, i, values[-1], partial(layer, values[-1])))
    return values


class Pass(NamedTuple):
    """The values along a chain of N layers, with their tangents or cotangents.

    Attributes:
      x: the values x^1 … x^{N+1}; `x[i]` is the input of `layers[i]`, and `x[-1]` the output.
      v: the tangents or cotangents v^1 … v^{N+1}; v[i] has the shapes of x[i].

    >>> push_forward([jnp.square], jnp.array(3.0), jnp.array(1.0), record=True)[-1].v[-1].item()
    6.0
    """

    x: tuple[PyTree, ...]
    v: tuple[PyTree, ...]


def push_forward(
    layers: Sequence[Layer], x: PyTree, v: PyTree, *, record: bool = False
) -> tuple[Any, ...]:
    """Push a tangent forward through a chain: x^{i+1} = L^i(x^i), v^{i+1} = J^i v^i.

    Each layer is one `jax.jvp`, and no residual of a layer is kept.

    Args:
      layers: callables of one argument, such as Equinox modules and functions. Arrays may have any
        shapes: if layers take a leading minibatch axis, x^i and v^i both have it.
      x: x^1, a floating array, or a pytree of floating arrays.
      v: v^1, of the structure, shapes and dtypes of `x`.
      record: if True, return the `Pass` as well.

    Returns:
      (x^{N+1}, v^{N+1}), or with `record` (x^{N+1}, v^{N+1}, Pass).

    Raises:
      TypeError: `layers` is not a sequence of callables, or `x` or `v` is not floating.
      ValueError: `v` has not the structure, shapes and dtypes of `x`, or a layer does not take the
        output of the layer before it.

    >>> w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> y, dy = push_forward([lambda x: w @ x, jnp.square], jnp.ones(2), jnp.array([1.0, 0.0]))
    >>> y.tolist(), dy.tolist()  # the second is a column of J = diag(2 w x) w
    ([9.0, 49.0], [6.0, 42.0])

    Source: Baydin, Pearlmutter, Radul, Siskind, Automatic differentiation in machine learning: a
    survey (2018), section 3.1.
    """
    layers, x, v = _checked_layers(layers), _floating("x", x), _floating("v", v)
    _check_like("v", v, "x", x)
    values, vectors = [x], [v]
    for i, layer in enumerate(layers):
        x, v = _apply(layers, i, x, partial(jax.jvp, layer, (x,), (v,)))
        values.append(x)
        vectors.append(v)
    return (x, v, Pass(tuple(values), tuple(vectors))) if record else (x, v)


def pull_back(
    layers: Sequence[Layer], x: PyTree, v: PyTree, *, record: bool = False
) -> tuple[Any, ...]:
    """Pull a cotangent back through a chain: v^i = (J^i)ᵀ v^{i+1}, after x^{i+1} = L^i(x^i).

    Each layer is one `jax.vjp`: the values are computed first, and each layer keeps its residuals
    until the cotangent comes back.

    Args:
      layers, x, record: as in `push_forward`.
      v: v^{N+1}, of the structure, shapes and dtypes of the output.

    Returns:
      (x^{N+1}, v^1), or with `record` (x^{N+1}, v^1, Pass).

    Raises:
      TypeError, ValueError: as `push_forward`; `v` does not fit the output.

    >>> w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> y, dx = pull_back([lambda x: w @ x, jnp.square], jnp.ones(2), jnp.array([1.0, 0.0]))
    >>> y.tolist(), dx.tolist()  # the second is a row of J = diag(2 w x) w
    ([9.0, 49.0], [6.0, 12.0])

    Source: section 3.2 of the survey that `push_forward` cites.
    """
    layers, x, v = _checked_layers(layers), _floating("x", x), _floating("v", v)
    values, pullbacks = [x], []
    for i, layer in enumerate(layers):
        x, pullback = _apply(layers, i, x, partial(jax.vjp, layer, x))
        values.append(x)
        pullbacks.append(pullback)
    _check_like("v", v, "the output", values[-1])
    vectors = [v]
    while pullbacks:
        (v,) = pullbacks.pop()(vectors[-1])
        vectors.append(v)
    vectors.reverse()
    return (values[-1], v, Pass(tuple(values), tuple(vectors))) if record else (values[-1], v)


def at_weights(layers: Sequence[Layer], x: PyTree, index: int) -> tuple[list[Layer], PyTree]:
    """Return the chain that begins at a layer's weights: x^{i+1} = L^i(W^i), with x^i held fixed.

    All functions of this module take the chain: `push_forward` pushes a tangent of the weights
    forward, `pull_back` pulls a cotangent back to the weights, and `jacobian` is the Jacobian by
    the weights.

    Args:
      layers: as in `push_forward`; `layers[index]` is a pytree, such as an Equinox module.
      x: x^1, an array of any dtype, such as the tokens of an embedding, or a pytree.
      index: the index of the layer in `layers`; 0 means W^1, and −1 the last layer.

    Returns:
      (chain, weights): the weights are `layers[index]` with `None` for all leaves but the floating
      arrays; or the list of these arrays, if the class of `layers[index]` refuses `None`.

    Raises:
      IndexError: there is no such layer.
      ValueError: the layer has no floating array, or a layer does not take its input.

    >>> layers = [jax.tree_util.Partial(jnp.multiply, jnp.array([2.0, 3.0])), jnp.sum]
    >>> chain, weights = at_weights(layers, jnp.array([5.0, 7.0]), 0)
    >>> jax.tree.leaves(pull_back(chain, weights, jnp.float32(1))[1])[0].tolist()
    [5.0, 7.0]
    """
    layers = _checked_layers(layers)
    if not -len(layers) <= index < len(layers):
        raise IndexError(
            f"index must be from {-len(layers)} to {len(layers) - 1}, for {len(layers)} layers; "
            f"found {index}."
        )
    index %= len(layers)
    held = chain_values(layers, x)[index]
    arrays, frame = extract_leaves(layers[index], is_differentiable)
    if not arrays:
        raise ValueError(
            f"layers[{index}] ({_name(layers[index])}) has no weights: no leaf of it is a floating "
            "array. A function that closes over its weights hides them; make it an Equinox module "
            "or a jax.tree_util.Partial that holds them."
        )

    def layer(weights: PyTree) -> Any:
        return frame.rebuild(jax.tree.leaves(weights))(held)

    layer.__name__ = _name(layers[index])
    arrays = [jnp.asarray(x) for x in arrays]
    weights: PyTree
    try:
        weights = frame.rebuild(arrays, [None] * len(frame.others))
    except Exception:  # of any kind: a class that checks its children refuses None as it likes
        weights = arrays
    return [layer, *layers[index + 1 :]], weights


def _checked_layers(layers: Any) -> list[Layer]:
    """Return the layers as a list; raise TypeError unless they are a sequence of callables."""
    if callable(layers) or not isinstance(layers, Sequence):
        raise TypeError(
            f"layers must be a list of callables; found {_name(layers)}. For one function f pass "
            "[f]."
        )
    for i, layer in enumerate(layers):
        if not callable(layer):
            raise TypeError(f"layers[{i}] must be callable; found {_name(layer)}.")
    return list(layers)


def _floating(name: str, tree: PyTree) -> PyTree:
    """Return a pytree of JAX arrays; raise TypeError unless all are real floating arrays."""
    tree = jax.tree.map(jnp.asarray, tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_differentiable(leaf):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must be a real floating array; found "
                f"{leaf.dtype}{list(leaf.shape)}. Cast it with .astype(jnp.float32)."
            )
    return tree


def _check_like(name: str, v: PyTree, other: str, x: PyTree) -> None:
    """Raise ValueError unless v has the structure, shapes and dtypes of x."""
    found: Any = jax.tree.structure(v)
    expected: Any = jax.tree.structure(x)
    if found != expected:
        raise ValueError(f"{name} must have the structure of {other}, {expected}; found {found}.")
    pairs = zip(jax.tree_util.tree_leaves_with_path(v), jax.tree.leaves(x), strict=True)
    for (path, a), b in pairs:
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have the shape and dtype of {other}, "
                f"{b.dtype}{list(b.shape)}; found {a.dtype}{list(a.shape)}."
            )


def _apply(layers: Sequence[Layer], i: int, x: PyTree, application: Callable[[], Any]) -> Any:
    """Return application() of layers[i] to x; raise an error as a ValueError that names layers."""
    try:
        return application()
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # of tracers, with their own remedy
        raise
    except (TypeError, ValueError) as error:
        shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(x))
        source = "x" if i == 0 else f"the output of layers[{i - 1}] ({_name(layers[i - 1])})"
        reason = str(error).strip() or type(error).__name__
        raise ValueError(
            f"layers[{i}] ({_name(layers[i])}) does not take {source}, of shape {shapes}: {reason}"
        ) from error


def _name(layer: Any) -> str:
    """Return the name of a function, or of the class of any other object."""
    return getattr(layer, "__name__", type(layer).__name__)
