"""`explain`: forms of tangents, places of use and loss of structure, reasons, costs."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fwdgrad

X = jnp.ones((5, 20))


def layer(params, x):
    return jax.nn.relu(x @ params["used"])  # the line that `explain` should name


def loss(params, x):
    hidden = layer(params, x) @ (params["lost"] + jnp.sin(params["lost"]))
    return jnp.mean(hidden @ params["scaled"] * params["gain"]) + params["table"][3].sum()


PARAMS = {
    "used": jnp.ones((20, 30)),
    "lost": jnp.ones((30, 20)),
    "scaled": jnp.ones((20, 10)),
    "gain": jnp.ones(10),
    "table": jnp.ones((40, 8)),
    "activation": jnp.tanh,
    "count": np.arange(3),
}


def test_forms_of_tangents_and_places_of_use():
    explanation = fwdgrad.explain(loss, PARAMS, X)
    leaves = {leaf.name[8:-2]: leaf for leaf in explanation.leaves}
    assert {name: leaf.rank for name, leaf in leaves.items()} == {
        "used": 1, "lost": None, "scaled": 1, "gain": None, "table": None
    }  # fmt: skip
    assert leaves["used"].size == 50 and leaves["lost"].size == 600
    (use,) = leaves["used"].used
    assert use.startswith("dot_general at diagnostics/test_explanation.py:14:") and "(layer)" in use
    assert leaves["lost"].reason.startswith(
        "no matrix: read by sin at diagnostics/test_explanation.py:18"
    )
    assert not explanation.why_whole and explanation.forward.operations > 0
    text = str(explanation)
    for part in (
        "params['used']",
        "rank 1",
        "used by dot_general",
        "a step, 1 × LowRank(",
        "ratio",
    ):
        assert part in text


def test_a_loss_of_structure_is_reported_with_its_place():
    def tied(w):
        return jnp.mean(jnp.tanh(X @ w)) + jnp.sum(w**2)

    (leaf,) = fwdgrad.explain(tied, jnp.ones((20, 30))).leaves
    assert leaf.rank == 1 and leaf.used[0].startswith("dot_general")
    assert any(place.startswith(("square", "integer_pow", "mul")) for place in leaf.lost)
    assert "LOST, materialised for" in str(fwdgrad.explain(tied, jnp.ones((20, 30))))


def test_a_dense_tangent_has_the_equation_that_reads_the_leaf_as_its_reason():
    """Also in a loop, in a branch, or as the output of the loss."""

    def loss(params):
        carried, _ = lax.scan(lambda h, x: (jnp.tanh(h + x @ params["w"]), None), params["h"], X)
        chosen = lax.cond(carried.sum() > 0, lambda b: b, lambda b: 2 * b, params["b"])
        return jnp.sum(carried) + jnp.sum(chosen)

    params = {"w": jnp.ones((20, 30)), "h": jnp.ones(30), "b": jnp.ones(4), "unread": jnp.ones(2)}
    reasons = {leaf.name: leaf.reason for leaf in fwdgrad.explain(loss, params).leaves}
    assert reasons["params['h']"].startswith("no matrix: read by scan at ")
    assert reasons["params['b']"].startswith("no matrix: read by cond at ")
    assert reasons["params['unread']"] == "the loss does not read it"
    (leaf,) = fwdgrad.explain(lambda p: p, jnp.ones(())).leaves
    assert leaf.reason == "no matrix: read by return at the end of the loss"


def test_a_dense_distribution_is_the_reason_of_dense_tangents():
    """With NumPy arrays as parameters, and several tangents."""
    explanation = fwdgrad.explain(
        lambda w: jnp.mean(X @ w), np.ones((20, 30), np.float32), tangents=fwdgrad.Normal(),
        num_tangents=2,
    )  # fmt: skip
    assert explanation.leaves[0].reason == "sampled dense by Normal()"


def test_losses_without_reverse_mode_or_without_a_jaxpr_are_explained():
    def loop(w):
        return jnp.sum(lax.while_loop(lambda s: s.sum() < 9, lambda s: s + jnp.abs(s @ w), X))

    explanation = fwdgrad.explain(loop, jnp.ones((20, 20)))
    assert explanation.backprop is None and "—" in str(explanation)

    def asks(w):
        return jnp.sum(X @ w) if w[0, 0] > 0 else jnp.sum(w)

    explanation = fwdgrad.explain(asks, jnp.ones((20, 20)))
    assert explanation.why_whole and "asks for the value of a parameter" in str(explanation)
