"""Losses that mix the examples of a minibatch are errors; independent examples pass."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.diagnostics.independence import compare_examples
from fwdgrad.perturbation.loss import Loss
from tests.oracle import normal
from tests.perturbation.activity_losses import LOSSES, images

from .independent_losses import INDEPENDENT
from .mixing_losses import HIDDEN, MIXING, MODELS, N, X, Y

pytestmark = pytest.mark.thorough

W = normal(0, (3, 2))


def values(loss, params, *args):
    """Return the loss of all examples together, and the mean of their losses alone."""
    alone = [float(loss(params, *(x[i : i + 1] for x in args))) for i in range(N)]
    return float(loss(params, *args)), np.mean(alone)


def plain(loss):
    return lambda: (loss, W, (X, Y))


@pytest.mark.parametrize(
    "make", [*MODELS.values(), *map(plain, MIXING.values())], ids=[*MODELS, *MIXING]
)
def test_a_loss_that_mixes_examples_is_an_error(make):
    loss, params, args = make()
    together, alone = values(loss, params, *args)
    assert not np.isclose(together, alone, rtol=1e-2)
    with pytest.raises(ValueError, match=r"mode.*use its running averages.*Weights") as caught:
        fwdgrad.check_examples_independent(loss, params, *args)
    pattern = r"examples together is (\S+), but the mean .* alone is (\S+) "
    found = [float(x) for x in re.search(pattern, str(caught.value)).groups()]
    np.testing.assert_allclose(found, [together, alone], rtol=1e-4)


@pytest.mark.parametrize(("loss", "params"), HIDDEN.values(), ids=HIDDEN)
def test_a_loss_whose_values_agree_and_gradients_do_not_is_an_error(loss, params):
    together, alone = values(loss, params, X, Y)
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    with pytest.raises(ValueError, match=r"direction, is \S+, but .*, though the losses agree\. "):
        fwdgrad.check_examples_independent(loss, params, X, Y)


@pytest.mark.parametrize("make", [MODELS["linen_batch_norm"], plain(MIXING["one dropout key"])])
def test_explain_reports_a_loss_that_mixes_examples(make):
    loss, params, args = make()
    explanation = fwdgrad.explain(loss, params, *args, space=fwdgrad.Activities())
    assert "examples: fun mixes the examples of a minibatch" in str(explanation)


@pytest.mark.parametrize("make", [*LOSSES.values(), images], ids=[*LOSSES, "images"])
def test_losses_with_independent_examples_pass(make):
    loss, params, args = make()
    fwdgrad.check_examples_independent(loss, params, *args)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("loss", INDEPENDENT.values(), ids=INDEPENDENT)
def test_kinds_of_losses_with_independent_examples_pass(loss, dtype):
    with jax.enable_x64(dtype == "float64"):
        fwdgrad.check_examples_independent(loss, *(x.astype(dtype) for x in (W, X, Y)))


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
    np.testing.assert_allclose(comparison.loss.joint, total(w, X, Y), rtol=1e-6)
    explanation = fwdgrad.explain(total, w, X, Y, space=fwdgrad.Activities())
    assert "fun is their sum" in explanation.examples
    value, _ = fwdgrad.forward_value_and_grad(total, space=fwdgrad.Activities())(
        jax.random.key(0), w, X, Y
    )
    np.testing.assert_allclose(value, total(w, X, Y) / N, rtol=1e-6)


def test_a_minibatch_of_one_passes_and_aux_and_keywords_are_passed_on():
    loss, params, args = MIXING["batch norm"], W, (X, Y)
    fwdgrad.check_examples_independent(loss, params, *(x[:1] for x in args))

    def with_aux(w, x, y, *, scale):
        return scale * loss(w, x, y), x

    with pytest.raises(ValueError, match="mixes"):
        fwdgrad.check_examples_independent(with_aux, params, *args, has_aux=True, scale=2.0)


def test_a_check_of_no_examples_is_an_error():
    with pytest.raises(ValueError, match="have no examples"):
        fwdgrad.check_examples_independent(MIXING["batch norm"], W, X[:0], Y[:0])


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
