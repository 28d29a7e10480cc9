"""New forms of a tangent, by a subclass and a rule, held against their dense arrays."""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.factored import Factored
from fwdgrad.tangents.forms import dense, is_structured
from tests.oracle import normal
from tests.sweeps import thorough_but


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["entries"], meta_fields=["origin"]
)
@dataclass
class Diagonal(StructuredTangent):
    """K diagonal matrices, by their diagonals (K, n)."""

    entries: jax.Array
    origin: tuple[str, ...] = ()
    parts = "diagonals"

    @property
    def shape(self):
        return self.entries.shape[1:] * 2

    @property
    def dtype(self):
        return self.entries.dtype

    @property
    def num_tangents(self):
        return self.entries.shape[0]

    def dense(self):
        return jax.vmap(jnp.diag)(self.entries)

    def with_origin(self, origin):
        return replace(self, origin=origin)


@dataclass(frozen=True)
class Diagonals:
    """Signs on the diagonals, for losses that read the diagonal of a matrix alone."""

    def sample(self, key, params, splits):
        return jax.tree.map(
            lambda x: Diagonal(jax.random.rademacher(key, x.shape[:1], x.dtype)), params
        )


def product_with_diagonal(context, equation, primals, tangents):
    """Push x D forward as x * diagonal, for a tangent of the right operand of a plain product."""
    plain = equation.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
    if tangents[0] is not None or not plain:
        return NotImplemented
    context.observe(equation, tangents[1])
    pushed = primals[0][None] * tangents[1].entries[:, None, :]
    return [equation.primitive.bind(*primals, **equation.params)], [pushed]


W, X = normal(0, (4, 4)), normal(1, (5, 4))


def loss(w, x):
    return jnp.mean(jnp.tanh(x @ w) ** 2)


@pytest.mark.parametrize("num_tangents", [1, 3])
@pytest.mark.parametrize("has_rule", [False, True])
def test_a_form_needs_no_change_of_the_library(has_rule, num_tangents, register, key):
    if has_rule:
        register("dot_general", product_with_diagonal, form=Diagonal)
    options = {"tangents": Diagonals(), "num_tangents": num_tangents}
    estimate = fwdgrad.forward_value_and_grad(loss, **options)
    (v,) = estimate.draw(key, W, X).tangents
    assert isinstance(v, Diagonal) and v.num_entries == 4 * num_tangents
    value, grad = jax.jit(estimate)(key, W, X)
    slopes = [jax.jvp(lambda w: loss(w, X), (W,), (one,)) for one in dense(v)]
    terms = [slope * one for (_, slope), one in zip(slopes, dense(v), strict=True)]
    np.testing.assert_allclose(value, slopes[0][0], rtol=1e-6)
    np.testing.assert_allclose(grad, sum(terms) / num_tangents, rtol=1e-5, atol=1e-7)
    (leaf,) = fwdgrad.explain(loss, W, X, **options).leaves
    assert bool(leaf.used) == has_rule and bool(leaf.lost) == (not has_rule)
    assert leaf.form == "diagonals" and leaf.reason == ""
    text = "used by dot_general" if has_rule else "no rule for `dot_general` keeps diagonals"
    assert has_rule or text in str(leaf.lost)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["value", "signs"], meta_fields=["origin"]
)
@dataclass
class Parallel(StructuredTangent):
    """K tangents along one direction, of any shape: v_k = signs[k] · value, with integer signs."""

    value: jax.Array
    signs: jax.Array
    origin: tuple[str, ...] = ()
    parts = "parallel tangents"
    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    num_tangents = property(lambda self: self.signs.shape[0])

    def dense(self):
        return jax.vmap(lambda sign: sign.astype(self.dtype) * self.value)(self.signs)

    def with_origin(self, origin):
        return replace(self, origin=origin)


FORMS = {
    "diagonal": Diagonal(normal(2, (3, 4))),
    "parallel": Parallel(normal(2, (4, 4)), jnp.array([1, -1, 1])),
    "low rank": Factored(normal(2, (3, 2, 4, 1)), normal(3, (3, 2, 1, 4)), (4, 4)),
    "blocks": Blocks(normal(2, (4, 4)), 1, 3),
    "a window of blocks": Blocks(normal(2, (4, 4)), 1, 4).window(jnp.asarray(1), 3),
    "blocks after earlier layers": Blocks(normal(2, (4, 4)), 0, 2, earlier=normal(3, (1, 4, 4))),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_algebra_of_a_form_is_that_of_its_dense_array(name):
    v = FORMS[name]
    c, weights = normal(3, (4, 4)), normal(4, (3,))
    rows = v.dense()
    assert v.num_tangents == len(rows) == 3 and rows.shape[1:] == v.shape
    np.testing.assert_allclose(v.inner(c), [jnp.sum(r * c) for r in rows], rtol=1e-5)
    expected = jnp.einsum("k,kij", weights, rows)
    np.testing.assert_allclose(v.weighted_sum(weights, jnp.float32), expected, rtol=1e-5, atol=1e-6)
    expected = jnp.einsum("kij,lij->kl", rows, rows)
    np.testing.assert_allclose(v.gram(jnp.float32), expected, rtol=1e-5, atol=1e-6)
    for k in range(3):
        np.testing.assert_allclose(v.take(jnp.int32(k)), rows[k], rtol=1e-6)
    np.testing.assert_allclose(dense(v.masked(c)), rows * c, rtol=1e-6)
    twice = dense(v.append_to(c[None])), jnp.concatenate([c[None], rows])
    np.testing.assert_allclose(*twice, rtol=1e-6)
    if (total := v.add(v)) is not None:
        np.testing.assert_allclose(dense(total), 2 * rows, rtol=1e-6)


def network(params, x):
    """Return a loss with a loop over stacked weights, a weight used twice, and a bias."""
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    hidden, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), hidden, params["stack"])
    return jnp.mean((hidden @ params["w"].T) ** 2)


PARAMS = {"w": normal(0, (4, 4)), "b": normal(1, (4,)), "stack": normal(2, (2, 4, 4))}


@dataclass(frozen=True)
class Mixed:
    """A joint distribution that samples the leaves in turn in each of several forms."""

    forms: tuple[str, ...] = ("parallel",)
    is_dense: bool = False

    def sample_together(self, key, params, splits, num_tangents):
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        names = [self.forms[i % len(self.forms)] for i in range(len(leaves))]
        tangents = [
            self._sample(*each, num_tangents) for each in zip(names, keys, leaves, strict=True)
        ]
        tangents = [dense(v) if self.is_dense else v for v in tangents]
        return jax.tree.unflatten(structure, tangents)

    def sample(self, key, params, splits):
        sampled = self.sample_together(key, params, splits, 1)
        return jax.tree.map(lambda v: dense(v)[0], sampled, is_leaf=is_structured)

    def _sample(self, name, key, x, num_tangents):
        value, signs = jax.random.normal(key, x.shape), jax.random.rademacher(key, (num_tangents,))
        tangents = Parallel(value, signs)
        if name == "blocks":
            return Blocks(value, 0, num_tangents)
        if name == "low rank":
            right = jnp.ones((num_tangents, 1, *(1,) * x.ndim))
            return Factored(tangents.dense()[:, None], right, x.shape)
        return tangents.dense() if name == "dense" else tangents


ESTIMATORS = {
    "weights": lambda **options: fwdgrad.forward_value_and_grad(network, **options),
    "projection": lambda **options: fwdgrad.forward_value_and_grad(
        network, aggregation=fwdgrad.Projection(), **options
    ),
    "layerwise": lambda **options: fwdgrad.forward_value_and_grad(
        network, space=fwdgrad.Weights(layerwise=True), **options
    ),
    "activities": lambda **options: fwdgrad.forward_value_and_grad(
        network, space=fwdgrad.Activities(layerwise=True), **options
    ),
    "spsa": lambda **options: fwdgrad.spsa_value_and_grad(network, **options),
    "evolution": lambda **options: fwdgrad.evolution_value_and_grad(network, **options),
}
ALL_FORMS = ("parallel", "blocks", "low rank", "dense")


@pytest.mark.parametrize(
    ("name", "forms"),
    thorough_but(
        [("weights", ALL_FORMS), ("spsa", ("parallel",)), ("activities", ("parallel",))],
        [(name, forms) for name in ESTIMATORS for forms in (("parallel",), ALL_FORMS)],
    ),
)
def test_an_estimate_by_any_form_is_that_by_dense_tangents(name, forms, key):
    """Under a scan, with the forms mixed among the leaves, and under vmap over keys."""
    keys = jax.random.split(key, 2)
    found, expected = (
        jax.jit(
            jax.vmap(
                ESTIMATORS[name](tangents=Mixed(forms, is_dense), num_tangents=3), (0, None, None)
            )
        )(keys, PARAMS, X)
        for is_dense in (False, True)
    )
    rounding = 2e-2 if name == "spsa" else 1e-4  # SPSA divides by the step
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rounding, atol=rounding),
        found,
        expected,
    )


@pytest.mark.parametrize("name", ["weights", "activities"])
def test_tangents_of_a_new_form_drawn_ahead_give_the_estimate_of_their_key(name, key):
    estimate = ESTIMATORS[name](tangents=Mixed(), num_tangents=3)
    drawn = estimate.draw(key, PARAMS, X)
    assert any(isinstance(v, Parallel) for v in drawn.tangents)
    found = jax.jit(estimate.along)(drawn, PARAMS, X)
    expected = jax.jit(estimate)(key, PARAMS, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_a_form_with_integer_parts_takes_a_control_variate(key):
    """The estimate with a guess of zero is the estimate without a guess."""
    estimate = fwdgrad.forward_value_and_grad(loss, tangents=Mixed(), num_tangents=2)
    plain = estimate(key, W, X)[1]
    guided = estimate.guided()
    found = guided(key, guided.init(W, X), X)[1].params
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-7)


class Unregistered(Diagonal):
    """A form that is no pytree: a subclass is not registered with its base class."""


@pytest.mark.parametrize("is_joint", [False, True])
def test_a_form_that_is_no_pytree_is_an_error(is_joint, key):
    class OneByOne:
        def sample(self, key, params, splits):
            return Unregistered(jnp.ones(4))

    class Jointly(OneByOne):
        def sample_together(self, key, params, splits, num_tangents):
            return Unregistered(jnp.ones((num_tangents, 4)))

    distribution = Jointly() if is_joint else OneByOne()
    message = r"sampled for params a Unregistered, a form that is not registered .* Register the"
    with pytest.raises(TypeError, match=message):
        fwdgrad.forward_value_and_grad(loss, tangents=distribution)(key, W, X)
