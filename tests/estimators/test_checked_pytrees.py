"""Parameters and aux of classes that check what they are made of, as distributions do.

Only the classes differ from lists of the same leaves, so values and gradients must not, in any bit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.modes.chains import at_weights, pull_back, push_forward
from tests.oracle import normal

pytestmark = pytest.mark.thorough


@jax.tree_util.register_pytree_node_class
class Layer:
    """Refuses all children but arrays that fit, and computes with them."""

    def __init__(self, w, b, count):
        for child in (w, b, count):
            if not isinstance(child, jax.Array):
                raise ValueError(f"{child!r} must be given")
        if w.ndim != 2 or b.shape != w.shape[1:] or not jnp.issubdtype(count.dtype, jnp.integer):
            raise ValueError("w, b and count must fit")
        self.w, self.b, self.count = w, b, count
        self.norm = jnp.sqrt(jnp.sum(w * w))

    def __call__(self, x):
        return jnp.tanh(x @ self.w + self.b)

    def tree_flatten(self):
        return (self.w, self.b, self.count), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@jax.tree_util.register_pytree_with_keys_class
class Scale:
    """Allows one child to be None, with a key of its own, and no other."""

    def __init__(self, factor, offset):
        self.factor, self.offset = 1.0 * factor, offset

    def tree_flatten_with_keys(self):
        return ((jax.tree_util.GetAttrKey("factor"), self.factor), (None, self.offset)), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


class Pair(NamedTuple):
    head: Layer
    scale: Scale
    nothing: None


COUNT = jnp.int32(3)
LEAVES = [
    *(normal(0, (3, 4)), normal(1, (4,)), COUNT),
    *(normal(2, (4, 2)), normal(3, (2,)), COUNT, jnp.float32(0.7)),
]
ARGS = (normal(4, (5, 3)), normal(5, (5, 2)))


def checked(leaves, *others):
    w, b, count, *rest = leaves
    head, scale = Layer(*rest[:3]), Scale(rest[3], None)
    return {"first": Layer(w, b, count), "second": [Pair(head, scale, None), *others]}


def output(first, head, factor, x):
    (w, b), (u, c) = first, head
    return jnp.tanh(x @ w + b) @ u * factor + c


def loss_of_checked(params, x, y):
    first, (pair, *_) = params["first"], params["second"]
    assert pair.nothing is None and pair.scale.offset is None
    made = output((first.w, first.b), (pair.head.w, pair.head.b), pair.scale.factor, x)
    return jnp.mean((made - y) ** 2)


def loss_of_list(leaves, x, y):
    w, b, _, u, c, _, factor = leaves
    return jnp.mean((output((w, b), (u, c), factor, x) - y) ** 2)


WEIGHTS = {
    "weights": {},
    "layerwise": {"layerwise": True},
    "exact_last": {"exact_last": True},
    "both": {"layerwise": True, "exact_last": True},
}
ACTIVITIES = {"activities": {}, "activities, exact_last": {"exact_last": True}}
SPACES = {name: fwdgrad.Weights(**options) for name, options in WEIGHTS.items()} | {
    name: fwdgrad.Activities(**options) for name, options in ACTIVITIES.items()
}


def estimator(name, **options):
    if name in SPACES:
        return lambda fun: fwdgrad.forward_value_and_grad(fun, space=SPACES[name], **options)
    make = getattr(fwdgrad, f"{name}_value_and_grad")
    return lambda fun: make(fun, **options)


def assert_same_bits(found, expected):
    leaves = [jax.tree.leaves(tree) for tree in (found, expected)]
    assert len(leaves[0]) == len(leaves[1])
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)


CASES = [
    *((name, {"tangents": fwdgrad.LowRank()}) for name in SPACES),
    *((name, {"num_tangents": 2, "tangents": fwdgrad.BlockSparse()}) for name in SPACES),
    ("weights", {}),
    ("weights", {"num_tangents": 3, "chunk_size": 2}),
    ("weights", {"num_tangents": 2, "aggregation": fwdgrad.Projection()}),
    ("spsa", {}),
    ("spsa", {"num_tangents": 3, "tangents": fwdgrad.LowRank()}),
    ("spsa", {"num_tangents": 3, "tangents": fwdgrad.BlockSparse()}),
    ("evolution", {"num_tangents": 2}),
    ("backprop", {}),
    ("backprop", {"checkpoint": True}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_the_class_of_the_parameters_changes_no_bit(name, options, key):
    make = estimator(name, **options)
    value, grad = jax.jit(make(loss_of_checked))(key, checked(LEAVES), *ARGS)
    expected_value, expected = jax.jit(make(loss_of_list))(key, LEAVES, *ARGS)
    assert value == expected_value
    assert isinstance(grad["first"], Layer) and isinstance(grad["second"][0], Pair)
    assert_same_bits(grad, expected)


@pytest.mark.parametrize("name", [*SPACES, "spsa", "backprop"])
def test_beside_leaves_that_are_no_arrays(name, key):
    """Outside of `jit`, where parameters may hold anything, and with aux of such a class."""

    def has_aux(loss):
        def both(params, x, y):
            return loss(params, x, y), {"scale": Scale(x, None), "name": "x"}

        return both if name != "spsa" else loss

    options = {"has_aux": True} if name != "spsa" else {}
    make = estimator(name, **options)
    found, grad = make(has_aux(loss_of_checked))(key, checked(LEAVES, "name", jnp.tanh), *ARGS)
    expected, of_list = make(has_aux(loss_of_list))(key, LEAVES, *ARGS)
    assert grad["second"][1:] == ["name", jnp.tanh]
    assert_same_bits(grad["first"], of_list[:3])
    assert_same_bits(grad["second"][0], of_list[3:])
    if name != "spsa":
        assert isinstance(found[1]["scale"], Scale) and found[1]["name"] == "x"
        assert_same_bits(found[1]["scale"], expected[1]["scale"])


GUESSED = ["weights", "layerwise", "exact_last", "activities, exact_last"]


@pytest.mark.parametrize("name", GUESSED)
def test_guesses(name, key):
    """The guess has leaves of the parameters alone, and is learned by arithmetic on pytrees."""

    def twice(loss, params):
        value_and_grad = estimator(name)(loss).guided()
        at = value_and_grad.init(params, *ARGS)
        for k in jax.random.split(key, 2):
            _, grad = jax.jit(value_and_grad)(k, at, *ARGS)
            assert jax.tree.structure(grad.guess) == jax.tree.structure(at.guess)
            at = at._replace(guess=jax.tree.map(lambda a, g: a - 0.5 * g, at.guess, grad.guess))
        return grad

    found, expected = twice(loss_of_checked, checked(LEAVES)), twice(loss_of_list, LEAVES)
    assert_same_bits(found, expected)


def test_a_guess_like_parameters_of_which_all_are_differentiated(key):
    def loss(scale):
        return jnp.sum(scale.factor**2)

    scale = Scale(jnp.array([3.0, 4.0]), None)
    estimate = fwdgrad.forward_value_and_grad(loss).guided()
    _, grad = estimate(key, fwdgrad.Guided(scale, jax.grad(loss)(scale)))
    assert isinstance(estimate.init(scale).guess, Scale) and isinstance(grad.guess, Scale)
    # The guess is the gradient, so nothing is left to chance.
    np.testing.assert_allclose(grad.params.factor, [6.0, 8.0], rtol=1e-6)


def test_arguments_and_drawing_ahead(key):
    """Arguments of such a class, in the spaces that tell data from what is held."""
    for name in ("exact_last", "activities"):
        make = estimator(name)

        def of_scale(leaves, scale, y):
            return loss_of_list(leaves, scale.factor, y)

        found = make(of_scale)(key, LEAVES, Scale(ARGS[0], None), ARGS[1])
        assert_same_bits(found, make(loss_of_list)(key, LEAVES, *ARGS))
        value_and_grad = make(loss_of_checked)
        drawn = value_and_grad.draw(key, checked(LEAVES), *ARGS)
        assert_same_bits(
            value_and_grad.along(drawn, checked(LEAVES), *ARGS),
            value_and_grad(key, checked(LEAVES), *ARGS),
        )


def test_explain(key):
    for name in ("weights", "exact_last", "activities"):
        found = fwdgrad.explain(loss_of_checked, checked(LEAVES), *ARGS, space=SPACES[name])
        expected = fwdgrad.explain(loss_of_list, LEAVES, *ARGS, space=SPACES[name])
        assert [leaf.size for leaf in found.leaves] == [leaf.size for leaf in expected.leaves]
        assert len(found.sites) == len(expected.sites)
        assert found.forward == expected.forward and found.backprop == expected.backprop


def test_a_distribution_is_given_what_needs_no_class(key):
    """Python's own containers have None for other leaves; of any other class the leaves come."""
    given = []

    class Ones:
        def sample(self, key, params, splits):
            given.append(params)
            return jax.tree.map(jnp.ones_like, params)

    def total(params):
        return sum(jnp.sum(x) for x in jax.tree.leaves(params))

    estimate = fwdgrad.forward_value_and_grad(total, tangents=Ones())
    estimate(key, {"w": jnp.zeros(2), "n": [COUNT, (jnp.zeros(()),)]})
    estimate(key, {"w": jnp.zeros(2), "layer": Layer(*LEAVES[:3])})
    structures = [jax.tree.structure(params) for params in given]
    wanted = [{"w": 0, "n": [None, (0,)]}, [0, 0, 0]]
    assert structures == [jax.tree.structure(x) for x in wanted]


def test_a_chain_at_the_weights_of_a_layer():
    chain, weights = at_weights([Layer(*LEAVES[:3]), jnp.sum], ARGS[0], 0)
    value, found = pull_back(chain, weights, jnp.float32(1))
    expected = jax.grad(lambda w, b: jnp.sum(jnp.tanh(ARGS[0] @ w + b)), (0, 1))(*LEAVES[:2])
    assert len(found) == 2
    jax.tree.map(np.testing.assert_array_equal, tuple(found), expected)
    ahead, slope = push_forward(chain, weights, [jnp.ones_like(x) for x in weights])
    np.testing.assert_allclose(slope, sum(jnp.sum(g) for g in expected), rtol=1e-5)
    np.testing.assert_array_equal(ahead, value)
