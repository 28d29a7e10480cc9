"""Assertions on a problem of any kind."""

import jax
import jax.numpy as jnp

from fwdgrad import check_examples_independent
from fwdgrad.training import first_examples


def check_problem(problem, key):
    """Assert that parameters are floats alone, scores are of examples, and a gradient descends."""
    params = problem.init(key)
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(params))
    sets = [first_examples(x, 8) for x in (problem.train, problem.valid, problem.test)]
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), part) for part in sets]
    assert shapes[0] == shapes[1] == shapes[2]
    scores = jax.eval_shape(problem.scores, params, sets[0])
    assert {x.shape for x in scores.values()} == {(8,)}
    assert jnp.issubdtype(scores["loss"].dtype, jnp.floating)
    check_examples_independent(problem.loss, params, sets[0])

    @jax.jit
    def descended(params, batch):
        value, grad = jax.value_and_grad(problem.loss)(params, batch)
        norm = sum(jnp.sum(x**2) for x in jax.tree.leaves(grad))
        step = jax.tree.map(lambda w, g: w - 1e-3 * value / norm * g, params, grad)
        return problem.loss(step, batch) / value

    assert 0.998 < descended(params, sets[0]) < 0.9999  # 0.999 to first order
