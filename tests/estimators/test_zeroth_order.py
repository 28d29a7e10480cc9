"""Estimators from values of the loss alone, against formulas written out."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.estimators import mutations
from fwdgrad.tangents.forms import dense
from tests.oracle import normal
from tests.sweeps import thorough_but

DISTRIBUTIONS = [fwdgrad.Rademacher(), fwdgrad.LowRank(), fwdgrad.BlockSparse()]


def quadratic(params, x):
    return jnp.sum((x @ params["w"] + params["b"]) ** 2)


@pytest.fixture
def case(x64):
    params = {"w": normal(0, (3, 4), jnp.float64), "b": normal(1, (4,), jnp.float64)}
    return params, normal(2, (5, 3), jnp.float64)


def tangents_of(distribution, number, key, params, x):
    """Those that either estimator draws, (K, ...) each: it draws as a forward gradient does."""
    forward = fwdgrad.forward_value_and_grad(quadratic, tangents=distribution, num_tangents=number)
    if number == 1:  # a forward gradient takes the key itself
        key = jax.random.split(key, 1)[0]
    leaves = [dense(v) for v in forward.draw(key, params, x).tangents]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


@jax.jit
def values_of(params, drawn, step, x):
    """The loss at θ + h v_k for all k, then at all θ − h v_k."""

    def value(displacement, v):
        return quadratic(jax.tree.map(lambda p, t: p + displacement * t, params, v), x)

    return jnp.concatenate([jax.vmap(partial(value, h))(drawn) for h in (step, -step)])


@pytest.mark.parametrize(
    ("distribution", "number_and_step"),
    thorough_but(
        [*zip(DISTRIBUTIONS, [(1, 0.5), (3, 1e-3), (3, 1e-3)], strict=True)],
        itertools.product(DISTRIBUTIONS, [(1, 0.5), (3, 1e-3)]),
    ),
)
def test_spsa_of_a_quadratic_is_the_forward_gradient(case, key, distribution, number_and_step):
    """A central difference of a quadratic is exact, whatever the step."""
    (params, x), (number, step) = case, number_and_step
    estimate = fwdgrad.spsa_value_and_grad(
        quadratic, tangents=distribution, num_tangents=number, step=step
    )
    value, grad = jax.jit(estimate)(key, params, x)
    drawn = jax.tree.map(np.asarray, tangents_of(distribution, number, key, params, x))
    exact = jax.jit(jax.grad(quadratic))(params, x)
    slopes = sum(np.tensordot(drawn[name], g, g.ndim) for name, g in exact.items())
    expected = {name: np.tensordot(slopes, v, 1) / number for name, v in drawn.items()}
    values = values_of(params, drawn, step, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7), grad, expected
    )
    np.testing.assert_allclose(value, np.mean(values), rtol=1e-12)


@pytest.mark.parametrize(
    ("distribution", "number"),
    thorough_but(
        [*zip(DISTRIBUTIONS, (2, 5, 9), strict=True)], itertools.product(DISTRIBUTIONS, (2, 5, 9))
    ),
)
def test_evolution_goes_by_ranks(case, key, distribution, number):
    params, x = case
    step = 0.1
    drawn = tangents_of(distribution, number, key, params, x)
    losses = np.asarray(values_of(params, drawn, step, x))
    standing = losses.argsort().argsort() / (len(losses) - 1) - 0.5
    weights = standing[:number] - standing[number:]
    expected = jax.tree.map(lambda v: np.tensordot(weights, v, 1) / number, drawn)

    @jax.jit
    def grad(key, params, x, power):
        return fwdgrad.evolution_value_and_grad(
            lambda params, x: quadratic(params, x) ** power,
            tangents=distribution, num_tangents=number, step=step,
        )(key, params, x)[1]  # fmt: skip

    found = grad(key, params, x, 1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)
    # The scale of the loss is no matter.
    jax.tree.map(np.testing.assert_array_equal, found, grad(key, params, x, 0.1))


def test_evolution_stays_where_all_losses_are_equal(key):
    """And mutants that are equally good weigh the same, whichever came first."""

    def grad(fun, **options):
        return jax.jit(fwdgrad.evolution_value_and_grad(fun, **options))(key, jnp.ones(3))[1]

    np.testing.assert_array_equal(grad(lambda w: jnp.sum(w) * 0), 0)
    options = {"tangents": fwdgrad.Rademacher(), "num_tangents": 6}
    found = grad(lambda w: jnp.minimum(*jnp.sign(w[:2] - 1)), **options)
    signs = fwdgrad.forward_value_and_grad(jnp.sum, **options).draw(key, jnp.ones(3)).tangents[0]
    # Of 12 mutants those n are worse that have moved up along both axes. Their mean rank is 11.5 -
    # n/2, that of the others 5.5 - n/2.
    ups = jnp.where(signs[:, 0] == signs[:, 1], signs[:, 0], 0)
    assert 0 < jnp.sum(ups != 0) < 6  # so that n is not half of them
    np.testing.assert_allclose(found, 6 / 11 * (ups[:, None] * signs).mean(0), rtol=1e-6)


def test_a_step_must_be_positive():
    with pytest.raises(ValueError, match="step must be positive and finite; found 0"):
        fwdgrad.spsa_value_and_grad(quadratic, step=0)


@pytest.mark.parametrize("step", ["1", None, jnp.ones(2)])
def test_a_step_must_be_a_number(step):
    with pytest.raises(TypeError, match="step must be a positive number; found"):
        fwdgrad.evolution_value_and_grad(quadratic, step=step)


@pytest.mark.parametrize("step", [0.01, np.float64(0.01), jnp.float32(0.01)])
def test_parameters_are_moved_in_their_own_dtype(key, step):
    seen = []

    def loss(w):
        seen.append(w.dtype)
        return jnp.sum(w)

    fwdgrad.spsa_value_and_grad(loss, step=step)(key, jnp.ones(3, jnp.bfloat16))
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}


SHAPES = {"w": (4000, 4000), "b": (4000,), "v": (4000, 4000), "u": (4000, 10)}


def large_network(params, x):
    hidden = jnp.tanh(jnp.tanh(x @ params["w"] + params["b"]) @ params["v"])
    return jnp.mean((hidden @ params["u"]) ** 2)


@pytest.mark.parametrize("number", thorough_but([8], [1, 8, 32]))
@pytest.mark.parametrize(
    "tangents",
    [fwdgrad.Rademacher(), fwdgrad.BlockSparse(), fwdgrad.LowRank(rank=4, factors="normal")],
)
@pytest.mark.parametrize("make", [fwdgrad.spsa_value_and_grad, fwdgrad.evolution_value_and_grad])
def test_memory_is_two_copies_of_the_parameters_at_any_number(make, tangents, number):
    """Temporary memory of an SGD step that is compiled, but not run."""
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in SHAPES.items()}
    value_and_grad = make(large_network, tangents=tangents, num_tangents=number)

    @partial(jax.jit, donate_argnums=1)
    def step(key, params, x):
        _, grad = value_and_grad(key, params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grad)

    x = jax.ShapeDtypeStruct((8, 4000), "float32")
    memory = step.lower(jax.random.key(0), params, x).compile().memory_analysis()
    copy = sum(4 * p.size for p in jax.tree.leaves(params))
    assert memory.temp_size_in_bytes < 2.2 * copy


@pytest.mark.parametrize("distribution", [fwdgrad.Rademacher(), fwdgrad.LowRank()])
def test_tangents_drawn_again_are_those_that_were_kept(case, key, distribution, monkeypatch):
    params, x = case
    make = partial(fwdgrad.spsa_value_and_grad, quadratic, tangents=distribution, num_tangents=5)
    value, grad = jax.jit(make())(key, params, x)
    monkeypatch.setattr(mutations, "_MOST_KEPT", 0)
    monkeypatch.setattr(mutations, "_LARGEST_SHARE", 0)
    again_value, again = jax.jit(make())(key, params, x)
    np.testing.assert_allclose(again_value, value, rtol=1e-14)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), again, grad)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [8.0, 3e4])
@pytest.mark.parametrize("make", [fwdgrad.spsa_value_and_grad, fwdgrad.evolution_value_and_grad])
def test_a_step_moves_parameters_that_are_large(dtype, size, make, key):
    """The loss is linear, so SPSA's estimate is (c·v) v but for the rounding of θ ± h v."""
    c, theta = jnp.array([1.0, 2.0, -4.0]), jnp.full(3, size, dtype)

    def loss(w):
        return jnp.sum(c * w.astype("float32"))

    tangents = fwdgrad.Rademacher()
    grad = jax.jit(make(loss, tangents=tangents, num_tangents=1))(key, theta)[1]
    v = tangents.sample(jax.random.split(key, 1)[0], theta).astype("float32")
    expected = jnp.sum(c * v) * v
    if make is fwdgrad.evolution_value_and_grad:
        expected = jnp.sign(expected)  # the better of two
    # A displacement of 4 spacings or more is off by half a spacing at most.
    np.testing.assert_allclose(grad.astype("float32"), expected, rtol=1 / 8)


def test_the_step_is_as_given_where_it_moves_parameters(key):
    """Bits of float32 estimates are those of h itself; numbers without end are no measure."""
    w = jnp.array([0.3, -1.7, 20.0, jnp.inf])
    fun = jax.jit(lambda w: jnp.sum(jnp.sin(w[:3])))
    v = fwdgrad.Rademacher().sample(jax.random.split(key, 1)[0], w)
    step = 1e-3
    difference = (fun(w + step * v) - fun(w - step * v)) / (2 * step)
    _, grad = fwdgrad.spsa_value_and_grad(fun, step=step)(key, w)
    np.testing.assert_array_equal(grad, difference * v)
