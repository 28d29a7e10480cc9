"""`forward_gradient` in chains of optax: each step is that of a loop by hand, with the same key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fwdgrad
from fwdgrad.optax import forward_gradient
from fwdgrad.training import guided_optimizer
from tests.optax.network import (
    IS_FREE,
    LABELS,
    PARAMS,
    X,
    Y,
    assert_near,
    assert_same,
    loss,
    steps,
    steps_by_hand,
)
from tests.sweeps import thorough_but

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "rmsprop": optax.rmsprop(0.1),
    "adagrad": optax.adagrad(0.1),
    "lion": optax.lion(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "lamb": optax.lamb(0.1),
    "muon": optax.contrib.muon(0.1),
    "schedule-free": optax.contrib.schedule_free_sgd(0.1),
    "clipped": optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(optax.cosine_decay_schedule(0.1, 10))
    ),
}
ESTIMATORS = {
    "one-tangent": (fwdgrad.forward_value_and_grad, {}),
    "low-rank": (
        fwdgrad.forward_value_and_grad,
        {"tangents": fwdgrad.LowRank(), "num_tangents": 5, "chunk_size": 2, "clip": 1.0},
    ),
    "layerwise": (
        fwdgrad.forward_value_and_grad,
        {"space": fwdgrad.Weights(layerwise=True, exact_last=True), "shrink": True},
    ),
    "projection": (
        fwdgrad.forward_value_and_grad,
        {"aggregation": fwdgrad.Projection(), "num_tangents": 3},
    ),
    "activities": (
        fwdgrad.forward_value_and_grad,
        {
            "space": fwdgrad.Activities(layerwise=True, exact_last=True),
            "tangents": fwdgrad.BlockSparse(),
            "num_tangents": 2,
        },
    ),
    "spsa": (fwdgrad.spsa_value_and_grad, {"step": 1e-2}),
    "evolution": (fwdgrad.evolution_value_and_grad, {}),
    "backprop": (fwdgrad.backprop_value_and_grad, {}),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_makes_the_steps_of_a_loop_by_hand(name, key):
    optimizer = OPTIMIZERS[name]
    tx = optax.chain(forward_gradient(key, num_tangents=4), optimizer)
    params, (of_front, of_optimizer) = steps(tx, PARAMS, x=X, y=Y)
    value_and_grad = fwdgrad.forward_value_and_grad(loss, num_tangents=4)
    expected, state, value = steps_by_hand(value_and_grad, optimizer, key, PARAMS, X, Y)
    assert_near((params, of_optimizer, of_front.value), (expected, state, value))
    assert any((params[name] != PARAMS[name]).all() for name in PARAMS)


@pytest.mark.parametrize("name", thorough_but(["low-rank", "spsa"], ESTIMATORS))
def test_an_estimator_makes_the_steps_of_a_loop_by_hand(name):
    estimator, options = ESTIMATORS[name]
    tx = optax.chain(forward_gradient(7, estimator=estimator, **options), optax.sgd(0.1))
    params, (state, _) = steps(tx, PARAMS, x=X, y=Y)
    value_and_grad = estimator(loss, **options)
    expected, _, value = steps_by_hand(
        value_and_grad, optax.sgd(0.1), jax.random.key(7), PARAMS, X, Y
    )
    assert_near((params, state.value), (expected, value))


def test_a_loss_that_reverse_mode_cannot_differentiate():
    def fun(w):
        return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] ** 2), (0, w))[1]

    updates, _ = forward_gradient(0, tangents=fwdgrad.Rademacher()).update(
        None, forward_gradient(0).init(1.0), jnp.float32(1.1), value_fn=fun
    )
    np.testing.assert_allclose(updates, 8 * 1.1**7, rtol=1e-5)  # one dimension: exact


def test_multi_steps_averages_estimates():
    """Of three minibatches by three keys, at the same parameters."""
    accumulated = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
    tx = optax.chain(forward_gradient(5), accumulated)
    params, state, key, grads = PARAMS, tx.init(PARAMS), jax.random.key(5), []
    value_and_grad = jax.jit(fwdgrad.forward_value_and_grad(loss))
    for i in range(3):
        assert_same(params, PARAMS)
        x, y = X[2 * i : 2 * i + 2], Y[2 * i : 2 * i + 2]
        params, state = steps(tx, params, 1, state=state, x=x, y=y)
        key, key_of_step = jax.random.split(key)
        grads.append(value_and_grad(key_of_step, PARAMS, x, y)[1])
    mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
    assert_near(params, jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, mean))


def test_apply_if_finite_leaves_out_an_estimate_that_is_not():
    tx = optax.chain(forward_gradient(0), optax.apply_if_finite(optax.adam(0.1), 5))
    before, state = steps(tx, PARAMS, 1, x=X, y=Y)
    after, state = steps(tx, before, 1, state=state, x=X.at[0, 0].set(jnp.nan), y=Y)
    assert_same(after, before)
    assert optax.tree.get(state, "total_notfinite") == 1
    assert optax.tree.get(state, "count") == 1 and np.isnan(optax.tree.get(state, "value"))
    after, state = steps(tx, before, 1, state=state, x=X, y=Y)
    assert optax.tree.get(state, "count") == 2 and (after["w"] != before["w"]).all()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "freeze",
    [
        optax.partition({"adam": optax.adam(0.1), "none": optax.set_to_zero()}, LABELS),
        optax.chain(
            optax.adam(0.1),
            optax.masked(optax.set_to_zero(), {k: not m for k, m in IS_FREE.items()}),
        ),
    ],
    ids=["partition", "masked"],
)
def test_masks_after_the_estimate_leave_leaves_alone(freeze):
    params, _ = steps(optax.chain(forward_gradient(0), freeze), PARAMS, x=X, y=Y)
    by_adam, _ = steps(optax.chain(forward_gradient(0), optax.adam(0.1)), PARAMS, 1, x=X, y=Y)
    once, _ = steps(optax.chain(forward_gradient(0), freeze), PARAMS, 1, x=X, y=Y)
    assert_same(params["b"], PARAMS["b"])
    assert_near({**by_adam, "b": PARAMS["b"]}, once)  # the estimate is that of all leaves


@pytest.mark.parametrize("mask", [IS_FREE, lambda params: {k: k != "b" for k in params}])
@pytest.mark.parametrize("space", [fwdgrad.Weights(layerwise=True), fwdgrad.Activities()])
def test_a_masked_leaf_is_a_constant_of_the_loss(mask, space, key):
    tx = optax.chain(
        forward_gradient(key, mask=mask, space=space), optax.masked(optax.adamw(0.1), mask)
    )
    params, _ = steps(tx, PARAMS, x=X, y=Y)

    def of_free(free, x, y):
        return loss({**free, "b": PARAMS["b"]}, x, y)

    expected, _, _ = steps_by_hand(
        fwdgrad.forward_value_and_grad(of_free, space=space), optax.adamw(0.1), key,
        {"w": PARAMS["w"], "b": None, "out": PARAMS["out"]}, X, Y,
    )  # fmt: skip
    assert_near(params, {**expected, "b": PARAMS["b"]})


def test_no_tangent_of_a_masked_leaf_is_drawn():
    """One free dimension and a sign: the estimate is exact, whatever the other leaves are."""
    params = {"block": {"w": X, "n": jnp.int32(3)}, "scale": jnp.float32(2.0)}

    def fun(params):
        block = params["block"]
        return params["scale"] ** block["n"] * jnp.sum(block["w"] ** 2)

    tx = forward_gradient(0, tangents=fwdgrad.Rademacher(), mask={"block": False, "scale": True})
    updates, _ = tx.update(None, tx.init(params), params, value_fn=fun)
    np.testing.assert_allclose(updates["scale"], 3 * 2**2 * jnp.sum(X**2), rtol=1e-5)
    assert not updates["block"]["w"].any() and updates["block"]["n"] == 0
    assert updates["block"]["n"].dtype == jnp.int32


@pytest.mark.parametrize(
    "space", [fwdgrad.Weights(), fwdgrad.Activities(layerwise=True, exact_last=True)]
)
def test_a_guided_estimator_learns_its_guess_by_the_optimizer(space, key):
    def guided(fun, **options):
        return fwdgrad.forward_value_and_grad(fun, **options).guided()

    value_and_grad, optimizer = guided(loss, space=space), guided_optimizer(optax.adam(0.1), 0.1)
    start = value_and_grad.init(PARAMS, X, Y)
    tx = optax.chain(forward_gradient(key, estimator=guided, space=space), optimizer)
    found, _ = steps(tx, start, x=X, y=Y)
    expected, _, _ = steps_by_hand(value_and_grad, optimizer, key, start, X, Y)
    assert_near(found, expected)
    assert any(x.any() for x in jax.tree.leaves(found.guess))


class _Loss:
    def at(self, params, x, y):
        return loss(params, x, y)


@pytest.mark.thorough
def test_arguments_of_the_loss_and_of_others():
    """By position where the loss allows it, else by name. Others are for other transformations."""
    seen = []

    def fun(params, x, y=None, *, rate, **more):
        seen.append((x.shape, rate, sorted(more)))
        return rate * jnp.sum(params["b"]) * jnp.mean(x)

    tx = optax.chain(
        forward_gradient(0, space=fwdgrad.Activities()),
        optax.sgd(0.1),
        optax.contrib.reduce_on_plateau(),
    )
    state = tx.init(PARAMS)
    tx.update(None, state, PARAMS, value_fn=fun, rate=2.0, x=X, value=1.0)
    assert seen[-1] == ((1, 3), 2.0, ["value"])  # examples by position, one at a time
    expected = tx.update(None, state, PARAMS, value_fn=loss, x=X, y=Y, value=1.0, anything="else")
    found = tx.update({}, state, PARAMS, value_fn=_Loss().at, x=X, y=Y, value=1.0)
    assert_same(found, expected)
