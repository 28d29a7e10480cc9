"""A new form of tangents, diagonal matrices, by the base class and a rule of its own alone."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex_core
from jax.interpreters import ad, batching

import fwdgrad
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
def register():
    """`register_rule` for one test."""
    undone = []

    def register(*args, **options):
        undone.append(fwdgrad.register_rule(*args, **options))

    yield register
    for undo in reversed(undone):
        undo()


W, X = normal(0, (4, 4)), normal(1, (5, 4))


def loss(w, x):
    return jnp.mean(jnp.tanh(x @ w) ** 2)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("has_rule", [False, True])
def test_a_form_needs_no_change_of_the_library(has_rule, number, register, key):
    if has_rule:
        register("dot_general", product_with_diagonal, form=Diagonal)
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
    np.testing.assert_array_equal(v.take(jnp.int32(1)), rows[1])
    np.testing.assert_array_equal(v.masked(c), rows * c)
    np.testing.assert_array_equal(v.append_to(rows[:1]), jnp.concatenate([rows[:1], rows]))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda y, t: ([y], [t[0]]), r"tangents float32\[5, 4\].* must be float32\[1, 5, 4\]"),
        (lambda y, t: ([y, y], [t]), r"outputs float32.*; they must be float32\[5, 4\]"),
        (lambda y, t: ([y], [t, t]), r"tangents float32"),
        (lambda y, t: ([y], [t.astype("bfloat16")]), r"tangents bfloat16.* must be float32"),
        (lambda y, t: y, r"must return a pair of lists"),
    ],
)
def test_a_rule_that_returns_something_else(result, message, register, key):
    def rule(context, equation, primals, tangents):
        y = equation.primitive.bind(*primals, **equation.params)
        return result(y, jnp.zeros((1, *y.shape)))

    register("dot_general", rule, form=Diagonal)
    estimate = fwdgrad.forward_value_and_grad(loss, tangents=Diagonals())
    with pytest.raises(ValueError, match=rf"registered for dot_general .*{message}"):
        estimate(key, W, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.sin, lambda: None), "primitive must be a primitive, or the name of one of JAX"),
        (("sin", 3), "rule must be a function"),
        (("sin", lambda: None, jax.Array), "form must be a class of structured tangents"),
    ],
)
def test_wrong_arguments(arguments, message):
    primitive, rule, *form = arguments
    with pytest.raises(TypeError, match=message):
        fwdgrad.register_rule(primitive, rule, **({"form": form[0]} if form else {}))


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"found 'dot_genral', .* Give the primitive itself"):
        fwdgrad.register_rule("dot_genral", lambda *_: NotImplemented)


@pytest.mark.parametrize("name", ["neg", "transpose", "tanh", "dot_general"])
def test_a_primitive_of_the_users_own_has_none_of_jaxs_rules(name, key):
    """Three times its operand, whatever its name."""
    triple = jex_core.Primitive(name)
    triple.def_impl(lambda x: 3 * x)
    triple.def_abstract_eval(lambda x: x)
    ad.deflinear2(triple, lambda ct, x: [3 * ct])
    batching.defvectorized(triple)

    def of_user(w, x):
        return jnp.mean(jnp.square(triple.bind(x @ w)))

    def of_jax(w, x):
        return jnp.mean(jnp.square(3 * (x @ w)))

    for options in (
        {"tangents": fwdgrad.LowRank()},
        {"tangents": fwdgrad.BlockSparse(), "num_tangents": 2},
        {"space": fwdgrad.Activities(), "tangents": fwdgrad.Rademacher()},
    ):
        found, expected = (
            fwdgrad.forward_value_and_grad(fun, **options)(key, W, X) for fun in (of_user, of_jax)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_a_rule_that_declines_leaves_the_one_before_it(register):
    calls = []

    def decline(*args):
        calls.append(args)
        return NotImplemented

    register("dot_general", decline)
    (leaf,) = fwdgrad.explain(loss, W, X).leaves
    assert calls and leaf.rank == 1 and leaf.used and not leaf.lost


def test_a_rule_for_a_call_is_asked(register, key):
    calls = []
    register("jit", lambda *args: calls.append(args) or NotImplemented)
    estimate = fwdgrad.forward_value_and_grad(jax.jit(loss), tangents=fwdgrad.LowRank())
    value, _ = estimate(key, W, X)
    assert calls
    np.testing.assert_allclose(value, loss(W, X), rtol=1e-6)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["row", "at"], meta_fields=["shape", "origin"]
)
@dataclass
class OneRow(StructuredTangent):
    """K tangents of a matrix that are zero but on one row: a form with integer parts."""

    row: jax.Array
    at: jax.Array
    shape: tuple[int, ...]
    origin: tuple[str, ...] = ()
    parts = "rows"

    @property
    def dtype(self):
        return self.row.dtype

    @property
    def num_tangents(self):
        return self.row.shape[0]

    def dense(self):
        def one(row, at):
            return jnp.zeros(self.shape, row.dtype).at[at].set(row)

        return jax.vmap(one)(self.row, self.at)

    def with_origin(self, origin):
        return OneRow(self.row, self.at, self.shape, origin)


def test_a_form_with_integer_parts_takes_a_guess(key):
    class Rows:
        def sample(self, key, params, splits):
            return dense(self.sample_together(key, params, splits, 1))[0]

        def sample_together(self, key, params, splits, number):
            at, sign = jax.random.split(key)
            rows = 2 * jax.random.rademacher(sign, (number, 4), params.dtype)  # 4 rows: √4
            return OneRow(rows, jax.random.randint(at, (number,), 0, 4), params.shape)

    estimate = fwdgrad.forward_value_and_grad(loss, tangents=Rows(), num_tangents=2)
    plain = estimate(key, W, X)[1]
    guided = fwdgrad.Guided(W, jnp.zeros_like(W))
    np.testing.assert_allclose(estimate(key, guided, X)[1].params, plain, rtol=1e-5, atol=1e-7)
