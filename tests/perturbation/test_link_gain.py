"""The gain of operations on the way of a chained guess, such as gates and norms."""

import jax
import jax.numpy as jnp
import pytest

import fwdgrad
from tests.oracle import normal
from tests.perturbation.all_signs import assert_same
from tests.perturbation.test_feedback import N, estimator


@pytest.mark.parametrize("pool", [None, "maximum"])
def test_a_factor_on_the_way_changes_nothing_for_weights_that_undo_it(pool, key):
    """5 h (b / 5) is h b, and its B learns as much for its size: the gain is measured as 25."""

    def loss(factor):
        def of(params, x, y):
            h = jax.nn.relu(x @ params["a"])
            h = h if pool is None else h.reshape(-1, 3, 2).max(2)
            h = jnp.tanh(factor * h @ params["b"])
            return jnp.mean((h @ params["c"] - y) ** 2)

        return of

    shapes = {"a": (4, 6), "b": (6 if pool is None else 3, 3), "c": (3, 2)}
    params = {name: normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}
    x, y = normal(5, (N, 4)), normal(6, (N, 2))
    guess = [normal(7, shapes["b"]), normal(8, shapes["c"])]
    found = []
    for factor in (1, 5):
        options = {"tangents": fwdgrad.BlockSparse(), "num_tangents": 3}
        value_and_grad = estimator(loss(factor), "corrected", True, **options)
        at = fwdgrad.Guided({**params, "b": params["b"] / factor}, [guess[0] / factor, guess[1]])
        found.append(jax.jit(value_and_grad)(key, at, x, y)[1].guess)
    assert_same([5 * found[1][0], found[1][1]], found[0])


@pytest.mark.parametrize("size", [1.0, 16.0, 1e-3])
def test_a_factor_in_half_precision(size, key):
    """The guess of a float16 loss of any size learns as that in float32."""
    params = {"a": normal(0, (4, 6)), "b": normal(1, (6, 3)), "c": normal(2, (3, 2))}
    x, y = normal(5, (N, 4)), normal(6, (N, 2))

    def loss(params, x, y):
        h = jnp.tanh(5 * jax.nn.relu(x @ params["a"]) @ params["b"] / 5)
        return size * jnp.mean((h @ params["c"] - y) ** 2)

    found = []
    for dtype in (jnp.float32, jnp.float16):
        cast = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), (params, x, y))
        options = {"tangents": fwdgrad.BlockSparse(), "num_tangents": 6}
        value_and_grad = estimator(loss, "corrected", True, **options)
        state = value_and_grad.init(*cast)
        guess = [normal(7, (6, 3)), normal(8, (3, 2))]
        at = fwdgrad.Guided(
            cast[0], [b.astype(s.dtype) for b, s in zip(guess, state.guess, strict=True)]
        )
        found.append(jax.jit(value_and_grad)(key, at, *cast[1:])[1].guess)
    for a, b in zip(*found, strict=True):
        assert jnp.linalg.norm(a - b) < 0.1 * jnp.linalg.norm(a)


def test_a_layer_without_units(key):
    params = {"a": normal(0, (4, 0)), "b": normal(1, (0, 3)), "c": normal(2, (3, 2))}

    def loss(params, x, y):
        return jnp.mean((jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"] - y) ** 2)

    x, y = normal(5, (N, 4)), normal(6, (N, 2))
    value_and_grad = estimator(loss, "corrected", True)
    _, grad = value_and_grad(key, value_and_grad.init(params, x, y), x, y)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grad))


def _gated(params, x):
    return jax.nn.silu(x @ params["a"]) * (x @ params["b"])


def _normalised(params, x):
    h = x @ params["a"]
    h = (h - h.mean(1, keepdims=True)) * jax.lax.rsqrt(h.var(1, keepdims=True) + 1e-5)
    return jnp.tanh(h @ params["b"])


def _enlarged(params, x):
    return jax.nn.relu(4 * jax.nn.relu(x @ params["a"]) @ params["b"])


@jax.custom_jvp
def _steep(x):
    return x


@_steep.defjvp
def _(primals, tangents):
    return primals[0], 5 * tangents[0]


@jax.custom_jvp
def _plain(x):
    return x


@_plain.defjvp
def _(primals, tangents):
    return primals[0], sum(tangents[0] for _ in range(5))


def _by_its_rule(params, x):
    return jax.nn.relu(_steep(jax.nn.relu(x @ params["a"])) @ params["b"])


def _by_repeated_reads(params, x):
    return jax.nn.relu(_plain(jax.nn.relu(x @ params["a"])) @ params["b"])


def _stacked(params, x):
    for i in range(4):
        x = jax.nn.relu(x @ params["table"][i])
    return x


def _strided(params, x):
    image = jax.nn.relu(x @ params["a"]).reshape(-1, 1, 4, 4)
    kernel = params["b"][:2, :1, None, None]
    return jax.lax.conv_general_dilated(image, kernel, (2, 2), "VALID").reshape(-1, 8)


@pytest.mark.parametrize(
    "layers",
    [_gated, _normalised, _enlarged, _by_its_rule, _by_repeated_reads, _stacked, _strided],
)
def test_steps_of_the_full_size_are_stable_whatever_is_on_the_way(layers, key):
    size = 16
    params = {"a": normal(0, (size, size)) / 4, "b": normal(1, (size, size)) / 4}
    outputs = 8 if layers is _strided else size
    params["c"] = normal(2, (outputs, 4)) / outputs**0.5
    params["table"] = normal(3, (4, size, size)) / 3

    def loss(params, x, y):
        return jnp.mean((layers(params, x) @ params["c"] - y) ** 2)

    def minibatch(key):
        kx, ky = jax.random.split(key)
        return jax.random.normal(kx, (32, size)), jax.random.normal(ky, (32, 4))

    options = {"tangents": fwdgrad.BlockSparse(), "num_tangents": 8}
    value_and_grad = estimator(loss, "corrected", True, **options)

    def step(guess, key):
        _, (_, of_guess) = value_and_grad(key, fwdgrad.Guided(params, guess), *minibatch(key))
        return [b - g for b, g in zip(guess, of_guess, strict=True)], None

    first = value_and_grad.init(params, *minibatch(key)).guess
    guess, _ = jax.lax.scan(step, first, jax.random.split(key, 300))
    largest = max(float(jnp.linalg.norm(p)) for p in params.values())
    norms = [float(jnp.linalg.norm(b)) for b in guess]
    assert all(0 < n < 4 * largest for n in norms), (norms, largest)
