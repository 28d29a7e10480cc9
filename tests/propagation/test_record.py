"""The record of uses and losses of structure, for any space and any form of tangent."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import fwdgrad
from fwdgrad.perturbation.space import Derivatives, Estimate, PushedForward

X = jnp.ones((5, 20))
W, U = jnp.ones((20, 30)), jnp.ones((30, 30))


def lost_by(loss, params, *args, **options):
    """Return the places of loss of each leaf and of each site."""
    explanation = fwdgrad.explain(loss, params, *args, **options)
    return [found.lost for found in (*explanation.leaves, *explanation.sites)]


LOW_RANK = {
    "no rule": (
        lambda w: jnp.sum(X @ w) + jnp.sum(lax.erf_inv(w)),
        r"erf_inv at .*test_record.py:\d+.*: no rule for `erf_inv` keeps factors",
    ),
    "product over both axes": (
        lambda w: jnp.sum(X @ w) + jnp.einsum("ij,ij->", w, jnp.ones_like(w)),
        r"dot_general at .*: both factors depend on the contracted axes",
    ),
    "product with an array": (
        lambda w: jnp.sum(X @ w) + jnp.sum(w * X[:1].T),
        r"mul at .*: `mul` with an array is no operation on the factors",
    ),
    "carried": (
        lambda w: jnp.sum(X @ w) + lax.fori_loop(0, 3, lambda _, c: c * 0.5, w).sum(),
        r"(scan|while) at .*: carried by a loop",
    ),
    "stacked": (
        lambda w: jnp.sum(X @ w) + lax.scan(lambda c, _: (c, w), 0.0, length=2)[1].sum(),
        "scan at .*: stacked by a loop",
    ),
    "returned": (
        lambda w: jnp.sum(lax.cond(X.sum() > 0, lambda: X @ w * 0 + w.sum(0), lambda: X @ w)),
        "cond at .*: returned by a branch|reduce_sum at .*",
    ),
    "inside of a call of JAX": (
        lambda w: jnp.sum(X @ w) + jnp.sum(jax.nn.log_softmax(w)),
        r"reduce_max at .*test_record.py:\d+",
    ),
}


@pytest.mark.parametrize(("loss", "message"), LOW_RANK.values(), ids=LOW_RANK)
def test_a_loss_of_factors_is_recorded_with_place_and_reason(loss, message):
    (lost,) = lost_by(loss, W)
    assert any(re.match(message, place) for place in lost), lost


def test_a_sum_with_a_dense_tangent_loses_factors():
    def loss(p):
        return jnp.sum(X @ (p["w"] + p["b"] * jnp.ones((20, 30)))) + jnp.sum(X @ p["w"])

    _, lost = lost_by(loss, {"b": jnp.ones(30), "w": W})
    (place,) = lost
    assert place.startswith("add at ") and "another operand has a tangent that is dense" in place


def deep(activation):
    def loss(params, x):
        return jnp.mean(jnp.tanh(activation(x @ params["u"]) @ params["w"]) ** 2)

    return loss, {"u": jnp.ones((20, 32)), "w": jnp.ones((32, 32))}


def test_uses_and_losses_of_blocks_are_recorded():
    options = {"tangents": fwdgrad.BlockSparse(), "num_tangents": 4}
    loss, params = deep(jnp.tanh)
    first, _ = fwdgrad.explain(loss, params, X, **options).leaves
    operations = [place.partition(" at ")[0] for place in first.used]
    assert (first.blocks, operations, first.lost) == (4, ["dot_general", "tanh", "dot_general"], ())
    loss, params = deep(lambda z: jnp.sort(z, axis=1))
    explanation = fwdgrad.explain(loss, params, X, **options)
    (place,) = explanation.leaves[0].lost
    assert place.startswith("sort at ") and place.endswith(
        "`sort` does not keep the axis that is cut (axis 1) apart"
    )
    assert f"LOST, materialised for {place}" in str(explanation)


def test_uses_and_losses_of_block_sparse_noise_are_recorded():
    options = {"tangents": fwdgrad.BlockSparse(), "num_tangents": 4}
    loss, params = deep(jnp.tanh)
    space = fwdgrad.Activities(layerwise=True)
    first, second = fwdgrad.explain(loss, params, X, space=space, **options).sites
    assert first.blocks == second.blocks == 4 and first.lost == ()
    (place,) = second.lost  # the loss sums over the axis
    assert place.startswith("reduce_sum at ") and "the axis that is cut (axis 1)" in place
    loss, params = deep(lambda z: jnp.sort(z, axis=1))
    first, second = fwdgrad.explain(loss, params, X, space=fwdgrad.Activities(), **options).sites
    assert any("`sort` does not keep the axis" in place for place in first.lost)
    (place,) = second.lost
    assert place.startswith("putting it in at ") and "which are dense there" in place


class HalfFrozen:
    """A user's own space, which counts its evaluations and wraps `Weights(exact_last=True)`."""

    def __init__(self):
        self.seen = []

    def at(self, loss, guess=None):
        self.seen.append(len(loss.theta))
        space = fwdgrad.Weights(exact_last=True)
        return space.at(loss, guess)


def test_a_users_space_is_evaluated_itself():
    loss, params = deep(jnp.tanh)
    space = HalfFrozen()
    explanation = fwdgrad.explain(loss, params, X, space=space, num_tangents=2)
    first, last = explanation.leaves
    assert (first.name, first.rank, first.size) == ("params['u']", 1, 2 * (20 + 32))
    assert last.reason == "the last layer: its exact gradient" and last.size == 0
    assert set(space.seen) == {len(params)} and "at HalfFrozen" in explanation.estimator


def test_a_users_space_without_the_interpreter_has_no_forms():
    class Own:
        def at(self, loss, guess=None):
            return Evaluation(loss)

    class Evaluation:
        def __init__(self, loss):
            self.loss = loss

        def draw(self, distribution, keys):
            return [jnp.ones((len(keys), *x.shape), x.dtype) for x in self.loss.theta]

        def push(self, tangents, with_gram):
            (value, derivative) = jax.jvp(
                lambda theta: self.loss.at(theta)[0],
                (self.loss.theta,),
                ([t[0] for t in tangents],),
            )
            return PushedForward(value, None, [Derivatives(derivative[None], None, 0)], tangents)

        def combine(self, pushed, weights):
            return Estimate([weights[0][0] * t[0] for t in pushed.residuals], [])

    loss, params = deep(jnp.tanh)
    explanation = fwdgrad.explain(loss, params, X, space=Own())
    assert [leaf.reason for leaf in explanation.leaves] == [
        "the space pushes no tangent of it through fwdgrad's interpreter"
    ] * 2
    assert explanation.forward.operations > 0


def test_all_evaluations_of_a_layerwise_estimate_are_recorded():
    loss, params = deep(jnp.tanh)
    space = fwdgrad.Weights(layerwise=True)
    leaves = fwdgrad.explain(loss, params, X, space=space).leaves
    assert [leaf.rank for leaf in leaves] == [1, 1] and all(leaf.used for leaf in leaves)


@pytest.mark.parametrize("space", [fwdgrad.Weights(), fwdgrad.Activities(exact_last=True)])
def test_abstract_arrays_give_the_same_record(space):
    def loss(params, x):
        h = jnp.tanh(x @ params["w"])
        return jnp.mean((h @ params["u"]) ** 2) + 0 * x.mean()

    params = {"w": W, "u": U, "name": "a model", "steps": 3}
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x,
        (params, X),
    )
    found, expected = (fwdgrad.explain(loss, *of, space=space) for of in (shapes, (params, X)))
    assert (found.leaves, found.sites, found.forward, found.backprop) == (
        expected.leaves, expected.sites, expected.forward, expected.backprop
    )  # fmt: skip
