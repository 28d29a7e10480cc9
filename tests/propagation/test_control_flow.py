"""Loops and branches: the interpreter enters their bodies, and factors are kept inside."""

import functools

import jax.numpy as jnp
import pytest
from jax import lax

from tests.oracle import assert_same, normal, push_both_ways


def scan_constant(w, x):
    return jnp.mean(lax.scan(lambda c, s: (jnp.tanh(c @ w + s), c), x, jnp.arange(3.0))[1])


def scan_stacked(w, x):
    stack = jnp.stack([w, 2 * w, -w])
    return jnp.mean(lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, stack, reverse=True)[0])


def scan_carried(w, x):
    carry, ys = lax.scan(lambda c, _: (0.5 * c, x @ c), w, None, length=3)
    return jnp.mean(ys**2) + jnp.mean(carry)


def scan_late(w, x):
    """Return a loss whose carry has a tangent from the second iteration on."""
    (a, _), _ = lax.scan(lambda c, _: ((c[1] + 0 * c[0], x @ w), None), (x * 0, x), None, length=3)
    return jnp.mean(a**2)


def loop(w, x):
    def body(state):
        i, x = state
        return i + 1, jnp.tanh(x @ w)

    return jnp.mean(lax.while_loop(lambda s: s[0] < 3, body, (0, x))[1])


def fori_indexed(w, x):
    stack = jnp.stack([w, 2 * w])
    return jnp.mean(lax.fori_loop(0, 2, lambda i, x: jnp.tanh(x @ stack[i]), x))


def cond(w, x):
    return jnp.mean(lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: -x, w) ** 2)


def switch(w, x):
    branches = [lambda w: x @ w, lambda w: jnp.sin(w), lambda w: jnp.zeros_like(w)]
    return sum(jnp.sum(lax.switch(i, branches, w) ** 2) for i in jnp.arange(3))


def nested(w, x):
    def outer(c, _):
        def inner(d, s):
            return lax.cond(s > 1, lambda d: jnp.tanh(d @ w), lambda d: d, d), jnp.sum(d)

        c, sums = lax.scan(inner, c, jnp.arange(3.0))
        return c, sums

    carry, sums = lax.scan(outer, x, None, length=2)
    return jnp.mean(carry) + jnp.mean(sums**2)


@pytest.mark.parametrize(
    "loss",
    [
        scan_constant,
        scan_stacked,
        scan_carried,
        scan_late,
        loop,
        fori_indexed,
        cond,
        switch,
        nested,
    ],
)
@pytest.mark.parametrize("num_tangents", [1, 2])
def test_loops_and_branches_have_the_derivatives_of_jvp_and_keep_factors(loss, num_tangents, x64):
    w, x = normal(0, (8, 8), "float64"), normal(1, (8, 8), "float64")
    found, expected, events, factored = push_both_ways(
        functools.partial(loss, x=x), w, num_tangents=num_tangents
    )
    assert_same(found, expected, 1e-11)
    assert factored == [loss is not scan_carried]
    if loss in (scan_constant, scan_stacked, loop, cond, nested):  # products inside use factors
        assert ("dot_general", True) in events and not any(not kept for _, kept in events)
