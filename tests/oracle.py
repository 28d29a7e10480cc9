"""The oracle of propagation: `jax.jvp` of the whole function along dense tangents."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path

import fwdgrad
from fwdgrad.propagation.pushforward import Pushforward, trace
from fwdgrad.propagation.record import recording
from fwdgrad.tangents.factored import Factored
from fwdgrad.tangents.forms import dense, is_structured

ROUNDING = {"float32": 2e-4, "float64": 1e-11}


def normal(seed, shape, dtype="float32"):
    """Return an array of standard normal entries from NumPy's generator of this seed."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def draw(pushforward, params, distribution, num_tangents, key):
    """Return K tangents of each leaf of `params`, sampled as an estimator samples them."""
    if hasattr(distribution, "sample_together"):
        sample = distribution.sample_together(key, params, pushforward.splits, num_tangents)
        return jax.tree.leaves(sample, is_leaf=is_structured)
    keys = jax.random.split(key, num_tangents)
    sample = jax.vmap(lambda k: distribution.sample(k, params, pushforward.splits))(keys)
    return jax.tree.leaves(sample, is_leaf=is_structured)


def push_both_ways(fun, params, *, rank=1, num_tangents=1, distribution=None):
    """Push one sample of tangents forward by the library and by `jax.jvp`.

    Returns:
      (found, expected, events, is_factored): value and derivatives by each, the set of
      (primitive, is_structure_kept) from the record, and a boolean for each leaf.
    """
    leaves, structure = jax.tree.flatten(params)
    names = [f"params{jax.tree_util.keystr(path)}" for path, _ in tree_leaves_with_path(params)]
    traced = trace(lambda leaves: (fun(jax.tree.unflatten(structure, leaves)), None), leaves)
    pushforward = Pushforward(traced, leaves, names)
    distribution = distribution or fwdgrad.LowRank(rank=rank)
    tangents = draw(pushforward, params, distribution, num_tangents, jax.random.key(3))

    def found(tangents):
        return pushforward(tangents, num_tangents=num_tangents)[:2]

    def expected(tangents):
        directions = jax.tree.unflatten(structure, [dense(v) for v in tangents])
        derivatives = jax.vmap(lambda v: jax.jvp(fun, (params,), (v,))[1])
        return fun(params), derivatives(directions)

    with recording() as record:
        both = jax.jit(lambda v: (found(v), expected(v)))(tangents)
    events = {
        (event.partition(" at ")[0], kept)
        for kept, of_names in ((True, record.used), (False, record.lost))
        for of_name in of_names.values()
        for event in of_name
    }
    return *both, events, [isinstance(v, Factored) for v in tangents]


def assert_same(found, expected, rounding):
    """Assert that value and derivatives agree to rounding, relative to the largest derivative."""
    (value, derivatives), (expected_value, expected_derivatives) = found, expected
    np.testing.assert_allclose(value, expected_value, rtol=rounding, atol=rounding)
    scale = max(1e-3, np.abs(expected_derivatives).max())
    np.testing.assert_allclose(derivatives, expected_derivatives, atol=rounding * scale, rtol=0)
    assert np.asarray(derivatives).dtype == np.asarray(expected_derivatives).dtype
