"""Operations that only rearrange, scale or add: the tangent keeps its factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fwdgrad.core import joins, layouts, splits
from fwdgrad.core.factored import Factored, stack
from fwdgrad.core.forms import add, dense
from tests.core.oracle import assert_same, normal, push_both_ways

LAYOUTS = {
    "transpose": lambda w: w.T,
    "reshape": lambda w: w.reshape(4, 3, 10).reshape(12, 10),
    "reshape to one column": lambda w: w.reshape(12, 1, 10)[:, 0],
    "broadcast": lambda w: jnp.broadcast_to(w[:, None], (12, 1, 10))[:, 0],
    "slice": lambda w: w[1:11:2],
    "dynamic slice": lambda w: lax.dynamic_slice(w, (jnp.int32(2), jnp.int32(0)), (8, 10)),
    "reverse": lambda w: w[::-1],
    "pad": lambda w: jnp.pad(w, ((1, 2), (0, 0))),
    "pad within and cut": lambda w: lax.pad(w, jnp.zeros((), w.dtype), ((-1, 1, 2), (0, -3, 0))),
    "convert": lambda w: w.astype("float32").astype(w.dtype),
    "negate and scale": lambda w: -2 * w / 3,
    "concatenate": lambda w: jnp.concatenate([w, jnp.ones((2, 10), w.dtype), 3 * w]),
    "stack": lambda w: jnp.stack([w, jnp.ones_like(w), 3 * w], 1)[:, 0],
    "unstack": lambda w: jnp.concatenate(jnp.unstack(w.reshape(3, 4, 10))[::-1]),
    "sum": lambda w: 2 * w + w[:, ::-1] - w[::-1],
    "copy": lambda w: jnp.copy(w),
    "jit": lambda w: jax.jit(lambda w: w.T)(w),
    "checkpoint": lambda w: jax.checkpoint(lambda w: w.T)(w),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_keep_the_factors(name, x64):
    w = normal(0, (12, 10), "float64")
    arrange = LAYOUTS[name]
    x = normal(1, (3, arrange(w).shape[0]), "float64")

    def loss(params):
        return jnp.mean(jnp.sin(x @ arrange(params["w"])))

    found, expected, events, factored = push_both_ways(loss, {"w": w}, num_tangents=2)
    assert_same(found, expected, 1e-6 if name == "convert" else 1e-11)
    assert factored == [True] and ("dot_general", True) in events
    assert not any(kept is False for _, kept in events), events


def test_what_keeps_factors_is_followed_to_find_them():
    """Each primitive with a rule here is one that `splits` looks through, so that they agree."""
    followed = {p.name for p in (*splits._UNCHANGED, *splits._REARRANGED)}
    by_hand = {"mul", "div", "concatenate", "stack", "unstack", "split", "pvary", "add", "sub"}
    ignored = {"stop_gradient", "add_any"}  # no tangent goes through; only of JAX's own sums
    assert set(layouts.RULES) | set(joins.RULES) == followed | by_hand | ignored


def test_a_stack_has_the_rank_of_its_parts():
    """And so each slice of it in a scan; the parts may have different ranks, or no tangent."""
    v = Factored(normal(0, (2, 1, 3, 1)), normal(1, (2, 1, 1, 4)), (3, 4))
    u = Factored(normal(2, (2, 3, 3, 1)), normal(3, (2, 3, 1, 4)), (3, 4))
    for axis in range(3):
        shape = (*(3, 4)[:axis], 3, *(3, 4)[axis:])
        found = stack([v, None, u], axis, shape)
        assert found.rank == 3 and found.shape == shape
        expected = jnp.stack([dense(v), jnp.zeros((2, 3, 4)), dense(u)], 1 + axis)
        np.testing.assert_allclose(dense(found), expected, atol=1e-6)


def test_a_sum_with_a_transpose_stays_factored():
    v = Factored(normal(0, (1, 1, 9, 1)), normal(1, (1, 1, 1, 9)), (9, 9))
    transposed = v.map(lambda f: f.T)
    total = add(v, transposed)
    assert isinstance(total, Factored) and total.rank == 2
    np.testing.assert_allclose(dense(total), dense(v) + dense(transposed), atol=1e-6)
