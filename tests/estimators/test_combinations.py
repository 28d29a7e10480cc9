"""Distribution, number, space and guess combine freely; the estimate is unbiased in all of them."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import fwdgrad
from tests.oracle import normal
from tests.perturbation.activity_losses import SPACES, N, squared
from tests.perturbation.all_signs import assert_same, averaged_over_signs, exact
from tests.sweeps import thorough_but

DISTRIBUTIONS = {
    "signs": (fwdgrad.Rademacher(), 2),
    "low rank": (fwdgrad.LowRank(), 1),
    "blocks": (fwdgrad.BlockSparse(), 2),
}
WEIGHTS = {
    "weights": fwdgrad.Weights(),
    "weights, exact last": fwdgrad.Weights(exact_last=True),
    "weights, layerwise": fwdgrad.Weights(layerwise=True),
}
ALL = {**WEIGHTS, **SPACES}
# A guess at activities is made of the last layer's exact derivative.
CAN_BE_GUESSED = {**WEIGHTS, **{k: space for k, space in SPACES.items() if space.exact_last}}


def network():
    def loss(params, x, y):
        return squared(jnp.tanh(x @ params["w"]) @ params["u"] + params["c"], y)

    params = {"w": normal(0, (2, 2)), "u": normal(1, (2, 1)), "c": normal(2, (1,))}
    return loss, params, (normal(3, (N, 2)), normal(4, (N, 1)))


def estimator(loss, space, name):
    tangents, number = DISTRIBUTIONS[name]
    return fwdgrad.forward_value_and_grad(loss, tangents=tangents, num_tangents=number, space=space)


# Each space with one distribution, and each distribution with spaces of both kinds.
ALWAYS = [
    ("weights", "low rank"),
    ("weights, exact last", "signs"),
    ("weights, layerwise", "blocks"),
    ("joint", "low rank"),
    ("layerwise", "signs"),
    ("exact last", "blocks"),
    ("layerwise, exact last", "low rank"),
]


@pytest.mark.parametrize(
    ("space", "name"), thorough_but(ALWAYS, itertools.product(ALL, DISTRIBUTIONS))
)
def test_the_mean_over_all_signs_is_the_gradient(space, name):
    loss, params, args = network()
    value, grad = averaged_over_signs(estimator(loss, ALL[space], name), params, args)
    expected_value, expected = exact(loss, params, args)
    assert float(value) == pytest.approx(float(expected_value), rel=1e-5)
    assert_same(grad, expected)


@pytest.mark.parametrize(
    ("space", "name"),
    thorough_but(
        [row for row in ALWAYS if row[0] in CAN_BE_GUESSED],
        itertools.product(CAN_BE_GUESSED, DISTRIBUTIONS),
    ),
)
def test_and_so_it_is_with_any_guess(space, name):
    loss, params, args = network()
    value_and_grad = estimator(loss, ALL[space], name).guided()
    guided = value_and_grad.init(params, *args)
    guess = jax.tree.map(lambda x: normal(5, x.shape), guided.guess)
    assert jax.tree.leaves(guess)
    _, grad = averaged_over_signs(value_and_grad, guided._replace(guess=guess), args)
    assert_same(grad.params, exact(loss, params, args)[1])


@pytest.mark.parametrize("space", [fwdgrad.Weights(), fwdgrad.Activities(exact_last=True)])
@pytest.mark.parametrize("tangents", [fwdgrad.Orthogonal(), fwdgrad.BlockSparse()])
def test_no_rank_is_promoted(key, space, tangents):
    """As some want of all code: `jax_numpy_rank_promotion="raise"`."""

    def loss(params, x):
        return jnp.mean((jax.nn.relu(x @ params["w"]) @ params["u"]) ** 2)

    params = {"w": jnp.ones((2, 4)), "u": jnp.ones((4, 1))}
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, space=space, tangents=tangents, num_tangents=2
    )
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(value_and_grad, key, params, jnp.ones((3, 2)))
