"""Memory of eager calls: outputs that nothing reads are dropped with their tangents."""

import jax
import jax.numpy as jnp

from fwdgrad.propagation.interpreter import Context, propagate_equations
from fwdgrad.propagation.jaxprs import evaluate
from fwdgrad.util.jax_internals import read_program


def test_values_and_tangents_that_nothing_reads_are_dropped_at_once():
    """Otherwise an eager call would keep them to its end."""
    program = read_program(jax.make_jaxpr(lambda x: jnp.linalg.qr(jnp.sin(x))[1])(jnp.eye(3)))
    assert any(v not in program.outvars for v in program.eqns[-1].outvars)
    x, tangents = jnp.eye(3) + 0.1, jnp.ones((1, 3, 3))
    values, duals = program.environment([x]), {program.invars[0]: tangents}
    propagate_equations(Context(), program.eqns, values, duals, program.outvars)
    assert [*values] == [*duals] == program.outvars
    values = program.environment([x])
    evaluate(program.eqns, values, kept=program.outvars)
    assert [*values] == program.outvars
