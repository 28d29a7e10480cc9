"""A new form of tangents, diagonal matrices, by the base class and a rule of its own alone."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.propagation.rules import registry
from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.forms import dense
from tests.oracle import normal


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
        return Diagonal(self.entries, origin)


@dataclass(frozen=True)
class Diagonals:
    """Signs on the diagonals: for losses that read the diagonal of a matrix alone."""

    def sample_together(self, key, params, splits, number):
        def one(x):
            return Diagonal(jax.random.rademacher(key, (number, len(x)), x.dtype))

        return jax.tree.map(one, params)

    def sample(self, key, params, splits):
        return jax.tree.map(lambda v: dense(v)[0], self.sample_together(key, params, splits, 1))


def product_with_diagonal(context, equation, primals, tangents):
    """x D = x * diagonal, for a tangent of the right operand of a plain product."""
    plain = equation.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
    if tangents[0] is not None or not plain:
        return NotImplemented
    context.observe(equation, tangents[1])
    pushed = primals[0][None] * tangents[1].entries[:, None, :]
    return [equation.primitive.bind(*primals, **equation.params)], [pushed]


@pytest.fixture
def rules(monkeypatch):
    table = {k: registry.RulesOfPrimitive(v.by_form) for k, v in registry.RULES.items()}
    monkeypatch.setattr(registry, "RULES", table)
    monkeypatch.setattr("fwdgrad.propagation.pushforward.RULES", table)
    return table


W, X = normal(0, (4, 4)), normal(1, (5, 4))


def loss(w, x):
    return jnp.mean(jnp.tanh(x @ w) ** 2)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("has_rule", [False, True])
def test_a_form_needs_no_change_of_the_library(has_rule, number, rules, key):
    if has_rule:
        fwdgrad.register_rule("dot_general", product_with_diagonal, form=Diagonal)
    estimate = fwdgrad.forward_value_and_grad(loss, tangents=Diagonals(), num_tangents=number)
    (v,) = estimate.draw(key, W, X).tangents
    assert isinstance(v, Diagonal) and v.num_entries == 4 * number
    value, grad = jax.jit(estimate)(key, W, X)
    slopes = [jax.jvp(lambda w: loss(w, X), (W,), (one,)) for one in dense(v)]
    expected = sum(slope * one for (_, slope), one in zip(slopes, dense(v), strict=True)) / number
    np.testing.assert_allclose(value, slopes[0][0], rtol=1e-6)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-7)
    (leaf,) = fwdgrad.explain(loss, W, X, tangents=Diagonals(), num_tangents=number).leaves
    assert bool(leaf.used) == has_rule and bool(leaf.lost) == (not has_rule)
    text = "used by dot_general" if has_rule else "no rule for `dot_general` keeps diagonals"
    assert has_rule or text in str(leaf.lost)


def test_its_algebra_is_that_of_the_arrays():
    v = Diagonal(normal(2, (3, 4)))
    c, weights = normal(3, (4, 4)), normal(4, (3,))
    rows = v.dense()
    np.testing.assert_allclose(v.inner(c), [jnp.sum(r * c) for r in rows], rtol=1e-5)
    np.testing.assert_allclose(
        v.weighted_sum(weights, jnp.float32), jnp.einsum("k,kij", weights, rows), rtol=1e-5
    )
    np.testing.assert_allclose(
        v.gram(jnp.float32), jnp.einsum("kij,lij->kl", rows, rows), rtol=1e-5
    )
    np.testing.assert_array_equal(v.one(jnp.int32(1)), rows[1])
    np.testing.assert_array_equal(v.masked(c), rows * c)
    np.testing.assert_array_equal(v.after(rows[:1]), jnp.concatenate([rows[:1], rows]))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            lambda y, t: ([y], [t[0]]),
            r"tangents of shapes \[\(5, 4\)\]; they must be \[\(1, 5, 4\)\]",
        ),
        (lambda y, t: ([y, y], [t]), r"outputs of shapes .*they must be \[\(5, 4\)\]"),
        (lambda y, t: ([y], [t, t]), r"tangents of shapes"),
        (lambda y, t: y, r"must return a pair of lists"),
    ],
)
def test_a_rule_that_returns_something_else(result, message, rules, key):
    def rule(context, equation, primals, tangents):
        y = equation.primitive.bind(*primals, **equation.params)
        return result(y, jnp.zeros((1, *y.shape)))

    fwdgrad.register_rule("dot_general", rule, form=Diagonal)
    estimate = fwdgrad.forward_value_and_grad(loss, tangents=Diagonals())
    with pytest.raises(ValueError, match=rf"registered for dot_general .*{message}"):
        estimate(key, W, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.sin, lambda: None), "primitive must be a primitive of JAX or its name"),
        (("sin", 3), "rule must be a function"),
        (("sin", lambda: None, jax.Array), "form must be a class of structured tangents"),
    ],
)
def test_wrong_arguments(arguments, message):
    primitive, rule, *form = arguments
    with pytest.raises(TypeError, match=message):
        fwdgrad.register_rule(primitive, rule, **({"form": form[0]} if form else {}))
