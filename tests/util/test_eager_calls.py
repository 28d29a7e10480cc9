"""Eager calls: no loop is compiled twice, and the loss may read Python state, as in `jax.grad`."""

import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.propagation.jaxprs import evaluate
from fwdgrad.util import programs
from fwdgrad.util.jax_internals import Equation
from tests.oracle import normal

pytestmark = pytest.mark.thorough

COMPILED = []


def _record(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(event)


@pytest.fixture(autouse=True)
def compiled():
    jax.monitoring.register_event_duration_secs_listener(_record)
    yield COMPILED
    jax.monitoring.unregister_event_duration_listener(_record)


PARAMS = {
    "w": normal(0, (3, 4)),
    "b": normal(1, (4,)),
    "q": 0.3 * normal(2, (4, 4)),
    "u": normal(3, (4, 2)),
}
ARGS = (normal(4, (5, 3)), normal(5, (5, 2)))


def looped_by_scan(params, x, y):
    """Return the loss of `looped` without `while_loop`, which has no reverse mode."""
    hidden = jax.nn.relu(x @ params["w"] + params["b"])
    hidden, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["q"]), None), hidden, length=2)
    hidden = jax.lax.cond(x[0, 0] > 0, lambda h: 2 * h, lambda h: h, hidden)
    return jnp.mean((hidden @ params["u"] - y) ** 2)


def looped(params, x, y):
    """Return a loss with loops and branches whose functions are made anew in each call."""
    scale, _ = jax.lax.scan(lambda c, _: (c * 0.5, None), 2.0, length=2)
    hidden = jax.nn.relu(x @ params["w"] + params["b"])
    hidden, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["q"]), None), hidden, length=2)
    hidden = jax.lax.fori_loop(0, jnp.int32(2), lambda i, h: jnp.sin(h) * scale, hidden)
    hidden = jax.lax.cond(x[0, 0] > 0, lambda h: 2 * h, lambda h: h, hidden)
    return jnp.mean((hidden @ params["u"] - y) ** 2)


def forward(**options):
    return lambda fun: fwdgrad.forward_value_and_grad(fun, **options)


ESTIMATORS = {
    "normal": forward(),
    "low rank": forward(tangents=fwdgrad.LowRank(), num_tangents=2),
    "chunks": forward(num_tangents=5, chunk_size=2),
    "projection": forward(num_tangents=2, aggregation=fwdgrad.Projection()),
    "blocks": forward(num_tangents=2, tangents=fwdgrad.BlockSparse()),
    "layerwise": forward(space=fwdgrad.Weights(layerwise=True)),
    "exact last": forward(space=fwdgrad.Weights(exact_last=True)),
    "activities": forward(space=fwdgrad.Activities(layerwise=True, exact_last=True)),
    "spsa": fwdgrad.spsa_value_and_grad,
    "spsa, three": lambda fun: fwdgrad.spsa_value_and_grad(fun, num_tangents=3),
    "evolution": fwdgrad.evolution_value_and_grad,
}
REVERSE = {
    "backprop": fwdgrad.backprop_value_and_grad,
    "checkpointed": lambda fun: fwdgrad.backprop_value_and_grad(fun, checkpoint=True),
}
CASES = [
    *((name, make, looped) for name, make in ESTIMATORS.items()),
    *((name, make, looped_by_scan) for name, make in REVERSE.items()),
]


@pytest.mark.parametrize(("name", "make", "loss"), CASES, ids=[name for name, *_ in CASES])
def test_later_calls_compile_nothing_and_agree_with_jit(name, make, loss, key, compiled):
    value_and_grad = make(loss)
    expected = jax.jit(value_and_grad)(key, PARAMS, *ARGS)
    for _ in range(2):
        found = value_and_grad(key, PARAMS, *ARGS)
    keys = list(jax.random.split(key, 3))
    compiled.clear()
    for k in keys:
        value_and_grad(k, PARAMS, *ARGS)
    assert not compiled
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
    )


@pytest.mark.parametrize("name", ["spsa", "chunks"])
def test_later_calls_under_vmap_compile_nothing(name, key, compiled):
    value_and_grad = jax.vmap(ESTIMATORS[name](looped), (0, None, None, None))
    for i in range(4):
        if i == 2:
            compiled.clear()
        value_and_grad(jax.random.split(jax.random.fold_in(key, i), 2), PARAMS, *ARGS)
    assert not compiled


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from Linux's /proc")
@pytest.mark.parametrize("name", ["chunks", "spsa, three"])
def test_memory_does_not_grow_with_calls(name, key):
    """A program that is compiled anew takes at least 1.5 MiB a call."""
    value_and_grad = ESTIMATORS[name](jax.jit(looped))
    for _ in range(5):
        value_and_grad(key, PARAMS, *ARGS)
    gc.collect()
    before = resident_bytes()
    for _ in range(10):
        value_and_grad(key, PARAMS, *ARGS)
    gc.collect()
    assert resident_bytes() - before < 10 * 0.1 * 2**20


def test_python_state_is_read_in_each_call(key):
    """A function whose globals have changed gets another program: the cache compares equations."""
    state = {"scale": 1.0, "offset": jnp.zeros(3), "branch": False, "calls": 0}

    def loss(w):
        state["calls"] += 1
        shifted = jnp.cos(w) if state["branch"] else w + state["offset"]
        return jax.lax.scan(lambda c, x: (c + state["scale"] * x**2, None), 0.0, shifted)[0]

    w = jnp.arange(3.0)
    for make in (fwdgrad.spsa_value_and_grad, forward(num_tangents=3, chunk_size=1)):
        value_and_grad = make(loss)
        for change in ({}, {"scale": -0.0}, {"scale": 2.0}, {"offset": jnp.ones(3)}, {"branch": 1}):
            state.update(change)
            calls = state["calls"]
            found, _ = value_and_grad(key, w)
            assert state["calls"] > calls
            np.testing.assert_allclose(found, loss(w), rtol=1e-4, atol=1e-5)
        state.update(scale=1.0, offset=jnp.zeros(3), branch=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x * 0.0, lambda x: x * -0.0),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x * x, lambda x: x + x),
        (lambda x: jnp.sum(x, 0), lambda x: jnp.sum(x, 1)),
        (lambda x: x - x.T, lambda x: x.T - x),
        (lambda x: jax.jit(jnp.sin)(x), lambda x: jax.jit(jnp.cos)(x)),
        (lambda x: x + np.eye(2, dtype="float32"), lambda x: x + np.ones((2, 2), "float32")),
        (jax.nn.relu, jax.nn.silu),
    ],
)
def test_different_equations_are_different_programs(one, other):
    x = jnp.array([[1.0, 2.0], [-3.0, 4.0]])

    def turns(fun):
        return programs.map_over(fun, jnp.stack([x, 2 * x]))

    for fun in (one, other, one):
        expected = jnp.stack([fun(x), fun(2 * x)])
        np.testing.assert_array_equal(turns(lambda x, fun=fun: fun(x)), expected)
        np.testing.assert_array_equal(jnp.signbit(turns(fun)), jnp.signbit(expected))


def test_functions_with_different_jvp_rules_have_their_own_derivatives(key):
    """Although both compute the same value, so that their equations are equal without the rules."""

    def with_slope(slope):
        @jax.custom_jvp
        def fun(x):
            return x * 1.0

        fun.defjvp(lambda xs, ts: (fun(xs[0]), slope * ts[0]))
        return fun

    for slope in (1.0, 5.0, 1.0):
        fun = with_slope(slope)
        assert (
            jax.jvp(
                lambda x, f=fun: jnp.sum(programs.map_over(f, x)), (jnp.ones(2),), (jnp.ones(2),)
            )[1]
            == 2 * slope
        )
        value_and_grad = fwdgrad.forward_value_and_grad(
            lambda x, f=fun: jax.lax.map(f, x).sum(), tangents=fwdgrad.Rademacher()
        )
        _, grad = value_and_grad(key, jnp.ones(1))
        np.testing.assert_allclose(grad, slope)


def test_the_cache_is_bounded():
    assert programs._compiled.cache_info().maxsize == programs._MAX_PROGRAMS < 100


def test_disable_jit_runs_each_iteration_in_python():
    turns = []
    with jax.disable_jit():
        programs.map_over(lambda x: turns.append(x) or x, jnp.arange(3))
    assert [int(x) for x in turns] == [0, 1, 2]


def test_evaluate_drops_values_after_their_last_use():
    """Otherwise eager reverse mode would keep all residuals to the end of a call."""

    def chain(x):
        for _ in range(5):
            x = jnp.tanh(x)
        return x

    jaxpr = jax.make_jaxpr(chain)(1.0).jaxpr
    values = {jaxpr.invars[0]: jnp.float32(0.5)}
    evaluate([*map(Equation, jaxpr.eqns)], values, kept=jaxpr.outvars)
    assert list(values) == jaxpr.outvars
    np.testing.assert_allclose(values[jaxpr.outvars[0]], chain(0.5), rtol=1e-6)
