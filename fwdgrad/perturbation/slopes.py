"""Operations whose derivative is known to be small: they move entries, or have slopes up to one."""

from collections.abc import Sequence

from jax.extend.core import primitives

from fwdgrad.perturbation.sites import Variable
from fwdgrad.propagation.custom_functions import custom_jvp_rule
from fwdgrad.propagation.facts import fact_of
from fwdgrad.util.jax_internals import Equation, read_program


def has_slopes_below_one(
    equations: Sequence[Equation], starts: Sequence[Variable], number: int
) -> bool:
    """Return True if no entry of the starts has a part in two of a result, or one much above 1.

    Args:
      equations: those that the starts reach, and others.
      starts: variables.
      number: of the equations that are looked at; the others only read.
    """
    made = set(starts)
    for i, equation in enumerate(equations):
        read = [v for v in equation.reads if v in made]
        if not read or not equation.is_inexact:
            continue
        if len(read) > 1 or (i < number and not _is_small(equation, read[0])):
            return False
        made -= {*read}  # a second reader would make a second part
        if any(v in e.reads for v in read for e in equations[i + 1 :] if e.is_inexact):
            return False
        made.update(equation.outvars if i < number else ())
    return True


def _is_small(equation: Equation, read: Variable) -> bool:
    """Return True if the derivative by an operand is small, or moves entries alone."""
    if equation.primitive is primitives.custom_jvp_call_p:
        rule = read_program(custom_jvp_rule(equation))
        tangents = rule.invars[len(equation.invars) :]
        return has_slopes_below_one(rule.eqns, tangents, len(rule.eqns))
    if equation.function is not None:
        body = read_program(equation.function)
        inner = [v for v, x in zip(body.invars, equation.invars, strict=True) if x is read]
        return has_slopes_below_one(body.eqns, inner, len(body.eqns))
    fact = fact_of(equation.primitive)
    if fact.elementwise:
        shapes = {v.aval.shape for v in (*equation.reads, *equation.outvars)}
        return (fact.selects or fact.even_slopes) and len(shapes) == 1
    return equation.primitive in _REARRANGING


_REARRANGING = (
    primitives.reshape_p, primitives.rev_p, primitives.slice_p, primitives.squeeze_p,
    primitives.transpose_p,
)  # fmt: skip
