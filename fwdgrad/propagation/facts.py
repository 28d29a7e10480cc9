"""Facts about the primitives of JAX: the one table that propagation and perturbation read.

Each primitive has one row of `FACTS`. Rows go by name, since not every version of JAX has all
primitives, and some are not public. A primitive without a row is treated as a function of which
nothing is known: its tangents are materialised, and noise enters before it. Tests hold each column
against the derivatives of every primitive that JAX has.

The search for matrices reads `linear`, `axes` and `matrix`; rules of factors and blocks read
`axes`; sites read `linear`; post-activations read `elementwise`, `selects` and `even_slopes`.
"""

import enum
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.extend.core import primitives

from fwdgrad.propagation import axes
from fwdgrad.propagation.axes import Axes, AxesOf, MatrixOf
from fwdgrad.propagation.custom_functions import custom_jvp_rule
from fwdgrad.util.jax_internals import Equation, Program, is_jax_primitive, read_program


class Linear(enum.Enum):
    """The operands in which a primitive is linear jointly, with the others held."""

    FIRST = enum.auto()
    ALL = enum.auto()
    PRODUCT = enum.auto()  # either of two
    QUOTIENT = enum.auto()  # the first of two, which is divided by the second


@dataclass(frozen=True)
class Fact:
    """One row of the table.

    Attributes:
      elementwise: each entry of the outputs depends on the same entry of the operands alone.
      linear: in which operands, or None.
      selects: each entry of the outputs is an entry of an operand, or a constant.
      even_slopes: slopes are about the same at all entries, or zero.
      axes: the function of an equation and an operand's position that returns its axes in the
        outputs; None if nothing is known of them.
      matrix: for products, the function that returns the axes of an operand that are contracted,
        and those that are kept.
    """

    elementwise: bool = False
    linear: Linear | None = None
    selects: bool = False
    even_slopes: bool = False
    axes: AxesOf | None = None
    matrix: MatrixOf | None = None

    @functools.cached_property
    def multiplies(self) -> bool:
        """True if one operand, in which the primitive is linear, is scaled by another."""
        return self.linear in (Linear.PRODUCT, Linear.QUOTIENT)

    @functools.cached_property
    def contracts(self) -> bool:
        """True for products of matrices and for convolutions."""
        return self.linear is Linear.PRODUCT and not self.elementwise


@functools.cache
def fact_of(primitive: Any) -> Fact:
    """Return the row of a primitive, an empty one if it has none."""
    own = FACTS.get(primitive)
    return own or (FACTS.get(primitive.name) if is_jax_primitive(primitive) else None) or _NOTHING


def axes_of(equation: Equation, operand: int) -> Axes | None:
    """Return an operand's axes in the outputs of an equation, None if nothing is known of them."""
    find = fact_of(equation.primitive).axes
    return None if find is None else find(equation, operand)


def linear_operands(equation: Equation, has_data: Sequence[bool | None]) -> list[int]:
    """Return the positions of the operands in which an equation is linear, jointly, all else held.

    Args:
      equation: of a jaxpr without calls.
      has_data: of each operand None, if it is not linear in parameters, or whether data is in it.
    """
    fact = fact_of(equation.primitive)
    given = {i: x for i, x in enumerate(has_data) if x is not None}
    if not given or fact.linear is None:
        return []
    if fact.linear in (Linear.FIRST, Linear.QUOTIENT):
        floating = all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in equation.outvars)
        return [0] if 0 in given and floating else []
    if fact.linear is Linear.ALL:
        # Beside a layer's output a held array would get noise for nothing: the site is before it.
        joined = fact.selects and len(given) < len(equation.invars)
        return [] if joined and any(given.values()) else list(given)
    if len(given) == 1:  # a layer's output times something fixed is one more layer
        return [] if any(given.values()) and fact.contracts else list(given)
    # Of two weights the larger stays linear; of a layer's output and a weight, the weight.
    if all(given.values()):
        return []
    sizes = {i: -1 if x else equation.invars[i].aval.size for i, x in given.items()}
    return [max(sizes, key=lambda i: sizes[i])]


def is_elementwise(equation: Equation) -> bool:
    """Return True if each entry of the outputs depends on the same entry of the operands alone.

    Operands have the outputs' shape, or broadcast to it: numbers, or size 1 along some axes. For a
    custom_jvp function the rule decides, not the function.
    """
    return _is_elementwise(equation, differentiated=True)


def _is_elementwise(equation: Any, differentiated: bool) -> bool:
    shapes = {v.aval.shape for v in equation.outvars}
    if len(shapes) != 1 or not all(_broadcasts(v.aval.shape, *shapes) for v in equation.invars):
        return False
    if differentiated and equation.primitive is primitives.custom_jvp_call_p:
        return _are_elementwise(read_program(custom_jvp_rule(equation)), differentiated=False)
    if equation.function is not None:
        return _are_elementwise(read_program(equation.function), differentiated)
    if equation.primitive is primitives.broadcast_in_dim_p:
        return equation.invars[0].aval.shape == ()
    return fact_of(equation.primitive).elementwise


def _are_elementwise(program: Program, differentiated: bool) -> bool:
    """Return True if all equations that depend on the inputs are elementwise."""
    depending = set(program.invars)
    for equation in program.eqns:
        if depending.isdisjoint(equation.reads):
            continue
        if not _is_elementwise(equation, differentiated):
            return False
        depending.update(equation.outvars)
    return True


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    if not shape:
        return True
    return len(shape) == len(to) and all(n in (1, m) for n, m in zip(shape, to, strict=True))


def axes_of_entries(equation: Any, operand: int) -> Axes | None:
    """Return the axes of an elementwise primitive; one of size 1 that is broadcast is mixed."""
    return axes.kept(axes.resized)(equation, operand) if is_elementwise(equation) else None


def _entrywise(names: str, **facts: Any) -> dict[str, Fact]:
    """Return the rows of elementwise primitives of which the same is known."""
    return {name: Fact(elementwise=True, axes=axes_of_entries, **facts) for name in names.split()}


_FIRST = Linear.FIRST
_NOTHING = Fact()

# By the name of a primitive of JAX, and by the object of any other.
FACTS: dict[Any, Fact] = {
    # Elementwise: the same value, moved or marked
    **_entrywise(
        "copy device_put layout_constraint name pvary sharding_constraint xla_metadata_value",
        linear=_FIRST, selects=True,
    ),
    **_entrywise("optimization_barrier", selects=True),
    # … choices
    **_entrywise("clamp max min select_n", selects=True),
    # … sums and products
    **_entrywise("convert_element_type neg", linear=_FIRST, even_slopes=True),
    **_entrywise("add add_any sub", linear=Linear.ALL, even_slopes=True),
    **_entrywise("mul", linear=Linear.PRODUCT),
    **_entrywise("div", linear=Linear.QUOTIENT),
    # … functions with slopes of at most about one, and comparisons
    **_entrywise(
        "abs atan eq eq_to erf erfc ge gt le le_to logistic lt lt_to ne tanh", even_slopes=True
    ),
    # … powers, exponentials, trigonometric and hyperbolic functions, and their inverses
    **_entrywise(
        "acos acosh asin asinh atan2 atanh cbrt cos cosh exp exp2 expm1 integer_pow log log1p log2 "
        "one_minus_square polynomial pow rem rsqrt sin sinh sqrt square tan"
    ),
    # … special functions
    **_entrywise(
        "bessel_i0e bessel_i1e digamma erf_inv igamma igamma_grad_a igammac lgamma polygamma "
        "random_gamma_grad regularized_incomplete_beta zeta"
    ),
    # … complex numbers
    **_entrywise("complex conj imag real"),
    # … steps, bits and rounding
    **_entrywise(
        "and ceil clz floor is_finite mulhi nextafter not or population_count reduce_precision "
        "round shift_left shift_right_arithmetic shift_right_logical sign stage tie xor"
    ),
    "custom_jvp_call": Fact(axes=axes_of_entries),  # where its rule is elementwise
    # Rearrangements
    "broadcast_in_dim": Fact(linear=_FIRST, selects=True, axes=axes.broadcast),
    "reshape": Fact(linear=_FIRST, selects=True, axes=axes.reshaped),
    "rev": Fact(linear=_FIRST, selects=True, axes=axes.along("dimensions")),
    "squeeze": Fact(linear=_FIRST, selects=True, axes=axes.removed),
    "tile": Fact(linear=_FIRST, selects=True, axes=axes.kept(axes.resized)),
    "transpose": Fact(linear=_FIRST, selects=True, axes=axes.transposed),
    # Parts, and wholes of parts
    "slice": Fact(linear=_FIRST, selects=True, axes=axes.kept(axes.resized)),
    "dynamic_slice": Fact(linear=_FIRST, selects=True, axes=axes.kept(axes.resized)),
    "dynamic_update_slice": Fact(selects=True, axes=axes.kept(axes.resized)),
    "split": Fact(linear=_FIRST, selects=True, axes=axes.along("axis")),
    "unstack": Fact(linear=_FIRST, selects=True, axes=axes.unstacked),
    "concatenate": Fact(linear=Linear.ALL, selects=True, axes=axes.along("dimension")),
    "stack": Fact(linear=Linear.ALL, selects=True, axes=axes.stacked),
    "pad": Fact(linear=Linear.ALL, selects=True, axes=axes.kept(axes.padded)),
    "gather": Fact(
        linear=_FIRST, selects=True, axes=axes.gathered, matrix=axes.matrix_of_table
    ),
    # Products
    "dot_general": Fact(linear=Linear.PRODUCT, matrix=axes.matrix_of_dot),
    "conv_general_dilated": Fact(linear=Linear.PRODUCT, matrix=axes.matrix_of_kernel),
    "fft": Fact(axes=axes.kept(axes.transformed)),
    # Reductions
    "reduce_sum": Fact(linear=_FIRST, even_slopes=True, axes=axes.removed),
    "reduce_max": Fact(selects=True, axes=axes.removed),
    "reduce_min": Fact(selects=True, axes=axes.removed),
    "reduce_prod": Fact(axes=axes.removed),
    "reduce": Fact(axes=axes.removed),
    # … over windows
    "reduce_window_sum": Fact(linear=_FIRST, even_slopes=True, axes=axes.kept(axes.windowed)),
    "reduce_window_max": Fact(selects=True, axes=axes.kept(axes.windowed)),
    "reduce_window_min": Fact(selects=True, axes=axes.kept(axes.windowed)),
    "reduce_window": Fact(axes=axes.kept(axes.windowed)),
    "select_and_gather_add": Fact(selects=True, axes=axes.kept(axes.windowed)),
    "select_and_scatter_add": Fact(selects=True, axes=axes.kept(axes.windowed)),
    # … over what stands before
    "cumsum": Fact(linear=_FIRST, axes=axes.along("axis")),
    "cummax": Fact(selects=True, axes=axes.along("axis")),
    "cummin": Fact(selects=True, axes=axes.along("axis")),
    "cumprod": Fact(axes=axes.along("axis")),
    "cumlogsumexp": Fact(axes=axes.along("axis")),
    # Orders
    "sort": Fact(selects=True, axes=axes.along("dimension")),
    "top_k": Fact(selects=True, axes=axes.kept(axes.last)),
    "approx_top_k": Fact(selects=True, axes=axes.along("reduction_dimension")),
}  # fmt: skip
