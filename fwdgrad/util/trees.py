"""Which leaves of a parameter pytree are differentiated, and which pass through.

A parameter pytree may hold anything: arrays of any dtype, `None`, Python scalars,
strings, the activation functions of an Equinox module. Only real floating-point
*arrays* are parameters; everything else is configuration or state. `partition` takes
the two apart and `combine` puts them together again, as `equinox.partition` does:

    params  =  combine(*partition(params))

Both parts have `None` in the place of the other's leaves, which a class that checks its children
may refuse. So the library itself takes leaves out with `extract_leaves`, keeps them in lists, and
rebuilds a pytree of the user's only with every leaf in its place.
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
    """Whether `leaf` is an array of a real floating dtype (float16 to float64, bfloat16).

    Python floats are not: in a module they are configuration (a dropout rate, an
    epsilon), and an array is how JAX code spells a parameter.

    >>> is_differentiable(jnp.ones(3)), is_differentiable(jnp.arange(3)), is_differentiable(0.5)
    (True, False, False)
    """
    return isinstance(leaf, _ARRAY_TYPES) and jnp.issubdtype(leaf.dtype, jnp.floating)


def partition(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Splits `tree` into its differentiable leaves and the rest, each with `None` for the other.

    The differentiable part is a pytree of arrays alone, so it can be jitted, donated,
    checkpointed and given to any optax optimizer. A class that refuses `None` as a child cannot be
    parted; estimators take such parameters whole, and so does optax if all leaves are arrays.

    >>> partition({"w": jnp.float32(2), "steps": 3})
    ({'steps': None, 'w': Array(2., dtype=float32)}, {'steps': 3, 'w': None})
    """
    differentiable = jax.tree.map(lambda x: jnp.asarray(x) if is_differentiable(x) else None, tree)
    return differentiable, jax.tree.map(lambda x: None if is_differentiable(x) else x, tree)


def combine(differentiable: PyTree, rest: PyTree) -> PyTree:
    """Puts together what `partition` took apart.

    >>> combine({"w": jnp.float32(2), "steps": None}, {"w": None, "steps": 3})
    {'steps': 3, 'w': Array(2., dtype=float32)}
    """

    def choose(x: Any, other: Any) -> Any:
        return other if x is None else x

    return jax.tree.map(choose, differentiable, rest, is_leaf=lambda x: x is None)


def zero_if_number(leaf: Any) -> Any:
    """Return zero in the place of a number or of an array of them, and any other leaf as it is.

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
    """A pytree without its chosen leaves, to be rebuilt with others in their place.

    Attributes:
      structure: of the whole pytree.
      names: of the chosen leaves, their paths.
      others: the leaves that were not chosen.
    """

    def __init__(self, tree: PyTree, chosen: Callable[[Any], bool]):
        paths, self.structure = jax.tree_util.tree_flatten_with_path(tree)
        self._is_chosen = [chosen(x) for _, x in paths]
        both = list(zip(paths, self._is_chosen, strict=True))
        self.names = [jax.tree_util.keystr(path) for (path, _), taken in both if taken]
        self.others = [x for (_, x), taken in both if not taken]

    def rebuild(self, values: Iterable[Any], others: Iterable[Any] | None = None) -> PyTree:
        """Return the pytree with these values in the place of the chosen leaves.

        Args:
          values: one for each chosen leaf.
          others: one for each other leaf; by default those of the pytree.
        """
        parts = [iter(self.others if others is None else others), iter(values)]
        return jax.tree.unflatten(self.structure, [next(parts[i]) for i in self._is_chosen])

    def subtree(self, values: Sequence[Any], *, like_whole: bool = False) -> PyTree:
        """Return a pytree of nothing but the values that are not None, one for each chosen leaf.

        Where the pytree is made of dicts, lists and tuples alone it has their structure, with None
        for every other leaf. Any other class may refuse None, or check what it is made of: then it
        is the list of the values.

        Args:
          values: one for each chosen leaf; those that are None are left out.
          like_whole: return the structure of the pytree, of any class, if nothing is left out.
        """
        present = [x for x in values if x is not None]
        is_whole = like_whole and len(present) == len(self._is_chosen)
        if is_whole or _is_plain(self.structure):
            return self.rebuild(values, [None] * len(self.others))
        return present


def extract_leaves(tree: PyTree, chosen: Callable[[Any], bool]) -> tuple[list[Any], Frame]:
    """Return the leaves of `tree` that are `chosen`, and what is left of it.

    >>> values, frame = extract_leaves({"w": 2.0, "name": "x"}, lambda x: isinstance(x, float))
    >>> values, frame.rebuild([3.0]), frame.subtree([3.0])
    ([2.0], {'name': 'x', 'w': 3.0}, {'name': None, 'w': 3.0})
    """
    return [x for x in jax.tree.leaves(tree) if chosen(x)], Frame(tree, chosen)


_PLAIN = (dict, list, tuple, collections.OrderedDict, collections.defaultdict)


def _is_plain(structure: Any) -> bool:
    """Whether a pytree is made of Python's own containers alone."""
    if jax.tree_util.treedef_is_leaf(structure):
        return True
    return structure.node_data()[0] in _PLAIN and all(map(_is_plain, structure.children()))


def require_parameters(params: PyTree) -> None:
    """Raises unless `params` has a real floating leaf and no complex one.

    Raises:
      TypeError: a leaf is complex (named by its path).
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
    if isinstance(leaf, _ARRAY_TYPES):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return type(leaf).__name__


def accumulation_dtype(*dtypes: Any) -> Any:
    """The dtype in which values of these are drawn, multiplied and summed: at least float32.

    >>> accumulation_dtype(jnp.float16, jnp.bfloat16), accumulation_dtype(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    wide = [jnp.dtype(t) for t in dtypes if jnp.finfo(t).bits > 32]
    return wide[0] if wide else jnp.dtype(jnp.float32)


class FlatAux:
    """A function that returns (loss, aux), as one that returns arrays alone.

    What else aux may hold is put aside when it is called, and put back by `restored`.
    """

    def __init__(self, loss: Callable[..., tuple[Array, PyTree]]):
        self._loss = loss
        self._frame: Frame | None = None

    def __call__(self, *args: Any) -> list[Array]:
        value, aux = self._loss(*args)
        arrays, self._frame = extract_leaves(aux, lambda x: isinstance(x, jax.Array))
        return [value, *arrays]

    def restore_aux(self, leaves: Sequence[Any]) -> PyTree:
        """Aux of these arrays."""
        assert self._frame is not None, "called before the function"
        return self._frame.rebuild(leaves)
