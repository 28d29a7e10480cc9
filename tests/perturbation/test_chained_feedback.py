"""Chained feedback: the guess at a layer is made of the guess at the next one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from tests.oracle import normal
from tests.perturbation import activity_losses
from tests.perturbation.activity_losses import LOSSES
from tests.perturbation.all_signs import assert_same, averaged_over_signs, exact
from tests.perturbation.test_feedback import (
    SIZES,
    TANGENTS,
    N,
    by_hand,
    close,
    deltas_by_hand,
    estimator,
    network,
)
from tests.sweeps import thorough_but


def scale(read, noise):
    """Return Σ ‖c_n‖² + Σ R_n ‖c_n‖⁴ / Σ ‖c_n‖², for c (N, …) and R (N,)."""
    squares = np.sum(np.asarray(read).reshape(len(read), -1) ** 2, 1)
    return squares.sum() + np.sum(noise * squares**2) / squares.sum()


def as_feedback(arrays):
    """Return the matrices from a layer's derivatives to the one before, of arrays like weights."""
    return [b.T[:, None] for b in arrays]


@pytest.mark.parametrize("feedback", ["alone", "fixed"])
def test_chained_feedback_as_by_hand(feedback, key):
    """Fixed it is feedback alignment: a random matrix in the place of each layer's weights."""
    loss, params, (x, y) = network()
    value_and_grad = estimator(loss, feedback, chained=True, num_tangents=3)
    state = value_and_grad.init(params, x, y)
    assert [a.shape for a in state.guess] == [(6, 3), (3, 2)]
    assert all(a.any() for a in state.guess) == (feedback == "fixed")
    for a in state.guess:
        assert jnp.abs(a).max() * len(a) ** 0.5 <= 1
    guess = [normal(20, (6, 3)), normal(21, (3, 2))]
    value, grad = jax.jit(value_and_grad)(key, fwdgrad.Guided(params, guess), x, y)
    close(value, loss(params, x, y))
    close(grad.params, by_hand(params, as_feedback(guess), x, y, chained=True))


def test_chained_feedback_corrects_without_bias():
    """The mean over all signs is the gradient, and a feedback's is that of least mean squares."""
    loss, params, (x, y) = network()
    x, y = x[: activity_losses.N], y[: activity_losses.N]
    guess = [normal(20, (6, 3)), normal(21, (3, 2))]
    value_and_grad = estimator(loss, "corrected", chained=True, tangents=fwdgrad.Rademacher())
    guided = fwdgrad.Guided(params, guess)
    _, (grad, of_guess) = averaged_over_signs(value_and_grad, guided, (x, y))
    close(grad, jax.grad(loss)(params, x, y))

    def at_hidden(noise):
        (w, b), (w2, b2), (w3, b3) = params
        hidden = jax.nn.relu(jax.nn.relu(x @ w + b + noise[0]) @ w2 + b2 + noise[1])
        return -jax.nn.log_softmax(hidden @ w3 + b3)[jnp.arange(len(y)), y].sum()

    exact = jax.grad(at_hidden)([jnp.zeros((len(x), n)) for n in SIZES[1:-1]])
    (_, *reads), _ = deltas_by_hand(params, as_feedback(guess), x, y, chained=True)
    for b, read, delta, found in zip(guess, reads, exact, of_guess, strict=True):
        missing = np.where(delta != 0, delta - read @ b.T, 0)
        close(found, -missing.T @ read / scale(read, np.sum(delta != 0, 1)))


@pytest.mark.parametrize("tangents", TANGENTS.values())
def test_the_weights_as_chained_feedback_are_exact(tangents, key):
    """It is backpropagation then, and nothing is left for the noise."""
    loss, params, args = network()
    value_and_grad = estimator(loss, "corrected", chained=True, tangents=tangents, num_tangents=2)
    guess = [weight for weight, _ in params[1:]]
    _, (grad, of_guess) = jax.jit(value_and_grad)(key, fwdgrad.Guided(params, guess), *args)
    close(grad, jax.grad(loss)(params, *args))
    close(of_guess, jax.tree.map(jnp.zeros_like, guess))


def test_chained_feedback_learns_what_no_feedback_of_the_error_can():
    """Which units of the second layer are on differs by example, and it knows that."""
    loss, params, _ = network()
    left = {}
    for chained in (False, True):
        value_and_grad = estimator(
            loss, "corrected", chained, tangents=fwdgrad.Rademacher(), num_tangents=4
        )

        def minibatch(key):
            return jax.random.normal(key, (16, SIZES[0])), jnp.arange(16) % SIZES[-1]

        def step(guess, key, value_and_grad=value_and_grad):
            _, (_, of_guess) = value_and_grad(key, fwdgrad.Guided(params, guess), *minibatch(key))
            return [a - 0.1 * g for a, g in zip(guess, of_guess, strict=True)], None

        guess = value_and_grad.init(params, *minibatch(jax.random.key(0))).guess
        guess, _ = jax.lax.scan(step, guess, jax.random.split(jax.random.key(1), 3000))
        args = minibatch(jax.random.key(2))
        _, grad = value_and_grad(jax.random.key(3), fwdgrad.Guided(params, guess), *args)
        found = grad.params[0][0]
        expected = jax.grad(loss)(params, *args)[0][0]
        left[chained] = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
    assert left[True] < 0.02 < 0.1 < left[False]


def test_the_next_layer_is_the_first_that_depends_on_it(key):
    """Of two branches neither is the other's; both read the last layers' error."""

    def loss(params, x):
        hidden = jax.nn.relu(jax.nn.relu(x @ params["first"]) @ params["a"])
        branches = [jax.nn.relu(hidden @ params[name]) for name in ("b", "c")]
        return jnp.mean(jnp.concatenate(branches, 1) @ params["d"])

    shapes = {"first": (2, 6), "a": (6, 3), "b": (3, 4), "c": (3, 5), "d": (9,)}
    params = {name: normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}
    x = normal(9, (N, 2))
    value_and_grad = estimator(loss, "corrected", chained=True)
    state = value_and_grad.init(params, x)
    assert [a.shape for a in state.guess] == [(6, 3), (3, 4), (9,)]
    grad = jax.jit(value_and_grad)(key, state, x)[1].params
    close(grad["d"], jax.grad(loss)(params, x)["d"])


def convolutions(pool):
    """Return the loss of two convolutions and two layers, its parameters, and a minibatch."""

    def at_noise(params, noise, x, y):
        strides = itertools.chain([(1, 1)], itertools.repeat((2, 2)))
        for (kernel, bias), extra, stride in zip(params[:2], noise, strides, strict=False):
            z = jax.lax.conv_general_dilated(x, kernel, stride, "SAME") + bias[:, None, None]
            x = jax.nn.relu(z + extra)
            if stride == (1, 1):
                x = POOLS[pool](x)
        (w, b), (u, a) = params[2:]
        hidden = jax.nn.relu(x.reshape(len(x), -1) @ w + b)
        return jnp.mean((hidden @ u + a - y) ** 2)

    shapes = [((2, 1, 3, 3), (2,)), ((3, 2, 3, 3), (3,)), ((12, 5), (5,)), ((5, 1), (1,))]
    params = [(normal(i, s), normal(9 + i, t)) for i, (s, t) in enumerate(shapes)]
    return at_noise, params, (normal(20, (N, 1, 8, 8)), normal(21, (N, 1)))


def _windows(x):
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2)


POOLS = {
    "maximum": lambda x: _windows(x).max((3, 5)),
    "mean": lambda x: _windows(x).mean((3, 5)),
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_convolution_as_chained_feedback_is_exact_with_its_kernel(pool, key):
    at_noise, params, args = convolutions(pool)

    def loss(params, x, y):
        return at_noise(params, (0.0, 0.0), x, y)

    value_and_grad = estimator(loss, "corrected", True, tangents=fwdgrad.BlockSparse())
    weights = [w for w, _ in params[1:]]
    assert [a.shape for a in value_and_grad.init(params, *args).guess] == [w.shape for w in weights]
    _, (grad, of_guess) = jax.jit(value_and_grad)(key, fwdgrad.Guided(params, weights), *args)
    assert_same(grad, jax.grad(loss)(params, *args))
    assert max(float(jnp.abs(g).max()) for g in of_guess) < 1e-5


def test_a_kernel_learns_by_normalised_least_mean_squares(key):
    """With as many blocks as entries the noise finds all that the guess misses."""
    at_noise, params, (x, y) = convolutions("maximum")

    def loss(params, x, y):
        return at_noise(params, (0.0, 0.0), x, y)

    options = {"tangents": fwdgrad.BlockSparse(), "num_tangents": 2 * 4 * 4}
    value_and_grad = jax.jit(estimator(loss, "corrected", True, **options))
    guess = [w + 0.3 * normal(30 + i, w.shape) for i, (w, _) in enumerate(params[1:])]
    _, (grad, of_guess) = value_and_grad(key, fwdgrad.Guided(params, guess), x, y)
    assert_same(grad, jax.grad(loss)(params, x, y))

    def pooled_and_next(first, kernel):
        """Return the values of the second convolution, of the first one's pooled values."""
        return jax.lax.conv_general_dilated(jax.nn.relu(first), kernel, (2, 2), "SAME")

    # By hand, of the first link: from the pooled values, where the noise enters, to the second.
    first = jax.lax.conv_general_dilated(x, params[0][0], (1, 1), "SAME")
    first = POOLS["maximum"](first + params[0][1][:, None, None])
    kernel, bias = params[1]

    def after_pooling(extra):
        h = jax.nn.relu(first + extra)
        z = jax.lax.conv_general_dilated(h, kernel, (2, 2), "SAME") + bias[:, None, None]
        (w, b), (u, a) = params[2:]
        hidden = jax.nn.relu(jax.nn.relu(z).reshape(N, -1) @ w + b)
        return jnp.sum((hidden @ u + a - y) ** 2), (z, hidden)

    delta, (z, hidden) = jax.grad(after_pooling, has_aux=True)(jnp.zeros_like(first))
    error = 2 * (hidden @ params[3][0] + params[3][1] - y)
    at_hidden = (error @ guess[2].T) * (hidden > 0)
    at_second = (at_hidden @ guess[1].T).reshape(z.shape) * (z > 0)

    def missed(b):
        _, pull_back = jax.vjp(lambda h: pooled_and_next(h, b), first)
        return jnp.sum((delta - pull_back(at_second)[0]) ** 2) / 2

    # The kernel is used at four positions. An input is read by four of nine taps at most.
    noise = np.sum(first > 0, (1, 2, 3)) / options["num_tangents"] / 4
    assert_same(of_guess[0], jax.grad(missed)(guess[0]) / (4 * scale(at_second, noise)))


def test_a_kernel_is_learned_from_few_blocks(key):
    """All positions of all examples teach it; steps of the full size are stable without noise."""
    at_noise, params, _ = convolutions("maximum")

    def loss(params, x, y):
        return at_noise(params, (0.0, 0.0), x, y)

    def minibatch(key):
        kx, ky = jax.random.split(key)
        return jax.random.normal(kx, (16, 1, 8, 8)), jax.random.normal(ky, (16, 1))

    for number in (32, 1):
        options = {"tangents": fwdgrad.BlockSparse(), "num_tangents": number}
        value_and_grad = estimator(loss, "corrected", True, **options)

        def step(
            guess,
            key,
            value_and_grad=value_and_grad,
        ):
            _, (_, of_guess) = value_and_grad(key, fwdgrad.Guided(params, guess), *minibatch(key))
            return [b - g for b, g in zip(guess, of_guess, strict=True)], None

        first = value_and_grad.init(params, *minibatch(key)).guess
        guess, _ = jax.lax.scan(step, first, jax.random.split(key, 600))
        kernel = params[1][0]
        assert jnp.linalg.norm(guess[0] - kernel) < 0.1 * jnp.linalg.norm(kernel)


def _has_chain(name):
    loss, params, args = LOSSES[name]()
    try:
        return bool(estimator(loss, "corrected", True).init(params, *args).guess)
    except ValueError:
        return False  # no last layer


@pytest.mark.parametrize(
    "name",
    thorough_but(["tanh", "kernels", "normalised"], [x for x in LOSSES if x != "equinox_module"]),
)
def test_any_guess_is_unbiased(name):
    """Also where the next layer is not the only one, or reverse mode does not reach it."""
    if not _has_chain(name):
        pytest.skip("there is no link in this loss")
    loss, params, args = LOSSES[name]()
    value_and_grad = estimator(loss, "corrected", True, tangents=fwdgrad.Rademacher())
    first = value_and_grad.init(params, *args).guess
    guess = [normal(30 + i, a.shape) for i, a in enumerate(first)]
    _, (grad, _) = averaged_over_signs(value_and_grad, fwdgrad.Guided(params, guess), args)
    assert_same(grad, exact(loss, params, args)[1])


def test_the_size_of_the_minibatch_may_be_symbolic(key):
    loss, params, (x, y) = network()
    value_and_grad = estimator(loss, "corrected", True)
    guided = value_and_grad.init(params, x, y)
    (n,) = jax.export.symbolic_shape("n")
    types = [jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype) for a in (x, y)]
    exported = jax.export.export(jax.jit(value_and_grad))(key, guided, *types)
    close(exported.call(key, guided, x, y), jax.jit(value_and_grad)(key, guided, x, y))


def test_fixed_feedback_needs_a_way_back():
    def loss(params, x, y):
        hidden = jnp.tanh(x @ params["a"])
        hidden = jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, 2 * s[1]), (0, hidden))
        return jnp.mean((jnp.tanh(hidden[1] @ params["b"]) @ params["c"] - y) ** 2)

    params = {"a": normal(0, (2, 3)), "b": normal(1, (3, 4)), "c": normal(2, (4,))}
    with pytest.raises(ValueError, match=r"gives no derivative by the value at .*chained=False"):
        estimator(loss, "fixed", True).init(params, normal(3, (N, 2)), normal(4, (N,)))
