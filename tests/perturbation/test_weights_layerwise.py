"""Tangents of each layer's parameters for themselves: each layer has a derivative of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from tests.oracle import normal
from tests.perturbation.activity_losses import mlp
from tests.perturbation.all_signs import assert_same

LAYERS = [["w", "b"], ["u", "c"]]  # by the leaves' names; these come in alphabetical order
NAMES = ["b", "c", "u", "w"]


def estimator(loss, **options):
    return fwdgrad.forward_value_and_grad(
        loss, space=fwdgrad.Weights(layerwise=True), num_tangents=2, **options
    )


def by_its_formula(loss, params, args, tangents):
    """(1/K) Σ_k (∂_l f·v_lk) v_lk of each layer l."""
    exact = jax.grad(loss)(params, *args)
    expected = {}
    for layer in LAYERS:
        derivatives = sum(
            jnp.sum(exact[n] * tangents[n], tuple(range(1, tangents[n].ndim))) for n in layer
        )
        for n in layer:
            expected[n] = jnp.tensordot(derivatives, tangents[n], 1) / len(derivatives)
    return expected


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_as_by_its_formula(chunk_size, key):
    loss, params, args = mlp(jnp.tanh)
    value_and_grad = estimator(loss)
    drawn = value_and_grad.draw(key, params, *args)
    tangents = dict(zip(NAMES, drawn.tangents, strict=True))
    value, grad = jax.jit(estimator(loss, chunk_size=chunk_size))(key, params, *args)
    np.testing.assert_allclose(value, loss(params, *args), rtol=1e-6)
    assert_same(grad, by_its_formula(loss, params, args, tangents))


def test_layers_are_drawn_independently(key):
    """Layers of one shape do not get the same tangents."""
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}

    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ params["a"]) @ params["b"])

    first, second = estimator(loss).draw(key, params, jnp.ones((3, 2))).tangents
    assert first.shape == second.shape == (2, 2, 2) and (first != second).all()


def test_its_error_is_the_sum_of_the_layers_own():
    """Of signs E‖g − ∇f‖² = Σ_l (d_l − 1)/K ‖∂_l f‖²: the mean of n draws is near, 5 deviations."""
    loss, params, args = mlp(jnp.tanh)
    value_and_grad = estimator(loss, tangents=fwdgrad.Rademacher())
    exact = jax.grad(loss)(params, *args)
    keys = jax.random.split(jax.random.key(0), 4000)
    grads = jax.jit(jax.vmap(lambda key: value_and_grad(key, params, *args)[1]))(keys)
    errors = sum(jnp.sum((grads[n] - exact[n]) ** 2, tuple(range(1, grads[n].ndim))) for n in exact)
    law = sum(
        (sum(params[n].size for n in layer) - 1) / 2 * sum(jnp.sum(exact[n] ** 2) for n in layer)
        for layer in LAYERS
    )
    assert errors.mean() == pytest.approx(float(law), abs=float(5 * errors.std() / 4000**0.5))


def test_blocks_are_of_each_layer(key):
    loss, params, args = mlp(jnp.tanh)
    drawn = estimator(loss, tangents=fwdgrad.BlockSparse()).draw(key, params, *args)
    assert [(v.axis, v.num_blocks) for v in drawn.tangents] == [(0, 2), (0, 2), (0, 2), (1, 2)]


def test_what_the_loss_does_not_read_gets_nothing(key):
    loss, params, args = mlp(jnp.tanh)
    params = {**params, "unread": normal(9, (3,)), "fixed": normal(8, (2,))}

    def with_more(params, x, y):
        return loss(params, x, y) + 0 * jax.lax.stop_gradient(params["fixed"]).sum()

    _, grad = estimator(with_more)(key, params, *args)
    assert not grad["unread"].any() and not grad["fixed"].any() and grad["w"].all()


def test_the_gradient_as_a_guess_is_the_estimate(key):
    """The guess of a layer is along its own part."""
    loss, params, args = mlp(jnp.tanh)
    exact = jax.grad(loss)(params, *args)
    guess = {n: g * (3.0 if n in LAYERS[0] else -0.5) for n, g in exact.items()}
    _, grad = estimator(loss).guided()(key, fwdgrad.Guided(params, guess), *args)
    assert_same(grad.params, exact)


def test_a_loss_that_cannot_be_traced_is_refused(key):
    def loss(w, x):
        return jnp.sum(w @ x) if w[0] > 0 else jnp.sum(w)

    with pytest.raises(TypeError, match=r"space=Weights\(layerwise=True\) needs"):
        estimator(loss)(key, jnp.ones(3), jnp.ones(3))
