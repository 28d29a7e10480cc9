"""Tangents of the weights, but for the last layer's: its gradient is exact, the rest unbiased."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from tests.oracle import normal
from tests.perturbation.activity_losses import mlp, scanned
from tests.perturbation.all_signs import assert_same

SPACE = fwdgrad.Weights(exact_last=True)


def network():
    """Four numbers of the first layer, so 16 vectors of signs."""

    def loss(params, x, y):
        hidden = jnp.tanh(x @ params["w"])
        return -jax.nn.log_softmax(hidden @ params["u"] + params["c"])[jnp.arange(3), y].mean()

    params = {"w": normal(0, (2, 2)), "u": normal(1, (2, 4)), "c": normal(2, (4,))}
    return loss, params, (normal(3, (3, 2)), jnp.array([0, 2, 3]))


def estimates(num_tangents=1, **options):
    """Of the network, of each draw of signs, and its exact gradient."""
    loss, params, args = network()
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), num_tangents=num_tangents, space=SPACE, **options
    )
    drawn = value_and_grad.draw(jax.random.key(0), params, *args)
    (tangents,) = drawn.tangents
    assert tangents.shape == (num_tangents, 2, 2)
    every = jnp.array(list(itertools.product([-1.0, 1.0], repeat=tangents.size)))

    def estimate(signs):
        one = jax.tree.map(lambda v: signs.reshape(v.shape).astype(v.dtype), drawn)
        return value_and_grad.along(one, params, *args)

    return jax.jit(jax.vmap(estimate))(every), jax.jit(jax.value_and_grad(loss))(params, *args)


@pytest.mark.parametrize("num_tangents", [1, 2])
def test_the_last_layer_is_exact_and_the_rest_unbiased(num_tangents):
    (values, grads), (value, expected) = estimates(num_tangents)
    np.testing.assert_allclose(values, value, rtol=1e-6)
    for name in ("u", "c"):
        whole = np.broadcast_to(expected[name], grads[name].shape)
        np.testing.assert_allclose(grads[name], whole, rtol=1e-5, atol=1e-7)
    assert_same({"w": grads["w"].mean(0)}, {"w": expected["w"]})
    assert float(jnp.abs(grads["w"] - expected["w"]).max()) > 0.01


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_in_chunks(chunk_size, key):
    loss, params, args = network()
    options = {"num_tangents": 3, "space": SPACE}
    whole = fwdgrad.forward_value_and_grad(loss, **options)
    cut = fwdgrad.forward_value_and_grad(loss, chunk_size=chunk_size, **options)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4),
        *(jax.jit(each)(key, params, *args) for each in (cut, whole)),
    )


@pytest.mark.parametrize(("is_guided", "products"), [(False, 4), (True, 6)])
def test_what_no_tangent_changes_is_computed_once_for_all_chunks(is_guided, products, key):
    """A chunk has two products with values and two with tangents; a guess adds inner products."""
    loss, params, args = network()
    estimate = fwdgrad.forward_value_and_grad(loss, space=SPACE, num_tangents=3, chunk_size=1)
    if is_guided:
        estimate = estimate.guided()
    state = estimate.init(params, *args)
    if is_guided:
        state = state._replace(guess=jax.tree.map(jnp.ones_like, state.guess))
    (scan,) = [
        e for e in jax.make_jaxpr(estimate)(key, state, *args).eqns if e.primitive.name == "scan"
    ]
    assert str(scan.params["jaxpr"]).count("dot_general[") == products
    grad = estimate.params_of(jax.jit(estimate)(key, state, *args)[1])
    expected = jax.grad(loss)(params, *args)
    for name in ("u", "c"):
        np.testing.assert_allclose(grad[name], expected[name], rtol=1e-5, atol=1e-7)


def test_a_guess_is_of_the_other_parameters(key):
    """With the gradient itself as the guess all of the estimate is exact."""
    loss, params, args = network()
    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=SPACE).guided()
    guided = value_and_grad.init(params, *args)
    expected = jax.grad(loss)(params, *args)
    assert guided.guess == {"w": pytest.approx(0), "u": None, "c": None}
    exact = guided._replace(guess={**guided.guess, "w": expected["w"]})
    _, grad = value_and_grad(key, exact, *args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grad.params, expected
    )
    assert grad.guess["u"] is None and float(jnp.abs(grad.guess["w"]).max()) < 1e-4


def test_one_layer_is_all_exact(key):
    """Nothing is drawn, not even where there are more tangents than parameters left."""

    def loss(params, x, y):
        return jnp.mean((x @ params["w"] - y) ** 2)

    args = normal(0, (5, 3)), normal(1, (5,))
    params = {"w": normal(2, (3,)), "steps": 3}
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Orthogonal(), num_tangents=4, space=SPACE,
        aggregation=fwdgrad.Projection(), has_report=True,
    )  # fmt: skip
    value, grad, report = value_and_grad(key, params, *args)
    x, y = args
    residual = x @ params["w"] - y
    np.testing.assert_allclose(value, jnp.mean(residual**2), rtol=1e-6)
    np.testing.assert_allclose(grad["w"], 2 * x.T @ residual / 5, rtol=1e-5)
    assert grad["steps"] == 0 and report["clip_rate"] == 0


def test_what_another_parameter_follows_is_not_exact(key):
    """A loop over layers, weights that are used twice, and a scale after the last layer."""

    def tied(params, x, y):
        return jnp.mean((jnp.tanh(x @ params["w"]) @ params["w"] - y) ** 2)

    def scaled(params, x, y):
        return jnp.mean((jnp.exp(params["s"]) * jnp.tanh(x @ params["w"]) - y) ** 2)

    x, y, w = normal(0, (3, 2)), normal(1, (3, 2)), normal(2, (2, 2))
    cases = [
        (tied, {"w": w}, (x, y)), (scaled, {"w": w, "s": jnp.float32(0.3)}, (x, y)), scanned()
    ]  # fmt: skip
    for loss, params, args in cases:
        explanation = fwdgrad.explain(loss, params, *args, space=SPACE)
        exact = {leaf.name for leaf in explanation.leaves if not leaf.size}
        assert "params['w']" not in exact
        theta = jax.tree.leaves(params)
        drawn = fwdgrad.forward_value_and_grad(loss, space=SPACE).draw(key, params, *args)
        assert len(drawn.tangents) == len(theta) - len(exact)


def test_the_explanation_names_them():
    loss, params, args = mlp(jnp.tanh)
    explanation = fwdgrad.explain(loss, params, *args, space=SPACE)
    assert {leaf.name for leaf in explanation.leaves if not leaf.size} == {
        "params['u']", "params['c']"
    }  # fmt: skip
    (line,) = [line for line in str(explanation).split("\n") if line.startswith("params['u']")]
    assert "none" in line and line.endswith("the last layer: its exact gradient")


def test_arguments_that_are_no_arrays(key):
    def loss(params, x, activation):
        return jnp.mean(activation(x @ params["w"]) @ params["u"])

    params = {"w": normal(0, (3, 2)), "u": normal(1, (2,))}
    x = normal(2, (4, 3))
    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=SPACE)
    _, grad = value_and_grad(key, params, x, jnp.tanh)
    np.testing.assert_allclose(grad["u"], jnp.tanh(x @ params["w"]).mean(0), rtol=1e-5)


def test_a_loss_that_cannot_be_traced_is_refused(key):
    def loss(w, x):
        return jnp.sum(x * w) if w.sum() > 0 else jnp.sum(w)

    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=SPACE)
    with pytest.raises(TypeError, match=r"which space=Weights\(exact_last=True\) needs"):
        value_and_grad(key, jnp.ones(2), jnp.ones(2))


@jax.custom_vjp
def clip_gradient(x):
    return x


clip_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1e-3, 1e-3),))


def test_a_custom_vjp_is_entered_behind_the_last_layer_too(key):
    """Its reverse rule is used nowhere, in neither space."""

    def loss(params, x, y, clip=clip_gradient):
        return jnp.mean((clip(jnp.tanh(x @ params["w"]) @ params["u"]) - y) ** 2)

    params = {"w": normal(0, (3, 2)), "u": normal(1, (2, 1))}
    args = normal(2, (4, 3)), normal(3, (4, 1))
    expected = jax.jit(jax.grad(lambda params: loss(params, *args, clip=lambda x: x)))(params)
    for space in (SPACE, fwdgrad.Activities(exact_last=True)):
        value_and_grad = fwdgrad.forward_value_and_grad(loss, space=space)
        _, grad = jax.jit(value_and_grad)(key, params, *args)
        np.testing.assert_allclose(grad["u"], expected["u"], rtol=1e-5)


@pytest.mark.parametrize("tangents", [fwdgrad.Rademacher(), fwdgrad.BlockSparse()])
def test_a_constant_loss(tangents, key):
    for space in (SPACE, fwdgrad.Weights(), fwdgrad.Activities(exact_last=True)):
        value_and_grad = fwdgrad.forward_value_and_grad(
            lambda w, x: 2.0, tangents=tangents, space=space
        )
        value, grad = value_and_grad(key, jnp.ones(3), jnp.ones((2, 3)))
        assert value == 2 and (grad == 0).all()
