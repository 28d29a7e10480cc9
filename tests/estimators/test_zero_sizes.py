"""Operands without entries, in every kind of rule: values and estimates as `jax.jvp` has them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from fwdgrad.tangents.forms import dense
from tests.oracle import normal
from tests.sweeps import thorough_but

W = (12, 10)


def zeros(*shape):
    return jnp.zeros(shape)


def scan(w):
    def turn(carry, x):
        return jnp.tanh(carry + x @ w @ normal(2, (10, 12))), None

    return lax.scan(turn, normal(3, (12,)), zeros(0, 12))[0]


LOSSES = {  # of a weight of shape W, whose derivative by it is not zero
    "vector without entries times matrix": lambda w: zeros(0) @ w[:0],
    "matrix times vector without entries": lambda w: w[:, :0] @ zeros(0),
    "no rows": lambda w: zeros(0, 12) @ w,
    "no columns": lambda w: jnp.sin(w) @ zeros(10, 0),
    "no rows of a layer's output": lambda w: jnp.tanh(normal(1, (5, 12)) @ w)[:0] @ zeros(10, 3),
    "contracted to nothing": lambda w: w[:, :0] @ w[:, :0].T,
    "a slice joined with itself": lambda w: normal(1, (3, 12)) @ jnp.concatenate([w[:0], w]),
    "no outputs": lambda w: normal(1, (3, 12)) @ w[:, :0],
    "sum": lambda w: w[:0] + w.T[:0, :1],
    "no batch": lambda w: zeros(0, 3, 12) @ jnp.broadcast_to(w, (0, *W)),
    "reshape": lambda w: w[:0].reshape(0, 5, 2),
    "pad": lambda w: jnp.pad(w[:, :0], ((0, 0), (1, 0))),
    "scan of no turns": scan,
    "convolution of no images": lambda w: lax.conv_general_dilated(
        zeros(0, 12, 5), w[None].transpose(2, 1, 0), (1,), "SAME"
    ),
    "convolution of no channels": lambda w: lax.conv_general_dilated(
        zeros(2, 0, 5), w[None, :0].transpose(2, 1, 0), (1,), "SAME"
    ),
    "gather": lambda w: w[jnp.zeros(0, int)],
    "dynamic slice": lambda w: lax.dynamic_slice(w, (3, 0), (0, 4)),
    "maximum of none": lambda w: jnp.max(w[:, :0], axis=1, initial=0.0),
    "sort": lambda w: jnp.sort(w[:0], axis=0),
    "unstack": lambda w: jnp.stack([*w[:, :0].T, w[:, 0]]),
}


FORMS = {
    "dense": fwdgrad.Normal(),
    "low rank": fwdgrad.LowRank(rank=2),
    "blocks": fwdgrad.BlockSparse(),
}


@pytest.mark.parametrize(
    ("form", "num_tangents"),
    thorough_but([("low rank", 3)], itertools.product(FORMS, [1, 3])),
)
def test_the_estimate(form, num_tangents, key):
    tangents = FORMS[form]
    params = {"empty": zeros(0, 4), "w": normal(0, W)}

    def loss(params, of_weight):
        w = params["w"]
        return jnp.sum(of_weight(w)) + jnp.sum(w) + jnp.sum(zeros(3, 0) @ params["empty"])

    def both(key):
        found, expected = [], []
        for of_weight in LOSSES.values():
            value_and_grad = fwdgrad.forward_value_and_grad(
                lambda p, of=of_weight: loss(p, of), tangents=tangents, num_tangents=num_tangents
            )
            v = [dense(x) for x in value_and_grad.draw(key, params).tangents]

            def derivative(*each, of=of_weight):
                along = dict(zip(params, each, strict=True))
                return jax.jvp(lambda p: loss(p, of), (params,), (along,))

            values, derivatives = jax.vmap(derivative)(*v)
            mean = [jnp.tensordot(derivatives, x, 1) / num_tangents for x in v]
            expected.append((values[0], mean))
            value, grad = value_and_grad(key, params)
            found.append((value, jax.tree.leaves(grad)))
        return found, expected

    found, expected = jax.jit(both)(key)
    for name, (value, grad), (expected_value, expected_grad) in zip(
        LOSSES, found, expected, strict=True
    ):
        np.testing.assert_allclose(value, expected_value, rtol=1e-5, err_msg=name)
        assert grad[0].shape == (0, 4)
        scale = np.abs(expected_grad[1]).max()
        np.testing.assert_allclose(grad[1], expected_grad[1], atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize("tangents", [fwdgrad.LowRank(), fwdgrad.BlockSparse()], ids=repr)
def test_inner_products_of_tangents_without_entries(tangents, key):
    """`Projection` asks for the tangents' Gram matrix, a guess for their products with it."""

    def loss(params):
        return jnp.sum(jnp.sin(params["w"])) + jnp.sum(zeros(3, 0) @ params["empty"])

    params = {"empty": zeros(0, 4), "w": normal(0, (3, 2))}
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), num_tangents=40, aggregation=fwdgrad.Projection()
    )
    _, grad = jax.jit(value_and_grad)(key, params)
    np.testing.assert_allclose(grad["w"], jnp.cos(params["w"]), atol=1e-3)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=tangents, num_tangents=2
    ).guided()
    guided = value_and_grad.init(params)
    _, grad = jax.jit(value_and_grad)(key, fwdgrad.Guided(params, jax.grad(loss)(params)))
    np.testing.assert_allclose(grad.params["w"], jnp.cos(params["w"]), atol=1e-5)
    assert grad.guess["empty"].shape == guided.guess["empty"].shape == (0, 4)


def test_activities_of_layers_without_entries(key):
    """A network of which one branch has no units, as a simulator without tendons has."""

    def loss(params, x, y):
        hidden = jnp.tanh(x @ params["w"])
        empty = jnp.tanh(hidden @ params["none"])
        return jnp.mean((hidden @ params["out"] + (empty @ params["back"]).sum(1) - y) ** 2)

    shapes = {"w": (3, 4), "none": (4, 0), "back": (0, 2), "out": (4,)}
    params = {name: normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}
    x, y = normal(5, (6, 3)), normal(6, (6,))
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, space=fwdgrad.Activities(exact_last=True), num_tangents=2
    )
    value, grad = jax.jit(value_and_grad)(key, params, x, y)
    exact = jax.jit(jax.grad(loss))(params, x, y)
    np.testing.assert_allclose(value, loss(params, x, y), rtol=1e-5)
    np.testing.assert_allclose(grad["out"], exact["out"], rtol=1e-4)
    assert all(grad[name].shape == shape for name, shape in shapes.items())
