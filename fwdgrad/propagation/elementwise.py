"""Which equations treat every entry for itself, and its tangent too."""

from typing import Any

from jax.extend.core import primitives

from fwdgrad.propagation.jaxprs import body_of, custom_jvp_rule, variables
from fwdgrad.util.jax_internals import jax_name

# By name, since not every version of JAX has all of them, and some are not public. A test holds
# this list against the derivatives of every primitive that JAX has.
ELEMENTWISE = frozenset(
    {
        # sums, products, powers
        "add", "add_any", "sub", "mul", "div", "rem", "neg", "square", "integer_pow", "pow",
        "sqrt", "rsqrt", "cbrt", "one_minus_square", "polynomial", "mulhi",
        # exponentials, trigonometric and hyperbolic functions, and their inverses
        "exp", "exp2", "expm1", "log", "log1p", "log2", "logistic", "sin", "cos", "tan", "asin",
        "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
        # special functions
        "erf", "erfc", "erf_inv", "lgamma", "digamma", "polygamma", "igamma", "igammac",
        "igamma_grad_a", "random_gamma_grad", "regularized_incomplete_beta", "bessel_i0e",
        "bessel_i1e", "zeta",
        # steps, choices and comparisons
        "abs", "sign", "floor", "ceil", "round", "max", "min", "clamp", "select_n", "nextafter",
        "is_finite", "eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to",
        # integers
        "and", "or", "xor", "not", "shift_left", "shift_right_logical", "shift_right_arithmetic",
        "population_count", "clz",
        # complex numbers
        "real", "imag", "conj", "complex",
        # the same value, or one rounded
        "copy", "name", "optimization_barrier", "convert_element_type", "reduce_precision",
        "device_put", "sharding_constraint", "layout_constraint", "xla_metadata_value", "stage",
        "tie", "pvary",
    }
)  # fmt: skip


def is_elementwise(equation: Any) -> bool:
    """Whether each entry of the outputs depends on the same entry of the operands alone.

    Operands are of the outputs' shape, or broadcast to it: numbers, or of size 1 along some axes.
    Of a custom_jvp the rule decides, not what the function computes.
    """
    return _is_elementwise(equation, differentiated=True)


def _is_elementwise(equation: Any, differentiated: bool) -> bool:
    shapes = {v.aval.shape for v in equation.outvars}
    if len(shapes) != 1 or not all(_broadcasts(v.aval.shape, *shapes) for v in equation.invars):
        return False
    if differentiated and equation.primitive is primitives.custom_jvp_call_p:
        return _are_elementwise(custom_jvp_rule(equation).jaxpr, differentiated=False)
    if (body := body_of(equation)) is not None:
        return _are_elementwise(body, differentiated)
    if equation.primitive is primitives.broadcast_in_dim_p:
        return equation.invars[0].aval.shape == ()
    return jax_name(equation) in ELEMENTWISE


def _are_elementwise(jaxpr: Any, differentiated: bool) -> bool:
    """All equations that depend on the inputs; the others make constants."""
    depending = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if depending.isdisjoint(variables(equation.invars)):
            continue
        if not _is_elementwise(equation, differentiated):
            return False
        depending.update(equation.outvars)
    return True


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    if not shape:
        return True
    return len(shape) == len(to) and all(n in (1, m) for n, m in zip(shape, to, strict=True))
