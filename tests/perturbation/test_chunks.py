"""Tangents that are pushed forward a few at a time, in a loop, have the same derivatives."""

import contextlib
import dataclasses
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.measurement import StepProgram, sgd_step
from fwdgrad.training import draw_ahead
from fwdgrad.util import backend
from tests.oracle import normal
from tests.perturbation.activity_losses import LOSSES, SPACES, N, mlp

K = 4
FORMS = {"dense": fwdgrad.Rademacher(), "blocks": fwdgrad.BlockSparse()}
LOOPS = {"relu": True, "shared": True, "gated": True, "scanned": False, "convolution": False}


@pytest.fixture
def limit(monkeypatch):
    """Return a function that limits the entries that are pushed together."""

    def set_limit(entries):
        monkeypatch.setattr(backend, "platform", lambda: "cpu")
        monkeypatch.setattr(backend, "CPU", dataclasses.replace(backend.CPU, max_entries=entries))

    return set_limit


def estimator_of(loss, space, tangents, number=K):
    return fwdgrad.forward_value_and_grad(loss, tangents=tangents, num_tangents=number, space=space)


def num_scans(fun, *args):
    return len(re.findall(r"= scan\[", str(jax.make_jaxpr(fun)(*args))))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("space", ["joint", "layerwise, exact last"])
@pytest.mark.parametrize("name", [x for x in LOSSES if x != "equinox_module"])  # not for jit
def test_the_gradient_is_that_of_all_tangents_at_once(name, space, form, limit, key):
    loss, params, args = LOSSES[name]()
    gradients, scans = [], []
    for entries in (None, 1 if form == "dense" else 2 * N):
        limit(entries)
        estimator = estimator_of(loss, SPACES[space], FORMS[form])
        gradients.append(jax.jit(estimator)(key, params, *args))
        if name in LOOPS:
            scans.append(num_scans(estimator, key, params, *args))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, *gradients)
    if name in LOOPS:
        assert (scans[1] > scans[0]) == LOOPS[name]


@pytest.mark.parametrize(
    ("number", "entries", "chunk"), [(6, 12 * N, 3), (7, 12 * N, 1), (6, 24 * N, 6)]
)
def test_a_chunk_divides_the_number_and_keeps_within_the_limit(number, entries, chunk, limit, key):
    params = {"w": normal(0, (3, 4)), "v": normal(1, (4, 4)), "u": normal(2, (4, 1))}

    def loss(params, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ params["w"]) @ params["v"]) @ params["u"])

    limit(entries)
    estimator = estimator_of(loss, fwdgrad.Activities(), fwdgrad.Rademacher(), number)
    text = str(jax.make_jaxpr(estimator)(key, params, normal(3, (N, 3))))
    lengths = [int(n) for n in re.findall(r"scan\[.*?length=(\d+)", text, re.DOTALL)]
    assert (number // chunk in lengths) == (chunk < number)


def test_other_backends_have_no_loop(limit, monkeypatch, key):
    loss, params, args = mlp(jax.nn.relu)
    limit(1)
    scans = []
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(backend, "platform", lambda platform=platform: platform)
        estimator = estimator_of(loss, fwdgrad.Activities(), fwdgrad.Rademacher())
        scans.append(num_scans(estimator, key, params, *args))
    assert scans == [1, 0]


def test_operations_are_those_without_a_loop(limit):
    """XLA counts the body of a loop once; explain, compare and the experiments count it in full."""
    params = {"w": normal(0, (8, 16)), "v": normal(1, (16, 16)), "u": normal(2, (16, 2))}

    def counted(entries):
        def loss(params, x):
            return jnp.mean((jnp.tanh(jnp.tanh(x @ params["w"]) @ params["v"]) @ params["u"]) ** 2)

        limit(entries)
        space = fwdgrad.Activities(layerwise=True, exact_last=True)
        options = {"tangents": fwdgrad.Rademacher(), "num_tangents": 16, "space": space}
        x = normal(3, (4, 8))
        explained = fwdgrad.explain(loss, params, x, **options)
        of_batch = fwdgrad.forward_value_and_grad(lambda p, batch: loss(p, *batch), **options)
        timed = StepProgram(sgd_step(of_batch), params, (x[None],))
        return explained.forward.operations, timed.operations

    assert counted(64) == counted(None)


def test_a_prime_number_just_above_the_limit_is_pushed_at_once(limit, key):
    _, params, args = mlp(jnp.tanh)
    limit(2 * N * 6)  # six tangents of two units
    scans = [
        num_scans(
            estimator_of(mlp(jnp.tanh)[0], SPACES["joint"], FORMS["dense"], k), key, params, *args
        )
        for k in (7, 13)
    ]
    assert scans == [0, 1]


def test_the_head_is_not_differentiated_behind_stop_gradient(limit, key):
    @jax.custom_jvp
    def head(z, h):
        return jnp.sum(z**2) + jnp.sum(h)

    @head.defjvp
    def _(primals, tangents):
        (z, h), (dz, dh) = primals, tangents
        looped = jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, 2 * s[1]), (0, dh))
        return head(z, h), jnp.sum(2 * z * dz) + jnp.sum(looped[1])

    def loss(params, x):
        h = jnp.tanh(x @ params["w"])
        return jnp.mean(jax.vmap(head)(h @ params["u"], jax.lax.stop_gradient(h)))

    params = {"w": normal(0, (3, 4)), "u": normal(1, (4, 2))}
    for entries in (None, 1):
        limit(entries)
        estimator = estimator_of(loss, SPACES["layerwise, exact last"], FORMS["blocks"])
        _, grad = jax.jit(estimator)(key, params, normal(2, (N, 3)))
        assert bool(jnp.isfinite(grad["w"]).all()) and bool(grad["w"].any())


def test_a_loss_that_prints_does_so_once_for_each_example(limit, key):
    loss, params, args = mlp(jax.nn.relu)

    def printing(params, x, y):
        value = loss(params, x, y)
        jax.debug.print("loss {}", value)
        return value

    limit(1)
    estimator = estimator_of(printing, fwdgrad.Activities(), fwdgrad.Rademacher())
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        jax.block_until_ready(jax.jit(estimator)(key, params, *args))
        jax.effects_barrier()
    assert printed.getvalue().count("loss") == N


def test_a_guess_is_learned_from_the_same_residuals(limit, key):
    loss, params, args = mlp(jnp.tanh)
    space = fwdgrad.Activities(layerwise=True, exact_last=True, chained=True)
    found = []
    for entries in (None, 1):
        limit(entries)
        estimator = estimator_of(loss, space, fwdgrad.BlockSparse(), 2).guided()
        state = estimator.init(params, *args)
        state = jax.tree.map(lambda x: x + 0.1, state)
        found.append(jax.jit(estimator)(key, state, *args))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, *found)


def test_a_loop_over_steps_pushes_all_at_once(limit, key):
    loss, params, args = mlp(jnp.tanh)
    limit(1)
    estimator = estimator_of(loss, SPACES["joint"], FORMS["dense"])
    estimate, sources = draw_ahead(estimator, jax.random.split(key, 2), params, *args)
    source = jax.tree.map(lambda x: x[0], sources)
    assert num_scans(lambda params: estimate(source, params, *args), params) == 0
