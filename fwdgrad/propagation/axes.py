"""Axis maps of primitives: from the axes of an operand to the axes of the outputs.

The table of facts (`fwdgrad.propagation.facts`) names one of these functions for each primitive.
The map tells the axes of a value that are a parameter's rows and columns, rearranges low-rank
factors, and finds the axis along which blocks are cut after an equation.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fwdgrad.util.shapes import surely_less


class Axes(NamedTuple):
    """The axis map of one operand of an equation.

    Attributes:
      of: for each axis of an output, the operand's axes that it is made of, in their order.
      mixed: the operand's axes along which entries are moved, picked or combined. Along the others
        each entry of the outputs depends on the entries at the same position alone.
    """

    of: tuple[tuple[int, ...], ...]
    mixed: frozenset[int] = frozenset()


# fun(equation, position of an operand) -> its axes in the outputs, or None if they are not known.
AxesOf = Callable[[Any, int], Axes | None]


def kept(mixed: Callable[[Any, int], Iterable[int]]) -> AxesOf:
    """Return the function of a primitive whose axes stay in place; `mixed` names some of them."""

    def axes(equation: Any, operand: int) -> Axes:
        ndim = equation.invars[operand].aval.ndim
        of = tuple((i,) if i < ndim else () for i in range(equation.outvars[0].aval.ndim))
        return Axes(of, frozenset(mixed(equation, operand)))

    return axes


def along(parameter: str) -> AxesOf:
    """Return the function of a primitive that names the axis or axes that it mixes."""

    def mixed(equation: Any, operand: int) -> Iterable[int]:
        found = equation.params[parameter]
        found = found if isinstance(found, tuple) else (found,)
        return (i % equation.invars[0].aval.ndim for i in found)

    return kept(mixed)


def resized(equation: Any, operand: int) -> list[int]:
    """Return the axes of another size than those of the outputs: cut, extended or broadcast."""
    new = equation.outvars[0].aval.shape
    return [i for i, n in enumerate(equation.invars[operand].aval.shape) if n != new[i]]


def padded(equation: Any, operand: int) -> list[int]:
    """Return the axes that are padded, or cut by a negative padding."""
    config = equation.params["padding_config"]
    return [i for i, widths in enumerate(config) if widths != (0, 0, 0)]


def windowed(equation: Any, operand: int) -> list[int]:
    """Return the axes along which a window is longer than one entry, or moves or skips some."""
    sizes, padding = equation.params["window_dimensions"], equation.params["padding"]
    slid = [i for i, n in enumerate(sizes) if n != 1 or tuple(padding[i]) != (0, 0)]
    return [*slid, *resized(equation, operand)]


def last(equation: Any, operand: int) -> tuple[int]:
    """Return the axis along which the largest entries are taken."""
    return (equation.params.get("axis", equation.invars[0].aval.ndim - 1),)


def transformed(equation: Any, operand: int) -> range:
    """Return the axes of a Fourier transform."""
    ndim = equation.invars[0].aval.ndim
    return range(ndim - len(equation.params["fft_lengths"]), ndim)


def transposed(equation: Any, operand: int) -> Axes:
    """Return the axes in the order of a permutation."""
    return Axes(tuple((i,) for i in equation.params["permutation"]))


def broadcast(equation: Any, operand: int) -> Axes:
    """Return the axes among new ones; one of size 1 that is extended is mixed."""
    shape, own = equation.params["shape"], equation.invars[0].aval.shape
    after = equation.params["broadcast_dimensions"]
    of = [(after.index(j),) if j in after else () for j in range(len(shape))]
    return Axes(tuple(of), frozenset(i for i, j in enumerate(after) if own[i] != shape[j]))


def removed(equation: Any, operand: int) -> Axes:
    """Return the axes that a reduction or a squeeze leaves."""
    gone = equation.params.get("axes", equation.params.get("dimensions"))
    return Axes(tuple((i,) for i in range(equation.invars[0].aval.ndim) if i not in gone))


def reshaped(equation: Any, operand: int) -> Axes:
    """Return the axes merged and split, in runs of equal size."""
    shape, new = equation.invars[0].aval.shape, equation.params["new_sizes"]
    order = equation.params.get("dimensions") or range(len(shape))
    of: list[tuple[int, ...]] = [()] * len(new)
    for before, after in axis_groups([shape[i] for i in order], new) if 0 not in shape else ():
        for j in after:
            of[j] = tuple(order[i] for i in before)
    return Axes(tuple(of))


def stacked(equation: Any, operand: int) -> Axes:
    """Return the axes beside the new one, along which operands are stacked."""
    of = [(i,) for i in range(equation.invars[operand].aval.ndim)]
    at = equation.params["axis"]
    return Axes((*of[:at], (), *of[at:]))


def unstacked(equation: Any, operand: int) -> Axes:
    """Return the axes but for the one along which the outputs are slices."""
    at, ndim = equation.params["axis"], equation.invars[0].aval.ndim
    return Axes(tuple((i,) for i in range(ndim) if i != at))


def gathered(equation: Any, operand: int) -> Axes:
    """Return the axes of a table but for those that are looked up; one that is cut is mixed."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = equation.invars[0].aval.shape
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    others = [i for i in range(len(shape)) if i not in gone]
    of = dict(zip(numbers.offset_dims, others, strict=True))
    ndim = equation.outvars[0].aval.ndim
    mixed = frozenset(i for i, n in enumerate(shape) if sizes[i] != n)
    return Axes(tuple((of[j],) if j in of else () for j in range(ndim)), mixed)


# fun(equation, position of an operand) -> the axes that a product contracts, and those it keeps;
# None if factors along these would save nothing.
MatrixOf = Callable[[Any, int], tuple[Sequence[int], Sequence[int]] | None]


def matrix_of_dot(equation: Any, operand: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return the contracted and the free axes of a factor of a `dot_general`."""
    contract, batch = (axes[operand] for axes in equation.params["dimension_numbers"])
    ndim = equation.invars[operand].aval.ndim
    return contract, [i for i in range(ndim) if i not in contract and i not in batch]


def matrix_of_kernel(equation: Any, operand: int) -> tuple[Sequence[int], Sequence[int]] | None:
    """Return the inputs and taps of a convolution's kernel, and its output channels."""
    outputs, inputs, *spatial = equation.params["dimension_numbers"].rhs_spec
    shape = equation.invars[1].aval.shape
    # With one output channel a group a factor costs as much as the kernel.
    depthwise = shape[outputs] == equation.params["feature_group_count"]
    if operand == 0 or depthwise or equation.params["batch_group_count"] > 1:
        return None
    return (inputs, *spatial), (outputs,)


def matrix_of_table(equation: Any, operand: int) -> tuple[Sequence[int], Sequence[int]] | None:
    """Return rows and columns of a table, which is multiplied by rows of zeros and a one."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, looked_up = equation.invars[0].aval.shape, numbers.start_index_map
    columns = [i for i in range(len(shape)) if i not in looked_up]
    if operand or numbers.operand_batching_dims or any(sizes[i] != shape[i] for i in columns):
        return None
    return looked_up, columns


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
