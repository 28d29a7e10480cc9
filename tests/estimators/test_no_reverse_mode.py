"""No estimator has a reverse-mode pass through more than one layer: seen in its jaxpr.

Backprop goes from layer to layer by δ Wᵀ, the product of something that comes after the labels with
a weight. These are looked for, in loops and branches too.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core as jex_core

import fwdgrad
from fwdgrad.problems import CNN, MLP, LocalHeads
from fwdgrad.propagation.jaxprs import inlined
from fwdgrad.util.jax_internals import read_program
from fwdgrad.util.layouts import scan_parts
from tests.oracle import normal
from tests.sweeps import thorough_but

BILINEAR = ("dot_general", "conv_general_dilated")
LAYERWISE = fwdgrad.Activities(layerwise=True, exact_last=True)
EXACT_LAST = fwdgrad.Weights(layerwise=True, exact_last=True)
SPACES = (fwdgrad.Weights(), EXACT_LAST, fwdgrad.Activities(), LAYERWISE)
MODELS = {
    "mlp": lambda key: MLP((8, 8), key=key),
    "cnn": lambda key: CNN(2, 8, key=key),
    "local heads": lambda key: LocalHeads(lambda key: MLP((8, 8), key=key), key=key),
    "local heads, cnn": lambda key: LocalHeads(lambda key: CNN(2, 8, key=key), key=key),
}


class Kind(NamedTuple):
    """What a variable depends on: weights, the examples' inputs, their labels."""

    weights: bool = False
    inputs: bool = False
    labels: bool = False

    @property
    def is_weight(self):
        return self.weights and not (self.inputs or self.labels)


def joined(kinds):
    return Kind(*(any(flags) for flags in zip(*kinds, strict=True))) if kinds else Kind()


def walk(jaxpr, kinds):
    """The transposed products in a Jaxpr with inputs of these kinds, and its outputs' kinds."""
    of = dict(zip(jaxpr.invars, kinds, strict=True))

    def kind(v):
        return Kind() if isinstance(v, jex_core.Literal) else of.get(v, Kind())

    found = []
    for equation in jaxpr.eqns:
        read = [kind(v) for v in equation.invars]
        if equation.primitive.name in BILINEAR:
            pair = any(k.is_weight for k in read) and any(k.labels for k in read)
            found += [equation] if pair else []
        for body in jex_core.jaxprs_in_params(equation.params):
            inner = read[len(read) - len(body.invars) :]
            while True:  # what a loop carries round is of the kinds of its outputs, too
                products, outputs = walk(body, inner)
                first, number = carried(equation, body)
                before = list(inner)
                for i in range(number):
                    inner[first + i] = joined([inner[first + i], outputs[i]])
                if inner == before:
                    break
            found += products
        of.update(dict.fromkeys(equation.outvars, joined(read)))
    return found, [kind(v) for v in jaxpr.outvars]


def carried(equation, body):
    """The first input of a loop's body that is carried round, and how many are."""
    if equation.primitive.name == "scan":
        parts = scan_parts(equation)
        return parts.num_consts, parts.num_carry
    if equation.primitive.name == "while":
        return len(body.invars) - len(body.outvars), len(body.outvars)
    return 0, 0


def transposed_products(fun, params, x, y):
    jaxpr = inlined(read_program(jax.make_jaxpr(fun)(params, x, y)))
    kinds = (Kind(weights=True), Kind(inputs=True), Kind(labels=True))
    each = [k for k, a in zip(kinds, (params, x, y), strict=True) for _ in jax.tree.leaves(a)]
    return walk(jaxpr, each)[0]


@pytest.fixture
def case(request, key):
    params, static = fwdgrad.partition(MODELS[request.param](key))

    def loss(params, x, y):
        logits = jax.vmap(fwdgrad.combine(params, static))(x).reshape(len(y), -1, 10)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), :, y].sum(1).mean()

    def products(estimator, guess=False):
        x, y = normal(1, (2, 28, 28)), jnp.array([3, 7])
        if not guess:
            return transposed_products(lambda *args: estimator(key, *args)[1], params, x, y)
        guided = estimator.guided()
        guess = jax.tree.map(jnp.ones_like, guided.init(params, x, y).guess)
        return transposed_products(
            lambda params, x, y: guided(key, fwdgrad.Guided(params, guess), x, y)[1], params, x, y
        )

    return loss, products


@pytest.mark.parametrize("case", ["mlp", "cnn"], indirect=True)
def test_backprop_has_them(case):
    loss, products = case
    assert len(products(fwdgrad.backprop_value_and_grad(loss))) >= 2
    assert len(products(fwdgrad.backprop_value_and_grad(loss, checkpoint=True))) >= 2


@pytest.mark.parametrize("case", ["local heads", "local heads, cnn"], indirect=True)
def test_local_heads_by_backprop_have_those_of_the_heads_alone(case, request):
    """From a head to its block, and not from block to block."""
    loss, products = case
    found = products(fwdgrad.backprop_value_and_grad(loss))
    model = MODELS[request.node.callspec.params["case"]](jax.random.key(0))
    heads = [head.weight.shape for head in model.heads]
    weights = {v.aval.shape for e in found for v in e.invars}
    assert len(found) == len(heads)
    assert all({shape, shape[::-1]} & weights for shape in heads)


def test_they_are_seen_in_a_loop():
    def loss(params, x, y):
        return jnp.mean((jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params)[0] - y) ** 2)

    args = jnp.ones((3, 2, 2)), jnp.ones((4, 2)), jnp.ones((4, 2))
    assert transposed_products(jax.grad(loss), *args)
    assert not transposed_products(loss, *args)


@pytest.mark.parametrize(
    ("case", "space"),
    thorough_but(
        [
            *itertools.product(["mlp"], SPACES),
            ("cnn", LAYERWISE), ("local heads", EXACT_LAST), ("local heads", fwdgrad.Activities()),
        ],
        itertools.product(MODELS, SPACES),
    ),
    indirect=["case"],
    ids=str,
)  # fmt: skip
def test_no_estimator_has_any(case, space):
    loss, products = case
    for tangents in (fwdgrad.Rademacher(), fwdgrad.LowRank(), fwdgrad.BlockSparse()):
        estimator = fwdgrad.forward_value_and_grad(
            loss, tangents=tangents, num_tangents=2, space=space
        )
        assert products(estimator) == []


@pytest.mark.parametrize("case", ["mlp"], indirect=True)
@pytest.mark.parametrize("space", SPACES[1:], ids=repr)
@pytest.mark.parametrize(
    "options",
    [
        {"tangents": fwdgrad.Orthogonal(), "num_tangents": 2},
        {"aggregation": fwdgrad.Projection(), "num_tangents": 2},
        {"num_tangents": 3, "chunk_size": 1},
        {"tangents": fwdgrad.Rademacher(), "shrink": True, "clip": 1.0},
    ],
    ids=["orthogonal", "projection", "chunks", "shrink and clip"],
)
def test_nor_have_other_choices(case, space, options):
    loss, products = case
    assert products(fwdgrad.forward_value_and_grad(loss, space=space, **options)) == []


@pytest.mark.parametrize("case", ["mlp", "cnn"], indirect=True)
@pytest.mark.parametrize("space", [fwdgrad.Weights(), LAYERWISE], ids=repr)
def test_nor_has_a_guess(case, space):
    loss, products = case
    estimator = fwdgrad.forward_value_and_grad(loss, num_tangents=2, space=space)
    assert products(estimator, guess=True) == []


@pytest.mark.parametrize("case", ["mlp"], indirect=True)
@pytest.mark.parametrize("make", [fwdgrad.spsa_value_and_grad, fwdgrad.evolution_value_and_grad])
def test_nor_has_what_uses_values_alone(case, make):
    loss, products = case
    assert products(make(loss, num_tangents=2)) == []
