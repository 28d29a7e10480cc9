"""Differentiable leaves of a pytree: the rule that selects them, extraction and rebuilding.

A parameter pytree may hold anything: arrays of any dtype, `None`, Python scalars,
strings, the activation functions of an Equinox module. Only real floating-point
*arrays* are parameters; all other leaves are configuration or state. `partition` separates
parameters from the rest and `combine` merges both again, as in Equinox:

    params  =  combine(*partition(params))

`partition` leaves `None` in the place of the other part's leaves, and a class that checks its
children may refuse `None`. So the library itself extracts leaves into lists (`extract_leaves`), and
rebuilds a user's pytree only with every leaf in its place.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Array = jax.Array
# A function of one argument: an array, or for the first layer of a chain any pytree of arrays.
Layer: TypeAlias = Callable[[Any], Any]

_ARRAY_TYPES = (jax.Array, np.ndarray, np.generic)


def is_differentiable(leaf: Any) -> bool:
    """Return True for an array of a real floating dtype (float16 to float64, bfloat16).

    A Python float is not differentiable: in a module it is configuration (a dropout rate, an
    epsilon), and JAX code holds parameters in arrays.

    >>> is_differentiable(jnp.ones(3)), is_differentiable(jnp.arange(3)), is_differentiable(0.5)
    (True, False, False)
    """
    return isinstance(leaf, _ARRAY_TYPES) and jnp.issubdtype(leaf.dtype, jnp.floating)


def partition(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Split a pytree into its differentiable leaves and the rest.

    Each part has the structure of `tree`, with `None` in the place of the other part's leaves. The
    differentiable part is a pytree of arrays alone, so it can be jitted, donated, checkpointed and
    given to any optax optimizer. A class that refuses `None` as a child cannot be split: estimators
    take such parameters whole, and so does optax if all leaves are arrays.

    Args:
      tree: a pytree; leaves of a real floating dtype are differentiable.

    Returns:
      (differentiable, rest).

    >>> partition({"w": jnp.float32(2), "steps": 3})
    ({'steps': None, 'w': Array(2., dtype=float32)}, {'steps': 3, 'w': None})
    """
    differentiable = jax.tree.map(lambda x: jnp.asarray(x) if is_differentiable(x) else None, tree)
    return differentiable, jax.tree.map(lambda x: None if is_differentiable(x) else x, tree)


def combine(differentiable: PyTree, rest: PyTree) -> PyTree:
    """Merge the two parts that `partition` returns into one pytree.

    Args:
      differentiable, rest: pytrees of one structure, each with `None` for the other's leaves.

    >>> combine({"w": jnp.float32(2), "steps": None}, {"w": None, "steps": 3})
    {'steps': 3, 'w': Array(2., dtype=float32)}
    """

    def choose(x: Any, other: Any) -> Any:
        return other if x is None else x

    return jax.tree.map(choose, differentiable, rest, is_leaf=lambda x: x is None)


def zero_if_number(leaf: Any) -> Any:
    """Return zero for a number, zeros for an array of numbers, and any other leaf unchanged.

    >>> zero_if_number(7), zero_if_number(True), zero_if_number(np.arange(2)), zero_if_number("x")
    (0, False, array([0, 0]), 'x')
    """
    if type(leaf) in (bool, int, float, complex):
        return type(leaf)()
    if isinstance(leaf, jax.Array):
        is_extended = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)  # keys
        return leaf if is_extended else jnp.zeros_like(leaf)
    if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.kind in "biufc":
        return np.zeros_like(leaf)
    return leaf


class Frame:
    """A pytree without its chosen leaves, which can be rebuilt with other leaves in their place.

    Attributes:
      structure: the treedef of the whole pytree.
      names: the path of each chosen leaf, such as "['w']".
      others: the leaves that are not chosen.
    """

    def __init__(self, tree: PyTree, chosen: Callable[[Any], bool]):
        paths, self.structure = jax.tree_util.tree_flatten_with_path(tree)
        self._is_chosen = [chosen(x) for _, x in paths]
        both = list(zip(paths, self._is_chosen, strict=True))
        self.names = [jax.tree_util.keystr(path) for (path, _), taken in both if taken]
        self.others = [x for (_, x), taken in both if not taken]

    def rebuild(self, values: Iterable[Any], others: Iterable[Any] | None = None) -> PyTree:
        """Return the pytree with new values in the place of the chosen leaves.

        Args:
          values: one value for each chosen leaf.
          others: one value for each other leaf; by default the other leaves stay.
        """
        parts = [iter(self.others if others is None else others), iter(values)]
        return jax.tree.unflatten(self.structure, [next(parts[i]) for i in self._is_chosen])

    def subtree(self, values: Sequence[Any], *, like_whole: bool = False) -> PyTree:
        """Return a pytree that holds the values of the chosen leaves and no other leaf.

        A pytree of dicts, lists and tuples keeps its structure, with `None` for every other leaf.
        Any other class may refuse `None` or check the types of its children. Then the result is
        the list of the values.

        Args:
          values: one value for each chosen leaf; `None` leaves that leaf out.
          like_whole: keep the structure of any class if no leaf is left out.
        """
        present = [x for x in values if x is not None]
        is_whole = like_whole and len(present) == len(self._is_chosen)
        if is_whole or _is_plain(self.structure):
            return self.rebuild(values, [None] * len(self.others))
        return present


def extract_leaves(tree: PyTree, chosen: Callable[[Any], bool]) -> tuple[list[Any], Frame]:
    """Return the chosen leaves of a pytree, and the `Frame` that rebuilds the pytree around them.

    Args:
      tree: any pytree.
      chosen: leaf -> True for a leaf that is extracted.

    >>> values, frame = extract_leaves({"w": 2.0, "name": "x"}, lambda x: isinstance(x, float))
    >>> values, frame.rebuild([3.0]), frame.subtree([3.0])
    ([2.0], {'name': 'x', 'w': 3.0}, {'name': None, 'w': 3.0})
    """
    return [x for x in jax.tree.leaves(tree) if chosen(x)], Frame(tree, chosen)


_PLAIN = (dict, list, tuple, collections.OrderedDict, collections.defaultdict)


def _is_plain(structure: Any) -> bool:
    """Return True if a pytree is made of Python's own containers alone."""
    if jax.tree_util.treedef_is_leaf(structure):
        return True
    return structure.node_data()[0] in _PLAIN and all(map(_is_plain, structure.children()))


def require_parameters(params: PyTree) -> None:
    """Raise unless `params` has a real floating leaf and no complex leaf.

    Raises:
      TypeError: a leaf is complex; the message names its path.
      ValueError: no leaf is a floating-point array.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        if isinstance(leaf, _ARRAY_TYPES) and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} has the complex dtype {leaf.dtype}; only "
                "real parameters are differentiated. Hold its real and imaginary parts as two "
                "real leaves and join them inside the loss."
            )
    if not any(is_differentiable(leaf) for _, leaf in leaves):
        found = ", ".join(
            f"params{jax.tree_util.keystr(path)}: {_describe(leaf)}" for path, leaf in leaves[:5]
        )
        raise ValueError(
            f"params has no differentiable leaf: found {found or 'an empty pytree'}. At least "
            "one leaf must be an array of a floating dtype; wrap a Python number in jnp.asarray, "
            "or cast an integer array with .astype(jnp.float32)."
        )


def _describe(leaf: Any) -> str:
    """Return dtype and shape of an array, or the type of any other leaf."""
    if isinstance(leaf, _ARRAY_TYPES):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return type(leaf).__name__


def accumulation_dtype(*dtypes: Any) -> Any:
    """Return the dtype for sampling, products and sums of values of these dtypes: >= float32.

    >>> accumulation_dtype(jnp.float16, jnp.bfloat16), accumulation_dtype(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    wide = [jnp.dtype(t) for t in dtypes if jnp.finfo(t).bits > 32]
    return wide[0] if wide else jnp.dtype(jnp.float32)


class FlatAux:
    """A loss function that returns (loss, aux), as a function that returns a list of arrays.

    A call keeps the other leaves of aux aside, and `restore_aux` puts them back.
    """

    def __init__(self, loss: Callable[..., tuple[Array, PyTree]]):
        self._loss = loss
        self._frame: Frame | None = None

    def __call__(self, *args: Any) -> list[Array]:
        value, aux = self._loss(*args)
        arrays, self._frame = extract_leaves(aux, lambda x: isinstance(x, jax.Array))
        return [value, *arrays]

    def restore_aux(self, leaves: Sequence[Any]) -> PyTree:
        """Return aux with these arrays in the place of its own."""
        assert self._frame is not None, "called before the function"
        return self._frame.rebuild(leaves)
