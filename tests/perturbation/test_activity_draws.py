"""What is drawn at activities, in which form, and what a loss must be like."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad import Drawn
from fwdgrad.perturbation.loss import Loss
from fwdgrad.tangents.forms import dense, is_structured
from tests.oracle import normal
from tests.perturbation.activity_losses import LOSSES, SPACES, N, images, mlp
from tests.perturbation.all_signs import assert_same
from tests.sweeps import thorough_but


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((jnp.ones((3, 2)), 1.0), r"args\[1\] has no axis of examples: found float of shape \(\)"),
        ((jnp.ones((3, 2)), jnp.ones(4)), r"one number of examples.*args\[0\]: 3, args\[1\]: 4"),
        ((), "found no arrays"),
        ((jnp.ones((3, 2)), jax.random.key(0)), r"args\[1\].*key of its own, jax.random.split"),
    ],
)
def test_examples_must_be_there(args, message, key):
    value_and_grad = fwdgrad.forward_value_and_grad(
        lambda w, *args: w.sum(), space=fwdgrad.Activities()
    )
    with pytest.raises(ValueError, match=message):
        value_and_grad(key, jnp.ones(2), *args)


def test_examples_by_keyword_are_refused(key):
    """Each would be held against the labels of all."""

    def loss(w, x, *, y, scale=jnp.ones(())):
        return jnp.mean((x @ w - y) ** 2) * scale.sum()

    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=fwdgrad.Activities())
    w, x = jnp.ones(2), jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"keyword argument\['y'\] has 3 entries in front.*close"):
        value_and_grad(key, w, x, y=jnp.zeros(3))
    assert value_and_grad(key, w, x, y=jnp.zeros(()), scale=jnp.ones(2))[0] == 8
    with pytest.raises(ValueError, match=r"keyword argument\['y'\]\[0\] has 3 entries in front"):
        value_and_grad(key, w, x, y=[np.zeros(3)])


class NoArray:
    """An object with a `shape` that is not one of an array."""

    shape = None


@pytest.mark.parametrize("option", [jnp.tanh, NoArray(), "mean", None])
def test_keyword_arguments_may_be_any_objects(option, key):
    def loss(w, x, *, option):
        return jnp.mean((x @ w) ** 2)

    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=fwdgrad.Activities())
    assert value_and_grad(key, jnp.ones(2), jnp.ones((3, 2)), option=option)[0] == 4


@pytest.mark.parametrize("layerwise", [False, True])
def test_everything_that_is_drawn_is_independent(layerwise):
    """Of sites, examples and tangents: sites of one shape, and a parameter with noise of its own.

    The mean of 4,000 products of two signs has the deviation 1/63; all are within 6 of them but
    with probability 6e-6 (Hoeffding's bound 2 exp(−18), times 190 products).
    """

    def loss(params, x):
        hidden = jnp.tanh(x @ params["w"])
        return jnp.mean(jnp.tanh(hidden @ params["u"])) + jnp.sum(params["c"] ** 2)

    params = {"w": normal(0, (2, 2)), "u": normal(1, (2, 2)), "c": normal(2, (1, 2))}
    space = fwdgrad.Activities(layerwise=layerwise)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), num_tangents=2, space=space
    )

    def flat(key):
        drawn = value_and_grad.draw(key, params, jnp.ones((2, 2))).tangents
        return jnp.concatenate([v.ravel() for v in drawn])

    draws = jax.jit(jax.vmap(flat))(jax.random.split(jax.random.key(0), 4000))
    assert draws.shape[1] == 2 * 2 * (2 + 2) + 2 * 2  # of examples' own, and of c
    products = draws.T @ draws / len(draws)
    np.testing.assert_allclose(products, np.eye(draws.shape[1]), atol=6 / 4000**0.5)


@pytest.mark.parametrize(
    ("name", "space"),
    thorough_but(
        [
            ("convolution", "joint"), ("gated", "exact last"), ("normalised", "layerwise"),
        ],
        itertools.product(["convolution", "gated", "normalised", "images"], SPACES),
    ),
)  # fmt: skip
def test_blocks_are_a_form_and_nothing_else(name, space, key):
    """The same noise written out gives the same estimate."""
    loss, params, args = images() if name == "images" else LOSSES[name]()
    for number in (2, 3):
        at = SPACES[space].at(Loss(loss, params, args, {}, False))
        drawn = at.draw(fwdgrad.BlockSparse(), jax.random.split(key, number))

        def written(v):
            if not is_structured(v):  # no axis has K entries
                return v
            per_example = v.value.ndim > v.axis + 1 and v.value.shape[0] == N
            return jax.vmap(dense)(v) if per_example else dense(v)

        @jax.jit
        def both(drawn, at=at, number=number):
            grads = []
            for form in (drawn, [written(v) for v in drawn]):
                pushed = at.push(form, with_gram=False)
                weights = [group.along / number for group in pushed.derivatives]
                grads.append(at.combine(pushed, weights).grad)
            return grads

        blocks, out = both(drawn)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), blocks, out
        )


def test_dropout_takes_a_key_for_each_example(key):
    def loss(w, x, keys):
        kept = jax.vmap(lambda x, k: x * jax.random.bernoulli(k, 0.5, x.shape))(x, keys)
        return jnp.mean((kept @ w) ** 2)

    keys, x = jax.random.split(key, N), normal(0, (N, 4))
    space = fwdgrad.Activities(exact_last=True)
    _, grad = fwdgrad.forward_value_and_grad(loss, space=space)(key, jnp.ones(4), x, keys)
    assert_same(grad, jax.grad(loss)(jnp.ones(4), x, keys))


def test_drawn_ahead(key):
    loss, params, args = mlp(jnp.tanh)
    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=fwdgrad.Activities())
    drawn = value_and_grad.draw(key, params, *args)
    jax.tree.map(
        np.testing.assert_array_equal,
        value_and_grad.along(drawn, params, *args),
        value_and_grad(key, params, *args),
    )
    with pytest.raises(ValueError, match=r"drawn holds tangents for the value at .*; they must be"):
        value_and_grad.along(Drawn([v[:2] for v in drawn.tangents]), params, *args)


def test_a_loss_must_be_a_jaxpr(key):
    space = fwdgrad.Activities()

    def asks(w, x):
        return jnp.sum(w * x) if w[0] > 0 else jnp.sum(w)

    def writes(w, x):
        ref = jax.new_ref(w)
        ref[0] = 1.0
        return jnp.sum(ref[...] * x)

    for fun, message in (
        (asks, "fun cannot be traced, which space=Activities"),
        (writes, "fun works with mutable arrays .* or use space=Weights"),
    ):
        with pytest.raises(TypeError, match=message):
            fwdgrad.forward_value_and_grad(fun, space=space)(key, jnp.ones(2), jnp.ones((N, 2)))


@pytest.mark.parametrize("enter", [True, False])
def test_custom_vjp_is_entered_or_named(enter, key):
    @jax.custom_vjp
    def straight_through(x):
        return jnp.tanh(x)

    straight_through.defvjp(lambda x: (jnp.tanh(x), None), lambda _, c: (c,))
    loss, params, args = mlp(straight_through)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, space=fwdgrad.Activities(), enter_custom_vjp=enter
    )
    if enter:
        smooth = fwdgrad.forward_value_and_grad(mlp(jnp.tanh)[0], space=fwdgrad.Activities())
        assert_same(value_and_grad(key, params, *args)[1], smooth(key, params, *args)[1])
    else:
        with pytest.raises(TypeError, match=r"jax\.custom_vjp .*straight_through"):
            value_and_grad(key, params, *args)
