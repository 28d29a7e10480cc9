"""Feedback: alone, learned or fixed, with no noise in the gradient; and from layer to layer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from tests.oracle import normal
from tests.perturbation.activity_losses import maxout, scanned
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


def test_errors(key):
    with pytest.raises(ValueError, match=r"feedback must be one of corrected, .*found 'random'"):
        fwdgrad.Activities(feedback="random")
    with pytest.raises(ValueError, match=r"feedback='fixed' is a derivative by the value of a lay"):
        fwdgrad.Activities(feedback="fixed", at_kernels=True)
    with pytest.raises(ValueError, match=r"chained=True guesses derivatives by the values of la"):
        fwdgrad.Activities(chained=True, at_kernels=True)
    loss, params, args = network()
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, space=fwdgrad.Activities(exact_last=True, feedback="alone")
    )
    with pytest.raises(ValueError, match=r"feedback='alone' needs a guess; call .*guided\(\)"):
        value_and_grad(key, params, *args)
    loss, params, args = scanned()
    with pytest.raises(ValueError, match=r"feedback='fixed' gives no derivative by the value at "):
        estimator(loss, "fixed").init(params, *args)
