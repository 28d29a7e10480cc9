"""Which equations treat every entry for itself."""

from typing import Any

from jax.extend.core import primitives

from fwdgrad.core.jaxprs import body_of

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
    )
}  # fmt: skip


def is_elementwise(equation: Any) -> bool:
    """Whether each entry of the outputs depends on the same entry of the operands alone.

    Operands are of the outputs' shape, or broadcast to it: numbers, or of size 1 along some axes.
    """
    shapes = {v.aval.shape for v in equation.outvars}
    if len(shapes) != 1 or not all(_broadcasts(v.aval.shape, *shapes) for v in equation.invars):
        return False
    if (body := body_of(equation)) is not None:
        return all(map(is_elementwise, body.eqns))
    return equation.primitive.name in ELEMENTWISE


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    if not shape:
        return True
    return len(shape) == len(to) and all(n in (1, m) for n, m in zip(shape, to, strict=True))
