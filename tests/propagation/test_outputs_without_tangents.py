"""Equations without tangents of their outputs: comparisons, indices, callbacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from tests.oracle import normal


@pytest.mark.parametrize("num_tangents", [1, 3])
def test_comparisons_and_callbacks_do_not_materialise_factors(num_tangents, key):
    w, x = normal(0, (6, 5)), normal(1, (4, 6))
    seen = []

    def loss(w):
        jax.debug.callback(seen.append, w)
        valid = jnp.all(jnp.isfinite(w)) & jnp.all(jnp.argmax(w, 0) >= 0) & jnp.all(w == w)
        return jnp.sum(jnp.tanh(jnp.where(valid, x @ w, jnp.nan)))

    options = {"tangents": fwdgrad.LowRank(), "num_tangents": num_tangents}
    (leaf,) = fwdgrad.explain(loss, w, **options).leaves
    assert leaf.rank == 1 and leaf.lost == ()
    seen.clear()
    found = jax.jit(fwdgrad.forward_value_and_grad(loss, **options))(key, w)
    jax.effects_barrier()
    assert len(seen) == 1
    plain = fwdgrad.forward_value_and_grad(lambda w: jnp.sum(jnp.tanh(x @ w)), **options)
    expected = plain(key, w)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)
