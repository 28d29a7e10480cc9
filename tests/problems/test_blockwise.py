"""Local losses train each block by its own loss alone, and frozen blocks have no gradient."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.problems import CNN, MLP, Frozen, LocalHeads
from tests.sweeps import thorough_but

MODELS = {"mlp": partial(MLP, (8, 6)), "cnn": partial(CNN, 2, 8)}
IMAGE = jax.random.normal(jax.random.key(1), (28, 28))


def gradients(model, loss):
    """Return the gradient of a loss of the logits by each leaf, by its name."""
    grad = eqx.filter_jit(eqx.filter_grad(lambda model: loss(model(IMAGE))))(model)
    return {jax.tree_util.keystr(path): g for path, g in jax.tree_util.tree_leaves_with_path(grad)}


@pytest.mark.parametrize("make", thorough_but([MODELS["mlp"]], MODELS.values()), ids=MODELS)
def test_each_block_has_the_gradient_of_its_own_loss(make):
    model = LocalHeads(make, key=jax.random.key(0))
    rows = range(len(model.heads) + 1)
    losses = [lambda logits, i=i: -jax.nn.log_softmax(logits[i])[3] for i in rows]
    of_all = gradients(model, lambda logits: -jax.nn.log_softmax(logits)[:, 3].sum())
    taught = []
    for loss in losses:
        own = {name: g for name, g in gradients(model, loss).items() if (g != 0).any()}
        for name, g in own.items():
            np.testing.assert_allclose(g, of_all[name], rtol=1e-6)
        taught.append(set(own))
    assert all(taught) and sum(map(len, taught)) == len(set().union(*taught)) == len(of_all)


@pytest.mark.parametrize("num_frozen", [0, 1, 2])
def test_frozen_blocks_have_no_gradient_and_the_others_their_own(num_frozen):
    model = Frozen(MODELS["mlp"], num_frozen, key=jax.random.key(0))

    def loss(logits):
        return -jax.nn.log_softmax(logits)[3]

    found, plain = gradients(model, loss), gradients(model.model, loss)
    for i in range(3):
        for leaf in ("weight", "bias"):
            expected = plain[f".layers[{i}].{leaf}"] * (i >= num_frozen)
            np.testing.assert_allclose(found[f".model.layers[{i}].{leaf}"], expected, rtol=1e-6)


def test_the_last_block_cannot_be_frozen():
    with pytest.raises(ValueError, match=r"num_frozen must be from 0 to 2, .*; found 3"):
        Frozen(MODELS["mlp"], 3, key=jax.random.key(0))
    assert jnp.isfinite(Frozen(MODELS["mlp"], 2, key=jax.random.key(0))(IMAGE)).all()
