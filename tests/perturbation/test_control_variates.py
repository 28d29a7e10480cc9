"""Guesses of the gradient: unbiased whatever is guessed, exact where the guess is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from tests.oracle import normal
from tests.perturbation.activity_losses import N, mlp
from tests.perturbation.all_signs import averaged_over_signs
from tests.sweeps import thorough_but

PARAMS = {"w": normal(0, (2, 3)), "b": normal(1, (3,))}  # d = 9
GUESS = {"w": normal(2, (2, 3)), "b": normal(3, (3,))}
X = normal(4, (4, 2))
LAYERWISE = fwdgrad.Activities(layerwise=True, exact_last=True)


def loss(params, x):
    return jnp.mean(jnp.tanh(x @ params["w"] + params["b"]) ** 2)


def close(found, expected, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, expected)


@pytest.mark.parametrize("guess", [GUESS, jax.tree.map(jnp.zeros_like, GUESS)], ids=["u", "zero"])
@pytest.mark.parametrize("num_tangents", [1, 3])
def test_at_the_parameters_as_by_its_formula(guess, num_tangents, key):
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Normal(), num_tangents=num_tangents
    ).guided()
    guided = fwdgrad.Guided(PARAMS, guess)
    drawn = value_and_grad.draw(key, guided, X)
    _, (grad, of_guess) = jax.jit(value_and_grad.along)(drawn, guided, X)

    def flat(tree):
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])

    exact, u = flat(jax.grad(loss)(PARAMS, X)), flat(guess)
    v = jnp.concatenate([x.reshape(num_tangents, -1) for x in drawn.tangents], 1)
    u = u / jnp.linalg.norm(u) if u.any() else u
    rest = exact - (exact @ u) * u
    across = v - jnp.outer(v @ u, u)
    expected = (exact @ u) * u + (v @ rest) @ across / num_tangents
    close(flat(grad), expected)
    close(flat(of_guess), flat(guess) - expected)


FORMS = fwdgrad.Rademacher(), fwdgrad.LowRank(), fwdgrad.BlockSparse()
AGGREGATIONS = fwdgrad.Mean(), fwdgrad.Projection()


@pytest.mark.parametrize(
    ("tangents", "aggregation"),
    thorough_but(
        [*zip(FORMS, itertools.cycle(AGGREGATIONS), strict=False)],
        itertools.product(FORMS, AGGREGATIONS),
    ),
)
def test_the_gradient_as_a_guess_is_the_estimate(tangents, aggregation, key):
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=tangents, num_tangents=2, aggregation=aggregation
    ).guided()
    exact = jax.jit(jax.grad(loss))(PARAMS, X)
    scaled = jax.tree.map(lambda g: -3 * g, exact)
    _, (grad, _) = jax.jit(value_and_grad)(key, fwdgrad.Guided(PARAMS, scaled), X)
    close(grad, exact)


def test_the_mean_over_all_signs_is_the_gradient():
    value_and_grad = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.Rademacher()).guided()
    guided = fwdgrad.Guided(PARAMS, GUESS)
    _, (grad, of_guess) = averaged_over_signs(value_and_grad, guided, (X,))
    exact = jax.grad(loss)(PARAMS, X)
    close(grad, exact)
    close(of_guess, jax.tree.map(jnp.subtract, GUESS, exact))


def test_in_half_precision_it_is_unbiased_too():
    """The guess is rounded, and so not of length 1, which the estimate knows.

    Averaged over all signs, with one of the two parameters in bfloat16: what is left is the
    rounding of one estimate, at most 2⁻⁸ of its size, on the average over 512 of them.
    """
    dtypes = {"w": jnp.bfloat16, "b": jnp.float32}
    params = {name: x.astype(dtypes[name]) for name, x in PARAMS.items()}
    exact = jax.grad(loss)(params, X)
    guess = jax.tree.map(lambda g: -3 * g, exact)
    value_and_grad = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.Rademacher()).guided()
    _, (grad, _) = averaged_over_signs(value_and_grad, fwdgrad.Guided(params, guess), (X,))
    for name, found in grad.items():
        assert found.dtype == dtypes[name]
        scale = float(jnp.abs(exact[name]).max())
        np.testing.assert_allclose(
            found.astype(float), exact[name].astype(float), atol=2**-7 * scale
        )


def test_steps_of_one_make_the_guess_the_last_estimate(key):
    value_and_grad = fwdgrad.forward_value_and_grad(loss).guided()
    guided = value_and_grad.init(PARAMS, X)
    close(guided.guess, jax.tree.map(jnp.zeros_like, PARAMS))
    _, (grad, of_guess) = value_and_grad(key, guided, X)
    close(jax.tree.map(jnp.subtract, guided.guess, of_guess), grad)


@pytest.mark.parametrize(
    ("space", "chunk_size"),
    thorough_but(
        [(fwdgrad.Weights(), 1), (LAYERWISE, 2)],
        itertools.product([fwdgrad.Weights(), LAYERWISE], [1, 2]),
    ),
)
def test_chunks_change_nothing(space, chunk_size, key):
    mean_loss, params, args = mlp(jnp.tanh)

    def estimate(chunk_size):
        value_and_grad = fwdgrad.forward_value_and_grad(
            mean_loss, num_tangents=3, space=space, chunk_size=chunk_size
        ).guided()
        first = value_and_grad.init(params, *args)
        guess = jax.tree.map(lambda x: jnp.full(x.shape, 0.3), first.guess)
        return jax.jit(value_and_grad)(key, fwdgrad.Guided(params, guess), *args)

    close(estimate(chunk_size), estimate(None))


def test_feedback_as_by_its_formula():
    """Of a hidden layer of ReLUs, guessed from the output's exact derivative e by a matrix A.

    The mean over all signs is the gradient, and that of A is the one of least mean squares.
    """
    mean_loss, params, (x, y) = mlp(jax.nn.relu)
    value_and_grad = fwdgrad.forward_value_and_grad(
        mean_loss, tangents=fwdgrad.Rademacher(), space=LAYERWISE
    ).guided()
    feedback = normal(7, (1, 1, 2))  # to a minibatch of one example
    assert [a.shape for a in value_and_grad.init(params, x, y).guess] == [(1, 1, 2)]
    guided = fwdgrad.Guided(params, [feedback])
    _, (grad, (of_feedback,)) = averaged_over_signs(value_and_grad, guided, (x, y))
    close(grad, jax.grad(mean_loss)(params, x, y))
    z = x @ params["w"] + params["b"]
    error = 2 * (jax.nn.relu(z) @ params["u"] + params["c"] - y)
    missing = (z > 0) * (error @ params["u"].T - error @ feedback[0])
    close(of_feedback, -(error.T @ missing)[None] / jnp.sum(error**2))


@pytest.mark.parametrize("num_tangents", [1, 2])
def test_the_transposed_weights_as_feedback_are_exact(num_tangents, key):
    """What is guessed without error is not noisy: the estimate is the gradient."""
    mean_loss, params, args = mlp(jax.nn.relu)
    for tangents in (fwdgrad.Normal(), fwdgrad.BlockSparse()):
        value_and_grad = fwdgrad.forward_value_and_grad(
            mean_loss, tangents=tangents, num_tangents=num_tangents, space=LAYERWISE
        ).guided()
        guided = fwdgrad.Guided(params, [params["u"].T[None]])
        _, (grad, _) = jax.jit(value_and_grad)(key, guided, *args)
        close(grad, jax.grad(mean_loss)(params, *args))


def test_feedback_learns_what_is_fed_back():
    """By the directional derivatives alone: with a new minibatch each step it becomes the weights.

    The rate of least mean squares is stable up to about 2/(units + 1) with K = 1.
    """
    mean_loss, params, _ = mlp(jax.nn.relu)
    params = {**params, "b": jnp.array([5.0, 5.0])}  # all units are on
    value_and_grad = fwdgrad.forward_value_and_grad(
        mean_loss, tangents=fwdgrad.Rademacher(), space=LAYERWISE
    ).guided()

    def step(guess, key):
        keys = jax.random.split(key, 3)
        x, y = (jax.random.normal(k, (N, m)) for k, m in zip(keys[:2], (3, 1), strict=True))
        _, (_, of_guess) = value_and_grad(keys[2], fwdgrad.Guided(params, guess), x, y)
        return [a - 0.1 * g for a, g in zip(guess, of_guess, strict=True)], None

    guess, _ = jax.lax.scan(step, [jnp.zeros((1, 1, 2))], jax.random.split(jax.random.key(0), 600))
    np.testing.assert_allclose(guess[0][0], params["u"].T, atol=1e-3)


def test_errors(key):
    value_and_grad = fwdgrad.forward_value_and_grad(loss).guided()
    with pytest.raises(ValueError, match=r"guess\['b'\] is float32\[2\]; it must be float32\[3\]"):
        value_and_grad(key, fwdgrad.Guided(PARAMS, {**GUESS, "b": jnp.ones(2)}), X)
    with pytest.raises(ValueError, match="the guess of params has the structure"):
        value_and_grad(key, fwdgrad.Guided(PARAMS, [jnp.ones(2)]), X)
    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=fwdgrad.Activities()).guided()
    with pytest.raises(
        ValueError, match=r"the last layers' exact derivatives; say .*exact_last=True"
    ):
        value_and_grad.init(PARAMS, X)
