"""Primitives that rearrange, scale or add keep the factors of a low-rank tangent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fwdgrad.tangents.factored import Factored, stack_factors
from fwdgrad.tangents.forms import add, dense
from tests.oracle import assert_same, normal, push_both_ways

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
    "tile": lambda w: lax.tile(w, (2, 1)),
    "barrier": lambda w: lax.optimization_barrier((w, jnp.ones(3)))[0],
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


def test_a_stack_has_the_rank_of_its_parts():
    """The parts may have different ranks, or no tangent; the result has the largest rank."""
    v = Factored(normal(0, (2, 1, 3, 1)), normal(1, (2, 1, 1, 4)), (3, 4))
    u = Factored(normal(2, (2, 3, 3, 1)), normal(3, (2, 3, 1, 4)), (3, 4))
    for axis in range(3):
        shape = (*(3, 4)[:axis], 3, *(3, 4)[axis:])
        found = stack_factors([v, None, u], axis, shape)
        assert found.rank == 3 and found.shape == shape
        expected = jnp.stack([dense(v), jnp.zeros((2, 3, 4)), dense(u)], 1 + axis)
        np.testing.assert_allclose(dense(found), expected, atol=1e-6)


def test_a_sum_with_a_transpose_keeps_factors():
    v = Factored(normal(0, (1, 1, 9, 1)), normal(1, (1, 1, 1, 9)), (9, 9))
    transposed = v.map(lambda f: f.T)
    total = add(v, transposed)
    assert isinstance(total, Factored) and total.rank == 2
    np.testing.assert_allclose(dense(total), dense(v) + dense(transposed), atol=1e-6)


OUT_OF_BOUNDS = {  # (a weight (12, 10), start) -> rows
    "dynamic_slice": lambda w, i: lax.dynamic_slice(w, (i, jnp.int32(0)), (4, 10)),
    "dynamic_slice that does not wrap": lambda w, i: lax.dynamic_slice(
        w, (i, jnp.int32(0)), (4, 10), allow_negative_indices=False
    ),
    "dynamic_slice of columns": lambda w, i: (
        lax.dynamic_slice(w, (jnp.int32(0), i), (12, 4), allow_negative_indices=(True, False)).T
    ),
    "dynamic_index": lambda w, i: lax.dynamic_index_in_dim(w, i),
    "dynamic_index that does not wrap": lambda w, i: lax.dynamic_index_in_dim(
        w, i, allow_negative_indices=False
    ),
    "dynamic_update_slice": lambda w, i: lax.dynamic_update_slice(w, 2 * w[:4], (i, jnp.int32(0))),
    "dynamic_update_slice that does not wrap": lambda w, i: lax.dynamic_update_slice(
        w, 2 * w[:4], (i, jnp.int32(0)), allow_negative_indices=False
    ),
    **{
        f"gather, {mode}": lambda w, i, mode=mode: w.at[jnp.array([i, 2, i + 1])].get(mode=mode)
        for mode in ("clip", "fill", "promise_in_bounds")
    },
    "gather of columns": lambda w, i: w.at[:, i].get(mode="clip")[None],
    **{
        f"scatter, {mode}": lambda w, i, mode=mode: w.at[jnp.array([i, 2])].add(w[:2], mode=mode)
        for mode in ("clip", "drop")
    },
    "scatter in its place": lambda w, i: w.at[i].set(3 * w[1], mode="clip"),
    "take": lambda w, i: jnp.take(w, jnp.array([i, 1]), axis=0, mode="fill", fill_value=0),
    "take_along_axis": lambda w, i: jnp.take_along_axis(w, jnp.full((3, 10), i), 0, mode="clip"),
    "roll": lambda w, i: jnp.roll(w, i, 0),
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_indices_out_of_bounds_select_the_same_entries_of_the_tangent(name, x64):
    """A primitive clamps, drops or fills; the public function of its name may wrap."""
    w = normal(0, (12, 10), "float64")
    starts = [0, 3] if "promise" in name else [-30, -6, -1, 3, 11, 40]

    def loss(params):
        total = 0.0
        for i in starts:
            part = OUT_OF_BOUNDS[name](params["w"], jnp.int32(i))
            part = jnp.nan_to_num(part) if name == "gather, fill" else part
            x = normal(i + 100, (3, part.shape[0]), "float64")
            total = total + jnp.mean(jnp.sin(x @ part))
        return total

    found, expected, _, factored = push_both_ways(loss, {"w": w}, num_tangents=2)
    assert_same(found, expected, 1e-11)
    assert factored == [True] or not name.startswith("dynamic_slice")
