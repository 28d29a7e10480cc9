"""Axes of arrays: merging them, and how the axes of two shapes correspond."""

import math
from collections.abc import Sequence

from fwdgrad.util.sizes import surely_less
from fwdgrad.util.trees import Array


def merge_axes(x: Array, start: int, stop: int) -> Array:
    """Merge the axes from `start` up to `stop` into one, of any sizes, zero included.

    With no axes between them the new axis has size 1. (`x.reshape(..., -1)` fails where another
    axis has size zero, since the size of the new one is then not determined by the others.)

    >>> import jax.numpy as jnp
    >>> merge_axes(jnp.zeros((2, 3, 0, 4)), 1, 3).shape, merge_axes(jnp.zeros((2, 3)), 2, 2).shape
    ((2, 0, 4), (2, 3, 1))
    """
    return x.reshape(*x.shape[:start], math.prod(x.shape[start:stop]), *x.shape[stop:])


def axis_groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest way to part the axes of two shapes into runs of equal size, in order.

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
            else:  # symbolic sizes of which neither is known to be the larger: the rest is one run
                first.extend(range(i, len(old)))
                second.extend(range(j, len(new)))
                i, j, size = len(old), len(new), other
        groups.append((first, second))
    # What is left of one shape is of size 1.
    groups = groups or [([], [])]
    groups[-1][0].extend(range(i, len(old)))
    groups[-1][1].extend(range(j, len(new)))
    return groups
