"""Factors of low-rank tangents: their algebra, and the memory of a compiled step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fwdgrad
from fwdgrad.tangents.factored import Factored
from fwdgrad.tangents.forms import dense, weighted_sum
from tests.examples import examples
from tests.sweeps import thorough_but

axes = st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), min_size=0, max_size=4)


@examples(8)
@given(axes, st.sampled_from([1, 2, 11]), st.integers(1, 3))
def test_dense_arrays_and_weighted_sums_are_those_of_the_factors(axes, rank, num_tangents):
    rng = np.random.default_rng(0)
    shape = tuple(n for n, _, _ in axes)
    left = rng.normal(size=(num_tangents, rank, *(n if a else 1 for n, a, _ in axes)))
    right = rng.normal(size=(num_tangents, rank, *(n if b else 1 for n, _, b in axes)))
    tangent = Factored(jnp.asarray(left), jnp.asarray(right), shape)
    expected = np.broadcast_to((left * right).sum(1), (num_tangents, *shape))
    weights = rng.normal(size=num_tangents)

    @jax.jit
    def both(tangent, weights):
        forms = tangent, dense(tangent)
        return tangent.dense(), [weighted_sum(form, weights, jnp.float32) for form in forms]

    materialised, sums = both(tangent, jnp.asarray(weights))
    np.testing.assert_allclose(materialised, expected, atol=1e-5)
    for found in sums:
        np.testing.assert_allclose(found, np.tensordot(weights, expected, 1), atol=1e-5)


def deep_loss(params, x):
    for w in params:
        x = jax.nn.relu(x @ w)
    return jnp.mean(x**2)


def compiled_step(value_and_grad, params, x):
    def step(key, params, x):
        _, grad = value_and_grad(key, params, x)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grad)

    return jax.jit(step, donate_argnums=1).lower(jax.random.key(0), params, x).compile()


def arrays_of_size(text, size):
    """Return the instructions of a compiled entry computation whose result has `size` entries."""
    entry = text[text.index("\nENTRY") :]
    made = re.findall(r"^ +(?:ROOT )?%(\S+) = \w+\[([\d,]+)\]\S* (\S+?)\(", entry, re.MULTILINE)
    return [
        (name, operation)
        for name, shape, operation in made
        if np.prod([int(n) for n in shape.split(",")]) == size and operation != "parameter"
    ]


@pytest.mark.parametrize("num_tangents", [1, 4])
def test_a_step_makes_no_array_of_the_size_of_a_weight_but_the_updated_weight(num_tangents, on_cpu):
    """In the compiled step of an MLP, one such array for each weight."""
    width, depth = 128, 3
    params = [jnp.ones((width, width))] * depth
    value_and_grad = fwdgrad.forward_value_and_grad(
        deep_loss, tangents=fwdgrad.LowRank(), num_tangents=num_tangents
    )
    compiled = compiled_step(value_and_grad, params, jnp.ones((8, width)))
    made = arrays_of_size(compiled.as_text(), width * width)
    assert [operation for _, operation in made] == ["fusion"] * depth, made
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * width * width  # not even one
    # And before compilation the pushforward, all but the estimate itself, has none.
    jaxpr = jax.make_jaxpr(value_and_grad.draw)(jax.random.key(0), params, jnp.ones((8, width)))
    assert not [v for e in jaxpr.eqns for v in e.outvars if v.aval.size >= width * width]


@pytest.mark.parametrize(
    ("batch_size", "bound"), thorough_but([(64, 0.15)], [(64, 0.15), (1024, 0.10)])
)
def test_a_deep_network_takes_a_fraction_of_the_memory_of_backprop(batch_size, bound, on_cpu):
    """Temporary memory of a step at depth 100 and width 1024, as in the paper."""
    params = [jax.ShapeDtypeStruct((1024, 1024), "float32")] * 100
    x = jax.ShapeDtypeStruct((batch_size, 1024), "float32")
    low_rank = fwdgrad.forward_value_and_grad(deep_loss, tangents=fwdgrad.LowRank())
    backprop = fwdgrad.backprop_value_and_grad(deep_loss)

    def step(value_and_grad, key, params, x):
        _, grad = value_and_grad(key, params, x)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grad)

    found, reference = (
        jax.jit(lambda *a, f=f: step(f, *a), donate_argnums=1)
        .lower(jax.random.key(0), params, x).compile().memory_analysis().temp_size_in_bytes
        for f in (low_rank, backprop)
    )  # fmt: skip
    assert found < bound * reference, (found, reference)
