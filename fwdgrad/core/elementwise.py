"""Which equations treat every entry for itself, and its tangent too."""

from typing import Any

from jax.extend.core import primitives

from fwdgrad.core.jaxprs import body_of, custom_jvp_rule, variables

ELEMENTWISE = {
    p.name
    for p in (
        primitives.add_p, primitives.sub_p, primitives.mul_p, primitives.div_p, primitives.neg_p,
        primitives.max_p, primitives.min_p, primitives.abs_p, primitives.sign_p,
        primitives.exp_p, primitives.log_p, primitives.log1p_p, primitives.expm1_p,
        primitives.tanh_p, primitives.logistic_p, primitives.erf_p, primitives.sin_p,
        primitives.cos_p, primitives.sqrt_p, primitives.rsqrt_p, primitives.square_p,
        primitives.integer_pow_p, primitives.pow_p, primitives.select_n_p, primitives.copy_p,
        primitives.convert_element_type_p, primitives.add_jaxvals_p,
        primitives.gt_p, primitives.lt_p, primitives.ge_p, primitives.le_p, primitives.eq_p,
        primitives.ne_p, primitives.and_p, primitives.or_p, primitives.not_p,
        primitives.is_finite_p,
    )
} | {"pvary"}  # fmt: skip


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
    return equation.primitive.name in ELEMENTWISE


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
