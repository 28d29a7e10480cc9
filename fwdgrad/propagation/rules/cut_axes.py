"""Which axis of an operation's outputs is the cut one, where its operands' tangents are blocks.

An operation that treats the entries along an axis each for itself keeps blocks of that axis. That
is so of every elementwise one, and of any other along the axes that it does not act on: a sort of
rows keeps blocks of the columns.
"""

from collections.abc import Callable
from typing import Any

from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.propagation.elementwise import ELEMENTWISE, is_elementwise
from fwdgrad.propagation.jaxprs import body_of, variables
from fwdgrad.util.axes import axis_groups
from fwdgrad.util.jax_internals import jax_name


def axes_after(equation: Any, axes: dict[Any, int], number: int) -> list[int] | None:
    """Which axis of each output is the cut one, or None if the blocks do not stay.

    Args:
      axes: of the operands that are cut, the axis.
      number: K, of blocks along each of them.
    """
    if equation.primitive is primitives.custom_jvp_call_p:
        return _axes_of_elementwise(equation, axes)
    if (body := body_of(equation)) is not None:
        named = zip(body.invars, _hashable(equation.invars), strict=True)
        return _axes_of_body(body, {v: axes[w] for v, w in named if w in axes}, number)
    name = jax_name(equation)
    if name in ELEMENTWISE:
        return _axes_of_elementwise(equation, axes)
    if name in _MOVES and len(axes) == 1 and equation.invars[0] in axes:
        after = _MOVES[name](equation, axes[equation.invars[0]], number)
        return None if after is None else [after]
    if name in _JOINED and len({*axes.values()}) == 1:
        (axis,) = {*axes.values()}
        after = _JOINED[name](equation, axis, number)
        return None if after is None else [after] * len(equation.outvars)
    if name in _APART and len({*axes.values()}) == 1:
        (axis,) = {*axes.values()}
        return None if _APART[name](equation, axis) else [axis] * len(equation.outvars)
    return None


def _axes_of_elementwise(equation: Any, axes: dict[Any, int]) -> list[int] | None:
    (axis, *others) = set(axes.values())
    whole = equation.outvars[0].aval.shape
    if others or not is_elementwise(equation):
        return None
    same = all(v.aval.shape[axis] == whole[axis] for v in axes)
    return [axis] * len(equation.outvars) if same else None


def _hashable(atoms: list[Any]) -> list[Any]:
    return [None if isinstance(v, jex_core.Literal) else v for v in atoms]


def _axes_of_body(jaxpr: Any, axes: dict[Any, int], number: int) -> list[int] | None:
    for equation in jaxpr.eqns:
        cut = {v: axes[v] for v in variables(equation.invars) if v in axes}
        if not cut:
            continue
        if (after := axes_after(equation, cut, number)) is None:
            return None
        axes.update(zip(equation.outvars, after, strict=True))
    outputs = _hashable(jaxpr.outvars)
    return [axes[v] for v in outputs] if all(v in axes for v in outputs) else None


def _transposed(equation: Any, axis: int, number: int) -> int:
    return list(equation.params["permutation"]).index(axis)


def _broadcast(equation: Any, axis: int, number: int) -> int | None:
    after = equation.params["broadcast_dimensions"][axis]
    return after if equation.params["shape"][after] == equation.invars[0].aval.shape[axis] else None


def _removed(equation: Any, axis: int, number: int) -> int | None:
    """A reduction or a squeeze of other axes."""
    removed = equation.params.get("axes", equation.params.get("dimensions"))
    return None if axis in removed else axis - sum(i < axis for i in removed)


def _reshaped(equation: Any, axis: int, number: int) -> int | None:
    """The blocks stay runs of an axis if it leads those it is merged with or made into.

    And if their size there is the one that K blocks of that axis have, which it is not where K
    does not divide it: 10 channels of 49 pixels in 4 blocks are runs of 147, 490 entries in 4 of
    123.
    """
    old, new = equation.invars[0].aval.shape, equation.params["new_sizes"]
    if 0 in old or equation.params.get("dimensions") is not None:
        return None
    for before, after in axis_groups(old, new):
        if axis in before:
            wide = [i for i in before if old[i] > 1]
            if not after or (wide and wide[0] != axis):
                return None
            after = [j for j in after if new[j] > 1] or after[:1]
            inner = 1
            for j in after[1:]:
                inner *= new[j]
            run = -(-old[axis] // number)  # of the merged axis
            for i in wide[1:]:
                run *= old[i]
            return after[0] if run == inner * -(-new[after[0]] // number) else None
    return None


def _stacked(equation: Any, axis: int, number: int) -> int:
    return axis + (axis >= equation.params["axis"])


def _unstacked(equation: Any, axis: int, number: int) -> int | None:
    at = equation.params["axis"]
    return None if axis == at else axis - (axis > at)


def _gathered(equation: Any, axis: int, number: int) -> int | None:
    """An axis that is gathered whole, as the columns are where rows are looked up."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    removed = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    if axis in removed or sizes[axis] != equation.invars[0].aval.shape[axis]:
        return None
    return numbers.offset_dims[sum(i not in removed for i in range(axis))]


_MOVES: dict[str, Callable[[Any, int, int], int | None]] = {
    primitives.transpose_p.name: _transposed,
    primitives.broadcast_in_dim_p.name: _broadcast,
    primitives.squeeze_p.name: _removed,
    primitives.reduce_sum_p.name: _removed,
    primitives.reduce_max_p.name: _removed,
    primitives.reduce_min_p.name: _removed,
    primitives.reduce_prod_p.name: _removed,
    primitives.reduce_p.name: _removed,
    primitives.reshape_p.name: _reshaped,
    primitives.gather_p.name: _gathered,
}


# Of these all operands are cut along one axis, and all outputs along one.
_JOINED: dict[str, Callable[[Any, int, int], int | None]] = {
    "stack": _stacked,
    "unstack": _unstacked,
}

# The others: fun(equation, axis) says whether they act along the axis. If not, each operand that
# has the axis is cut along it, and each output.


def _acts_on(parameter: str) -> Callable[[Any, int], bool]:
    """Of a primitive whose parameter is the axis, or the axes, that it acts on."""

    def acts(equation: Any, axis: int) -> bool:
        found = equation.params[parameter]
        ndim = equation.invars[0].aval.ndim
        return axis in {i % ndim for i in (found if isinstance(found, tuple) else (found,))}

    return acts


def _changes(equation: Any, axis: int) -> bool:
    """Of a slice, a padding or an update: whether it is not of the whole axis."""
    padding = equation.params.get("padding_config")
    whole = equation.outvars[0].aval.shape[axis]
    same = all(v.aval.shape[axis] == whole for v in equation.invars if v.aval.ndim > axis)
    return not same or (padding is not None and padding[axis] != (0, 0, 0))


def _picks(equation: Any, axis: int) -> bool:
    return axis == equation.params.get("axis", equation.invars[0].aval.ndim - 1)


def _slides(equation: Any, axis: int) -> bool:
    """Of a window: whether it is longer along the axis than one entry, or moves or skips some."""
    params = equation.params
    shapes = {v.aval.shape[axis] for v in (*equation.invars, *equation.outvars) if v.aval.ndim}
    moved = tuple(params["padding"][axis]) != (0, 0)
    return params["window_dimensions"][axis] != 1 or moved or len(shapes) > 1


def _transforms(equation: Any, axis: int) -> bool:
    return axis >= equation.invars[0].aval.ndim - len(equation.params["fft_lengths"])


_CUMULATIVE = (
    primitives.cumsum_p, primitives.cumprod_p, primitives.cummax_p, primitives.cummin_p,
    primitives.cumlogsumexp_p,
)  # fmt: skip
_WINDOWED = (
    primitives.reduce_window_sum_p, primitives.reduce_window_max_p, primitives.reduce_window_min_p,
    primitives.reduce_window_p, primitives.select_and_gather_add_p,
    primitives.select_and_scatter_add_p,
)  # fmt: skip
_APART: dict[str, Callable[[Any, int], bool]] = {
    **{p.name: _acts_on("axis") for p in _CUMULATIVE},
    **{p.name: _slides for p in _WINDOWED},
    primitives.rev_p.name: _acts_on("dimensions"),
    primitives.sort_p.name: _acts_on("dimension"),
    primitives.concatenate_p.name: _acts_on("dimension"),
    "split": _acts_on("axis"),
    primitives.top_k_p.name: _picks,
    primitives.approx_top_k_p.name: _acts_on("reduction_dimension"),
    primitives.slice_p.name: _changes,
    primitives.dynamic_slice_p.name: _changes,
    primitives.dynamic_update_slice_p.name: _changes,
    primitives.pad_p.name: _changes,
    "tile": _changes,
    primitives.fft_p.name: _transforms,
}

KEEPING = frozenset({*ELEMENTWISE, *_MOVES, *_APART, *_JOINED, primitives.custom_jvp_call_p.name})
