"""Rules that users register: validated results, order of rules, primitives of the user."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex_core
from jax.interpreters import ad, batching

import fwdgrad
from tests.tangents.test_base import Diagonal, Diagonals, W, X, loss


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
def test_a_rule_with_outputs_of_wrong_shape_or_dtype_is_an_error(result, message, register, key):
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
def test_arguments_of_a_wrong_kind_are_errors(arguments, message):
    primitive, rule, *form = arguments
    with pytest.raises(TypeError, match=message):
        fwdgrad.register_rule(primitive, rule, **({"form": form[0]} if form else {}))


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"found 'dot_genral', .* Give the primitive itself"):
        fwdgrad.register_rule("dot_genral", lambda *_: NotImplemented)


@pytest.mark.parametrize("name", ["neg", "transpose", "tanh", "dot_general"])
def test_a_users_primitive_with_the_name_of_one_of_jax_has_no_rule_of_it(name, key):
    """The primitive multiplies by three, whatever its name says."""
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


def test_a_rule_that_returns_notimplemented_falls_back_to_the_previous_rule(register):
    calls = []

    def decline(*args):
        calls.append(args)
        return NotImplemented

    register("dot_general", decline)
    (leaf,) = fwdgrad.explain(loss, W, X).leaves
    assert calls and leaf.rank == 1 and leaf.used and not leaf.lost


def test_a_rule_for_a_call_comes_before_entering_it(register, key):
    calls = []
    register("jit", lambda *args: calls.append(args) or NotImplemented)
    estimate = fwdgrad.forward_value_and_grad(jax.jit(loss), tangents=fwdgrad.LowRank())
    value, _ = estimate(key, W, X)
    assert calls
    np.testing.assert_allclose(value, loss(W, X), rtol=1e-6)
