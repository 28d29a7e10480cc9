"""Symbolic differentiation: values and derivatives agree with JAX; operations are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy

from fwdgrad.problems import beale, rosenbrock
from fwdgrad.problems.symbolic import (
    count_operations,
    evaluate,
    expressions,
    symbolic_jacobian,
)

WEIGHT = jnp.array([[1.5, -2.0, 0.25], [0.5, 1.0, -1.0]])

FUNCTIONS = {
    "arithmetic": lambda x: (x[0] + 2 * x[1] - x[2] / 3) * -x,
    "elementary": lambda x: (
        jnp.exp(x) * jnp.sin(x) + jnp.cos(jnp.log(x**2 + 1)) - jnp.sqrt(x**2 + 2)
    ),
    "network": lambda x: jax.nn.sigmoid(WEIGHT @ jnp.tanh(x)) ** 3,
    "softplus": lambda x: jax.nn.softplus(WEIGHT @ x),
    "stacked": lambda x: jnp.stack([jnp.abs(x[0]), jnp.minimum(x[1], x[2]), jnp.log1p(x[0])]),
    "joined": lambda x: jnp.concatenate([x, jnp.expm1(x)]),
    "relu": lambda x: jax.nn.relu(WEIGHT @ x),
    "layout": lambda x: jnp.broadcast_to(x, (2, 3)).T.reshape(-1)[1:5:2] * x.sum(),
    "beale": lambda x: beale(x[:2])[None],
    "rosenbrock": lambda x: rosenbrock(x)[None],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives_agree_with_jax(name, x64):
    function, x = FUNCTIONS[name], jnp.array([0.5, -1.25, 2.0])
    symbols, outputs = expressions(function, 3)
    np.testing.assert_allclose(evaluate(outputs, symbols, x), function(x).ravel(), rtol=1e-13)
    found = evaluate(symbolic_jacobian(symbols, outputs), symbols, x)
    np.testing.assert_allclose(found, jax.jacfwd(function)(x), rtol=1e-12, atol=1e-13)


def test_an_operation_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(NotImplementedError, match="operation sort has no symbolic rule"):
        expressions(jnp.sort, 3)


def test_operations_are_counted_with_and_without_common_subexpressions():
    x = sympy.Symbol("x")
    y = (x + 1) ** 2 + sympy.sin((x + 1) ** 2)  # x + 1 and its square twice
    assert count_operations([y]) == 6
    assert count_operations([y], common_subexpressions=True) == 4
