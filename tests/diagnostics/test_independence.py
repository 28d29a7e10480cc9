"""Losses that mix the examples of a minibatch are errors; independent examples pass."""

import re
from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fwdgrad
from fwdgrad.diagnostics.independence import compare_examples
from fwdgrad.perturbation.loss import Loss
from tests.oracle import normal
from tests.perturbation.activity_losses import LOSSES, images

pytestmark = pytest.mark.thorough

N = 6
X, Y = normal(4, (N, 3)), normal(5, (N, 2))


def linen_batch_norm():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x))
            return nn.Dense(2)(nn.relu(x))

    model = Model()
    variables = model.init(jax.random.key(0), X)

    def loss(params, x, y):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        outputs, _ = model.apply(state, x, mutable=["batch_stats"])
        return jnp.mean((outputs - y) ** 2)

    return loss, variables["params"], (X, Y)


def nnx_batch_norm():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
    )
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, x, y):
        return jnp.mean((nnx.merge(graph, params, rest, copy=True)(x) - y) ** 2)

    return loss, params, (X, Y)


def equinox_batch_norm():
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(8, "batch", mode="batch")
    leaves, structure = jax.tree.flatten(state)
    first = eqx.nn.Linear(3, 8, key=jax.random.key(1))
    last = eqx.nn.Linear(8, 2, key=jax.random.key(2))

    def loss(model, x, y):
        first, norm, last = model

        def of_one(x):
            state = jax.tree.unflatten(structure, leaves)  # one may be used once
            return last(norm(first(x), state)[0])

        return jnp.mean((jax.vmap(of_one, axis_name="batch")(x) - y) ** 2)

    return loss, (first, norm, last), (X, Y)


def explicit_batch_norm():
    def loss(w, x, y):
        z = x @ w
        return jnp.mean(((z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5) - y) ** 2)

    return loss, normal(0, (3, 2)), (X, Y)


def unbiased_batch_norm():
    """Return a loss that is NaN for a minibatch of one: the unbiased deviation divides by zero."""

    def loss(w, x, y):
        z = x @ w
        return jnp.mean((z / z.std(0, ddof=1) - y) ** 2)

    return loss, normal(0, (3, 2)), (X, Y)


def one_dropout_key(w, x, y, key=jax.random.key(0)):
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    return jnp.mean((jnp.where(kept, 2 * x, 0) @ w - y) ** 2)


def linen_dropout():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=False)(nn.Dense(8)(x)))

    model, key = Model(), jax.random.key(1)
    params = model.init({"params": key, "dropout": key}, X)

    def loss(params, x, y, key):
        return jnp.mean((model.apply(params, x, rngs={"dropout": key}) - y) ** 2)

    return partial(loss, key=key), params, (X, Y)


def normalised_weights(w, x, y):
    weights = jax.nn.softmax(x[:, 0])
    return jnp.sum(weights * jnp.mean((x @ w - y) ** 2, 1))


def weighted_by_class(w, x, y):
    return optax.losses.softmax_cross_entropy(x @ w, jnp.ones_like(y) / 2).sum() / y.sum()


def hardest_half(w, x, y):
    losses = jnp.sort(jnp.mean((x @ w - y) ** 2, 1))
    return losses[len(losses) // 2 :].mean()


def ranked(w, x, y):
    score = (x @ w)[:, 0]
    order = y[:, :1] > y[:, 0]
    return jnp.mean(jnp.where(order, jax.nn.softplus(score[None] - score[:, None]), 0)) + 1


def contrastive(w, x, y):
    z, other = x @ w, y
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(z @ other.T)))


def elbo_of_a_sum(w, x, y):
    return jnp.sum((x @ w - y) ** 2) + 0.5 * jnp.sum(w**2)


def one_graph(w, x, y):
    """Return a loss with messages between the nodes of a graph, which are taken for examples."""
    return jnp.mean(((jnp.roll(x, 1, 0) + x) @ w - y) ** 2)


def load_balanced(w, x, y):
    share = jax.nn.softmax(x @ w).mean(0)
    return jnp.mean((x @ w - y) ** 2) + jnp.sum(share**2)


def plain(loss):
    return lambda: (loss, normal(0, (3, 2)), (X, Y))


MIXING = {
    **{
        make.__name__: make
        for make in (
            linen_batch_norm, nnx_batch_norm, equinox_batch_norm, explicit_batch_norm,
            unbiased_batch_norm, linen_dropout,
        )
    },
    **{
        loss.__name__: plain(loss)
        for loss in (
            one_dropout_key, normalised_weights, weighted_by_class, hardest_half, ranked,
            contrastive, elbo_of_a_sum, one_graph, load_balanced,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("make", MIXING.values(), ids=MIXING)
def test_a_loss_that_mixes_examples_is_an_error(make):
    loss, params, args = make()
    together = float(loss(params, *args))
    alone = np.mean([float(loss(params, *(x[i : i + 1] for x in args))) for i in range(N)])
    assert not np.isclose(together, alone, rtol=1e-2)
    with pytest.raises(ValueError, match=r"mode.*use its running averages.*Weights") as caught:
        fwdgrad.check_examples_independent(loss, params, *args)
    pattern = r"examples together is (\S+), but the mean .* alone is (\S+) "
    found = [float(x) for x in re.search(pattern, str(caught.value)).groups()]
    np.testing.assert_allclose(found, [together, alone], rtol=1e-4)


@pytest.mark.parametrize("make", [linen_batch_norm, plain(one_dropout_key)])
def test_explain_reports_a_loss_that_mixes_examples(make):
    loss, params, args = make()
    explanation = fwdgrad.explain(loss, params, *args, space=fwdgrad.Activities())
    assert "examples: fun mixes the examples of a minibatch" in str(explanation)


@pytest.mark.parametrize("make", [*LOSSES.values(), images], ids=[*LOSSES, "images"])
def test_losses_with_independent_examples_pass(make):
    loss, params, args = make()
    fwdgrad.check_examples_independent(loss, params, *args)


def test_running_averages_layer_norm_and_a_key_for_each_example_pass():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm()(nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x)))
            return nn.Dense(2)(x)

    model = Model()
    variables = model.init(jax.random.key(0), X)

    def loss(params, x, y, keys):
        outputs = model.apply({**variables, "params": params}, x)
        masks = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (2,)))(keys)
        return jnp.mean(masks * (outputs - y) ** 2)

    keys = jax.random.split(jax.random.key(1), N)
    fwdgrad.check_examples_independent(loss, variables["params"], X, Y, keys)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_differences_by_rounding_pass(dtype):
    """Also those of half-precision means that are summed in another order."""
    x, y = normal(0, (64, 300), dtype), normal(1, (64, 100), dtype)

    def loss(w, x, y):
        return jnp.mean((jnp.tanh(x @ w) @ jnp.ones((50, 100), dtype) - y) ** 2)

    fwdgrad.check_examples_independent(loss, normal(2, (300, 50), dtype), x, y)


def test_sums_over_examples_pass_and_are_reported():
    def total(w, x, y):
        return jnp.sum((x @ w - y) ** 2)

    w = normal(0, (3, 2))
    fwdgrad.check_examples_independent(total, w, X, Y)
    comparison = compare_examples(Loss(total, w, (X, Y), {}, False))
    assert comparison.is_sum and not comparison.is_mean
    np.testing.assert_allclose(comparison.joint, total(w, X, Y), rtol=1e-6)
    explanation = fwdgrad.explain(total, w, X, Y, space=fwdgrad.Activities())
    assert "fun is their sum" in explanation.examples
    value, _ = fwdgrad.forward_value_and_grad(total, space=fwdgrad.Activities())(
        jax.random.key(0), w, X, Y
    )
    np.testing.assert_allclose(value, total(w, X, Y) / N, rtol=1e-6)


def test_a_minibatch_of_one_passes_and_aux_and_keywords_are_passed_on():
    loss, params, args = explicit_batch_norm()
    fwdgrad.check_examples_independent(loss, params, *(x[:1] for x in args))

    def with_aux(w, x, y, *, scale):
        return scale * loss(w, x, y), x

    with pytest.raises(ValueError, match="mixes"):
        fwdgrad.check_examples_independent(with_aux, params, *args, has_aux=True, scale=2.0)


def test_a_check_inside_of_jit_is_an_error():
    def check(w):
        fwdgrad.check_examples_independent(lambda w, x: jnp.mean(x @ w), w, X)

    with pytest.raises(TypeError, match=r"inside of jax.jit.*call it before"):
        jax.jit(check)(normal(0, (3, 2)))


def test_explain_reports_independent_examples_or_asks_for_values():
    loss, params, args = LOSSES["tanh"]()
    explain = partial(fwdgrad.explain, space=fwdgrad.Activities())
    assert "each example has a loss of its own" in str(explain(loss, params, *args))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, args))
    assert "give arrays" in explain(loss, shapes[0], *shapes[1]).examples
    assert fwdgrad.explain(loss, params, *args).examples == ""
