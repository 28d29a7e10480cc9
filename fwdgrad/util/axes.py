"""Axes of arrays: merging axes, and matching the axes of two shapes of one size."""

import math
from collections.abc import Sequence

from fwdgrad.util.sizes import surely_less
from fwdgrad.util.trees import Array


def merge_axes(x: Array, start: int, stop: int) -> Array:
    """Merge the axes `start` … `stop` − 1 into one axis, of size 1 if start == stop.

    Axes of size zero are allowed. (`x.reshape(..., -1)` fails where another axis has size zero,
    because the size of the new axis is then undetermined.)

    >>> import jax.numpy as jnp
    >>> merge_axes(jnp.zeros((2, 3, 0, 4)), 1, 3).shape, merge_axes(jnp.zeros((2, 3)), 2, 2).shape
    ((2, 0, 4), (2, 3, 1))
    """
    return x.reshape(*x.shape[:start], math.prod(x.shape[start:stop]), *x.shape[stop:])


def axis_groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split the axes of two shapes of one size into the smallest runs of equal size, in order.

    Args:
      old, new: shapes with the same number of entries.

    Returns:
      Pairs (axes of `old`, axes of `new`): a reshape from `old` to `new` merges and splits axes
      within a pair alone.

    >>> axis_groups((2, 12, 5), (24, 5, 1))
    [([0, 1], [0]), ([2], [1, 2])]
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        first, second, size, other = [i], [j], old[i], new[j]
        i, j = i + 1, j + 1
        while size != other:
            if surely_less(size, other):
                first.append(i)
                size, i = size * old[i], i + 1
            elif surely_less(other, size):
                second.append(j)
                other, j = other * new[j], j + 1
            else:  # neither of two symbolic sizes is known to be larger: the rest is one run
                first.extend(range(i, len(old)))
                second.extend(range(j, len(new)))
                i, j, size = len(old), len(new), other
        groups.append((first, second))
    # The axes that remain are of size 1.
    groups = groups or [([], [])]
    groups[-1][0].extend(range(i, len(old)))
    groups[-1][1].extend(range(j, len(new)))
    return groups
