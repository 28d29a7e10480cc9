"""Feedback: alone, learned or fixed, with no noise in the gradient; and from layer to layer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from tests.oracle import normal
from tests.perturbation import activity_losses
from tests.perturbation.activity_losses import maxout, scanned
from tests.perturbation.all_signs import averaged_over_signs
from tests.sweeps import thorough_but

N, SIZES = 5, (4, 6, 3, 2)
TANGENTS = {"normal": fwdgrad.Normal(), "blocks": fwdgrad.BlockSparse()}


def network():
    """Return the loss of three layers, their parameters, and a minibatch of two classes."""

    def loss(params, x, y):
        *hidden, (w, b) = params
        for weight, bias in hidden:
            x = jax.nn.relu(x @ weight + bias)
        return -jax.nn.log_softmax(x @ w + b)[jnp.arange(len(y)), y].mean()

    shapes = [*itertools.pairwise(SIZES)]
    params = [(normal(i, shape), normal(14 + i, shape[1:])) for i, shape in enumerate(shapes)]
    return loss, params, (normal(5, (N, SIZES[0])), jnp.array([0, 1, 1, 0, 1]))


def by_hand(params, feedback, x, y, chained=False):
    """Return the gradient by feedback, from `deltas_by_hand`."""
    deltas, inputs = deltas_by_hand(params, feedback, x, y, chained)
    both = zip(inputs, deltas, strict=True)
    return [(h.T @ delta / len(x), delta.mean(0)) for h, delta in both]


def deltas_by_hand(params, feedback, x, y, chained):
    """Return for each layer the derivatives by its value, and its inputs.

    Those of a hidden layer are A e where its ReLU is on, with e the error; or chained, but for the
    last one, with e the (A e) of the next one.
    """
    inputs, on = [np.asarray(x)], []
    for weight, bias in params[:-1]:
        z = inputs[-1] @ weight + bias
        inputs.append(np.maximum(z, 0))
        on.append(z > 0)
    z = inputs[-1] @ params[-1][0] + params[-1][1]
    error = np.exp(z) / np.exp(z).sum(1, keepdims=True) - np.eye(SIZES[-1])[np.asarray(y)]
    deltas, read = [], error
    for a, mask in zip(reversed(feedback), reversed(on), strict=True):
        deltas.insert(0, (read @ np.asarray(a)[:, 0]) * mask)
        read = deltas[0] if chained else error
    return [*deltas, error], inputs


def estimator(loss, feedback, chained=False, **options):
    space = fwdgrad.Activities(layerwise=True, exact_last=True, feedback=feedback, chained=chained)
    return fwdgrad.forward_value_and_grad(loss, space=space, **options).guided()


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_fixed_feedback_as_by_hand(key):
    """Direct feedback alignment; no noise is drawn, so every key has the same gradient."""
    loss, params, (x, y) = network()
    value_and_grad = estimator(loss, "fixed", num_tangents=3)
    state = value_and_grad.init(params, x, y)
    assert [a.shape for a in state.guess] == [(2, 1, 6), (2, 1, 3)]
    for a in state.guess:
        assert 0.3 < jnp.abs(a).max() * a.shape[2] ** 0.5 <= 1 and len(jnp.unique(a)) == a.size
    close(value_and_grad.init(params, x[:2], y[:2]).guess, state.guess)
    other = jax.tree.map(lambda p: p + 1e-3, params)
    assert (value_and_grad.init(other, x, y).guess[0] != state.guess[0]).all()
    value, grad = jax.jit(value_and_grad)(key, state, x, y)
    close(value, loss(params, x, y))
    close(grad.params, by_hand(params, state.guess, x, y))
    assert not any(a.any() for a in grad.guess)
    assert jax.tree.leaves(value_and_grad.draw(key, state, x, y)) == []


@pytest.mark.parametrize(
    ("tangents", "chunk_size"),
    thorough_but([("blocks", None)], [*((name, None) for name in TANGENTS), ("normal", 2)]),
)
def test_learned_feedback_alone_as_by_hand(tangents, chunk_size, key):
    """The gradient is by hand, and the feedback learns as the control variate does."""
    loss, params, (x, y) = network()
    options = {"tangents": TANGENTS[tangents], "num_tangents": 3, "chunk_size": chunk_size}
    alone, corrected = (estimator(loss, f, **options) for f in ("alone", "corrected"))
    state = alone.init(params, x, y)
    assert not any(a.any() for a in state.guess)
    for guess in (state.guess, [normal(20, (2, 1, 6)), normal(21, (2, 1, 3))]):
        guided = fwdgrad.Guided(params, guess)
        value, grad = jax.jit(alone)(key, guided, x, y)
        expected, of_corrected = jax.jit(corrected)(key, guided, x, y)
        close(value, expected)
        close(grad.params, by_hand(params, guess, x, y))
        close(grad.guess, of_corrected.guess)
        assert all(a.any() for a in grad.guess)


@pytest.mark.parametrize("feedback", ["alone", "fixed"])
def test_feedback_to_a_narrower_value_is_pulled_back(feedback, key):
    """To the maximum of two units: as the derivative of ⟨A e, maximum⟩ by the layer."""
    loss, params, (x, y) = maxout()
    guess = [normal(8, (1, 1, 2))]
    _, grad = estimator(loss, feedback)(key, fwdgrad.Guided(params, guess), x, y)

    def maxima(params):
        return jax.nn.relu(x @ params["w"] + params["b"]).reshape(-1, 2, 2).max(2)

    error = 2 * (maxima(params) @ params["u"] - y)
    expected = jax.grad(lambda p: jnp.mean(jnp.sum(error @ guess[0][0] * maxima(p), 1)))(params)
    close(grad.params, {**expected, "u": maxima(params).T @ error / len(x)})


@pytest.mark.parametrize("feedback", ["alone", "fixed"])
def test_chained_feedback_as_by_hand(feedback, key):
    """Fixed it is feedback alignment: a random matrix in the place of each layer's weights."""
    loss, params, (x, y) = network()
    value_and_grad = estimator(loss, feedback, chained=True, num_tangents=3)
    state = value_and_grad.init(params, x, y)
    assert [a.shape for a in state.guess] == [(3, 1, 6), (2, 1, 3)]
    assert all(a.any() for a in state.guess) == (feedback == "fixed")
    guess = [normal(20, (3, 1, 6)), normal(21, (2, 1, 3))]
    value, grad = jax.jit(value_and_grad)(key, fwdgrad.Guided(params, guess), x, y)
    close(value, loss(params, x, y))
    close(grad.params, by_hand(params, guess, x, y, chained=True))


def test_chained_feedback_corrects_without_bias():
    """The mean over all signs is the gradient, and a feedback's is that of least mean squares."""
    loss, params, (x, y) = network()
    x, y = x[: activity_losses.N], y[: activity_losses.N]
    guess = [normal(20, (3, 1, 6)), normal(21, (2, 1, 3))]
    value_and_grad = estimator(loss, "corrected", chained=True, tangents=fwdgrad.Rademacher())
    guided = fwdgrad.Guided(params, guess)
    _, (grad, of_guess) = averaged_over_signs(value_and_grad, guided, (x, y))
    close(grad, jax.grad(loss)(params, x, y))

    def at_hidden(noise):
        (w, b), (w2, b2), (w3, b3) = params
        hidden = jax.nn.relu(jax.nn.relu(x @ w + b + noise[0]) @ w2 + b2 + noise[1])
        return -jax.nn.log_softmax(hidden @ w3 + b3)[jnp.arange(len(y)), y].sum()

    exact = jax.grad(at_hidden)([jnp.zeros((len(x), n)) for n in SIZES[1:-1]])
    (_, *reads), _ = deltas_by_hand(params, guess, x, y, chained=True)
    for a, read, delta, found in zip(guess, reads, exact, of_guess, strict=True):
        missing = np.where(delta != 0, delta - read @ a[:, 0], 0)
        close(found[:, 0], -read.T @ missing / np.sum(read**2))


@pytest.mark.parametrize("tangents", TANGENTS.values())
def test_the_transposed_weights_as_chained_feedback_are_exact(tangents, key):
    """It is backpropagation then, and nothing is left for the noise."""
    loss, params, args = network()
    value_and_grad = estimator(loss, "corrected", chained=True, tangents=tangents, num_tangents=2)
    guess = [weight.T[:, None] for weight, _ in params[1:]]
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
    assert [a.shape for a in state.guess] == [(3, 1, 6), (4, 1, 3), (1, 1, 4), (1, 1, 5)]
    grad = jax.jit(value_and_grad)(key, state, x)[1].params
    close(grad["d"], jax.grad(loss)(params, x)["d"])


def test_noise_in_a_kernel_reads_the_guess_at_the_next_layer():
    def loss(params, x, y):
        hidden = jax.nn.relu(jax.lax.conv_general_dilated(x, params["k"], (1, 1), "SAME"))
        hidden = jax.nn.relu(hidden.reshape(len(x), 16) @ params["w"])
        return jnp.mean((hidden @ params["u"] - y) ** 2)

    shapes = {"k": (1, 1, 2, 2), "w": (16, 2), "u": (2,)}
    params = {name: normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}
    args = normal(4, (activity_losses.N, 1, 4, 4)), normal(5, (activity_losses.N,))
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss,
        tangents=fwdgrad.Rademacher(),
        space=fwdgrad.Activities(layerwise=True, exact_last=True, at_kernels=True, chained=True),
    ).guided()
    shapes = [a.shape for a in value_and_grad.init(params, *args).guess]
    assert shapes == [(2, 1, 1, 2, 2), (1, 1, 2)]
    guided = fwdgrad.Guided(params, [normal(7 + i, shape) for i, shape in enumerate(shapes)])
    _, (grad, _) = averaged_over_signs(value_and_grad, guided, args)
    close(grad, jax.grad(loss)(params, *args))


def test_errors(key):
    with pytest.raises(ValueError, match=r"feedback must be one of corrected, .*found 'random'"):
        fwdgrad.Activities(feedback="random")
    with pytest.raises(ValueError, match=r"feedback='fixed' is a derivative by the value of a lay"):
        fwdgrad.Activities(feedback="fixed", at_kernels=True)
    loss, params, args = network()
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, space=fwdgrad.Activities(exact_last=True, feedback="alone")
    )
    with pytest.raises(ValueError, match=r"feedback='alone' needs a guess; call .*guided\(\)"):
        value_and_grad(key, params, *args)
    loss, params, args = scanned()
    with pytest.raises(ValueError, match=r"feedback='fixed' gives no derivative by the value at "):
        estimator(loss, "fixed").init(params, *args)
