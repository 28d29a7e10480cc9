"""The interpreter against `jax.jvp` along dense tangents.

Models of libraries, losses without a rule, and functions with derivative rules of their own.
"""

import functools
import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from tests.oracle import ROUNDING, assert_same, normal, push_both_ways
from tests.sweeps import thorough_but

# Each function returns a model and its loss.


def mlp(dtype):
    model = eqx.nn.MLP(6, 3, 16, 2, key=jax.random.key(0), dtype=dtype)
    return model, lambda m, x: jnp.mean(jax.vmap(m)(x[:, :6]) ** 2)


def cnn(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    model = [
        eqx.nn.Conv2d(1, 8, 3, padding="SAME", key=keys[0], dtype=dtype),
        eqx.nn.Conv2d(8, 8, 3, stride=2, padding=1, key=keys[1], dtype=dtype),
        eqx.nn.Linear(8 * 4 * 2, 4, key=keys[2], dtype=dtype),
    ]

    def loss(model, x):
        first, second, last = model

        def each(image):
            hidden = jax.nn.relu(first(image.reshape(1, 8, 4)))
            return last(jax.nn.relu(second(hidden)).reshape(-1))

        return jnp.mean(jax.vmap(each)(x) ** 2)

    return model, loss


def linen_cnn(dtype):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), dtype=dtype, param_dtype=dtype)(x))
            x = nn.relu(nn.Conv(8, (3, 3), strides=2, dtype=dtype, param_dtype=dtype)(x))
            return nn.Dense(4, dtype=dtype, param_dtype=dtype)(x.reshape(len(x), -1))

    net = Net()
    params = net.init(jax.random.key(0), jnp.zeros((1, 8, 4, 1), dtype))
    return params, lambda p, x: jnp.mean(net.apply(p, x.reshape(-1, 8, 4, 1)) ** 2)


def residual_block(dtype):
    keys = jax.random.split(jax.random.key(0), 2)
    model = [eqx.nn.Linear(32, 32, key=k, dtype=dtype) for k in keys]

    def loss(model, x):
        for layer in model:
            x = x + jnp.tanh(jax.vmap(layer)(x))
        return jnp.mean(x**2)

    return model, loss


def layer_norm(dtype):
    model = (
        eqx.nn.LayerNorm(32, dtype=dtype),
        eqx.nn.Linear(32, 16, key=jax.random.key(0), dtype=dtype),
    )
    return model, lambda m, x: jnp.mean(jnp.sin(jax.vmap(lambda v: m[1](m[0](v)))(x)))


def attention(dtype):
    model = eqx.nn.MultiheadAttention(2, 16, key=jax.random.key(0), dtype=dtype)

    def loss(model, x):
        tokens = x.reshape(-1, 2, 16)
        return jnp.mean(jax.vmap(lambda t: model(t, t, t))(tokens) ** 2)

    return model, loss


def lstm(dtype):
    cell = eqx.nn.LSTMCell(8, 12, key=jax.random.key(0), dtype=dtype)

    def loss(cell, x):
        def each(sequence):
            start = (jnp.zeros(12, dtype), jnp.zeros(12, dtype))
            (h, _), hs = lax.scan(lambda c, s: (cell(s, c), c[0]), start, sequence.reshape(4, 8))
            return jnp.sum(h**2) + jnp.mean(hs)

        return jnp.mean(jax.vmap(each)(x))

    return cell, loss


MODELS = [mlp, cnn, linen_cnn, residual_block, layer_norm, attention, lstm]


@pytest.mark.parametrize(
    ("make", "dtype"),
    thorough_but(
        [*zip(MODELS, itertools.cycle(ROUNDING), strict=False)],
        itertools.product(MODELS, ROUNDING),
    ),
)
def test_derivatives_of_models_are_those_of_jvp_and_factors_are_kept(make, dtype, x64):
    rank, num_tangents = {"float32": (1, 1), "float64": (2, 3)}[dtype]
    model, loss = make(jnp.dtype(dtype))
    params, static = fwdgrad.partition(model)
    x = normal(1, (4, 32), dtype)
    found, expected, events, factored = push_both_ways(
        lambda p: loss(fwdgrad.combine(p, static), x), params, rank=rank, num_tangents=num_tangents
    )
    assert_same(found, expected, ROUNDING[dtype])
    assert any(factored) and not any(kept is False for _, kept in events), events


OTHER_LOSSES = {  # name: (loss, is the tangent of w low-rank)
    "power": (lambda w, x: jnp.mean((x @ w) ** 2) + 0.1 * jnp.sum(w**2), True),
    "by a matrix": (lambda w, x: jnp.mean(x @ (w * jnp.cos(w))), False),
    "transcendental": (lambda w, x: jnp.mean(jnp.sin(w) @ x.T[:10]), False),
    "tied, gathered": (lambda w, x: jnp.mean(jnp.tanh(x @ w)[0] @ w[jnp.array([1, 5])].T), True),
    "softmax of weights": (lambda w, x: jnp.mean(x @ jax.nn.softmax(w)), False),
    "low-rank adaptation": (lambda w, x: jnp.mean(jnp.sin(x @ (w @ w.T) @ w)), True),
    "integers": (lambda w, x: jnp.mean((x @ w) * jnp.argmax(x @ w, 1)[:, None]), True),
    "complex": (lambda w, x: jnp.mean(jnp.abs(jnp.fft.fft(x @ w))), True),
    "stop gradient": (lambda w, x: jnp.mean((x @ w) * lax.stop_gradient(x @ w)), True),
    "no parameter": (lambda w, x: jnp.mean(x), False),
    "sort": (lambda w, x: jnp.sort(x @ w)[:, 0].sum(), True),
    "solve": (lambda w, x: jnp.sum(jnp.linalg.solve(w.T @ w + jnp.eye(10), x[0, :10])), True),
}


@pytest.mark.parametrize("name", OTHER_LOSSES)
def test_derivatives_of_other_losses_are_those_of_jvp(name, x64):
    loss, is_factored = OTHER_LOSSES[name]
    x = normal(1, (3, 12), "float64")
    for num_tangents in (1, 2):
        found, expected, _, factored = push_both_ways(
            lambda p: loss(p, x), normal(0, (12, 10), "float64"), num_tangents=num_tangents
        )
        assert_same(found, expected, 1e-10)
        assert factored == [is_factored]


@jax.custom_vjp
def clipped(x):
    return jnp.sin(x)


clipped.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jnp.clip(g, -1, 1),))


def test_a_custom_vjp_function_is_differentiated_without_its_rule(x64):
    w, x = normal(0, (8, 8), "float64"), normal(1, (4, 8), "float64")

    def loss(w, function):
        return 10 * jnp.sum(lax.scan(lambda c, _: (function(c @ w), None), x, None, length=2)[0])

    estimate = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank())
    key = jax.random.key(0)
    for call in (estimate, jax.jit(estimate, static_argnums=2)):
        found, expected = call(key, w, clipped), call(key, w, jnp.sin)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, expected)


def custom_vjp_in_a_mapped_loop(w, x):
    def each(row):
        return lax.while_loop(
            lambda s: jnp.sum(s) < 1, lambda s: s + jnp.abs(clipped(s @ w)) + 0.1, row
        )

    return jnp.mean(jax.vmap(each)(x))


def custom_vjp_by_platform(w, x):
    return jnp.mean(lax.platform_dependent(x @ w, cpu=clipped, default=jnp.cos))


def custom_vjp_in_a_solver(w, x):
    def solve(_, b):
        return clipped(b) / 2

    return jnp.sum(lax.custom_linear_solve(lambda v: 2 * v, clipped(x[0] @ w), solve, solve))


@pytest.mark.parametrize(
    "loss", [custom_vjp_in_a_mapped_loop, custom_vjp_by_platform, custom_vjp_in_a_solver]
)
def test_custom_vjp_functions_in_loops_branches_and_solvers_are_entered(loss, x64, monkeypatch):
    w, x = normal(0, (8, 8), "float64"), normal(1, (8, 8), "float64") / 10
    estimate = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank(), num_tangents=2)
    refusing = fwdgrad.forward_value_and_grad(loss, enter_custom_vjp=False)
    found = estimate(jax.random.key(0), w, x)
    with pytest.raises(TypeError, match=r"custom_vjp and so has no forward-mode rule: clipped at"):
        refusing(jax.random.key(0), w, x)
    monkeypatch.setattr(f"{__name__}.clipped", jnp.sin)
    expected = estimate(jax.random.key(0), w, x)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, expected)


def test_custom_jvp_rules_are_used():
    @jax.custom_jvp
    def double(x):
        return 2 * x

    double.defjvp(lambda primals, tangents: (2 * primals[0], 3 * tangents[0]))
    found, expected, *_ = push_both_ways(lambda w: jnp.sum(double(w @ w)), normal(0, (4, 4)))
    assert_same(found, expected, 1e-6)


@pytest.mark.parametrize("num_tangents", [1, 5])
def test_a_loss_that_branches_in_python_on_a_parameter_is_pushed_forward_as_a_whole(num_tangents):
    """It cannot be traced; outside of `jit` the estimate works, as `jax.jvp` does."""

    def loss(w):
        return jnp.sum(w @ w) if w[0, 0] > 0 else jnp.sum(w)

    w = jnp.eye(4)
    estimate = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.LowRank(), num_tangents=num_tangents
    )
    assert estimate(jax.random.key(0), w)[0] == 4 and estimate(jax.random.key(0), -w)[0] == -4


def vmapped_loop(w, x):
    """Return a loss with a loop of `vmap`: each row has its own last iteration."""

    def each(row):
        return lax.while_loop(lambda s: jnp.sum(s) < 1, lambda s: s + jnp.abs(s @ w) + 0.1, row)

    return jnp.mean(jax.vmap(each)(x) ** 2)


def by_platform(w, x):
    return jnp.mean(lax.platform_dependent(x @ w, cpu=jnp.sin, default=jnp.cos))


def broadcast_weight(w, x):
    return jnp.mean(jnp.sin(jnp.einsum("bi,gij->gbj", x, jnp.broadcast_to(w, (3, 8, 8)))))


def empty_arrays(w, x):
    return jnp.sum(jnp.sin(x[:0] @ w)) + jnp.sum(x @ w[:, :0]) + jnp.sum(x @ w)


def references(w, x):
    reference = jax.new_ref(x @ w)
    reference[...] = reference[...] * 2
    return jnp.mean(reference[...] ** 2)


def frozen_reference(w, x):
    return jnp.sum(jax.ref.freeze(jax.new_ref(jnp.tanh(x @ w))))


def split(w, x):
    first, second = jnp.split(w, 2, axis=1)
    return jnp.mean(jnp.tanh(x @ first) * (x @ second))


UNUSUAL = [vmapped_loop, by_platform, broadcast_weight, empty_arrays, references, split]
UNUSUAL += [frozen_reference]


@pytest.mark.parametrize("loss", UNUSUAL)
def test_derivatives_of_unusual_losses_are_those_of_jvp(loss, x64):
    """Each had a wrong derivative, or none, in an earlier version."""
    w, x = normal(0, (8, 8), "float64"), normal(1, (8, 8), "float64") / 10
    for num_tangents in (1, 2):
        found, expected, *_ = push_both_ways(
            functools.partial(loss, x=x), w, num_tangents=num_tangents
        )
        assert_same(found, expected, 1e-11)


def test_tangents_are_pushed_one_by_one_where_vmap_fails(x64):
    """As for a ragged product, which can be mapped over its first axis alone."""

    def loss(w, x):
        groups = jnp.stack([w, 2 * w])
        return jnp.mean(jnp.sin(lax.ragged_dot(x, groups, jnp.array([3, 5]))))

    w, x = normal(0, (8, 8), "float64"), normal(1, (8, 8), "float64")
    key = jax.random.key(0)
    both = fwdgrad.forward_value_and_grad(loss, num_tangents=2)(key, w, x)
    each = [fwdgrad.forward_value_and_grad(loss)(k, w, x) for k in jax.random.split(key, 2)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *each)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), both, mean)
