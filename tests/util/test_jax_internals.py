"""Layout of JAX's equations: bodies and operands are found on the installed version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from fwdgrad.tangents.forms import dense
from fwdgrad.util.jax_internals import (
    called_jaxpr,
    custom_jvp_body,
    entered_jaxprs,
    function_name,
    is_custom_vjp,
    is_opaque,
)
from fwdgrad.util.layouts import cond_branches, scan_parts, while_parts
from tests.oracle import assert_same, normal, push_both_ways


def the_equation(name, fun, *args):
    """Return the only equation of a primitive in the jaxpr of a function."""
    (equation,) = (e for e in jax.make_jaxpr(fun)(*args).jaxpr.eqns if e.primitive.name == name)
    return equation


def scan(w, x, a, b):
    def turn(carry, slices):
        (c, d), (u, v) = carry, slices
        return (jnp.tanh(c @ w + u), d + 1), (c, 2 * v)

    return lax.scan(turn, (x, 0), (a, b), length=3, reverse=True, unroll=2)


def test_scan_parts():
    w, x, a, b = jnp.ones((2, 2)), jnp.ones(2), jnp.ones((3, 2)), jnp.ones((3, 5))
    parts = scan_parts(the_equation("scan", scan, w, x, a, b))
    assert parts[1:] == (1, 2, 3, True, 2)
    shapes = [v.aval.shape for v in parts.body.jaxpr.invars]
    assert shapes == [(2, 2), (2,), (), (2,), (5,)]
    assert [v.aval.shape for v in parts.body.jaxpr.outvars] == [(2,), (), (2,), (5,)]


def test_scan_parts_without_inputs_or_constants():
    parts = scan_parts(
        the_equation("scan", lambda x: lax.scan(lambda c, _: (jnp.sin(c), c), x, None, 4), 1.0)
    )
    assert parts[1:4] == (0, 1, 4)


def test_while_parts():
    equation = the_equation(
        "while",
        lambda bound, step, x: lax.while_loop(lambda c: c[0] < bound, lambda c: (c[0] + step,), x),
        5.0, 1.0, (0.0,),
    )  # fmt: skip
    parts = while_parts(equation)
    assert (parts.num_condition_consts, parts.num_body_consts) == (1, 1)
    assert [e.primitive.name for e in parts.condition.jaxpr.eqns] == ["lt"]
    assert [e.primitive.name for e in parts.body.jaxpr.eqns] == ["add"]


def test_cond_branches():
    branches = [jnp.sin, jnp.cos, jnp.tanh]
    equation = the_equation("cond", lambda i, x: lax.switch(i, branches, x), 1, 2.0)
    names = [branch.jaxpr.eqns[0].primitive.name for branch in cond_branches(equation)]
    assert names == ["sin", "cos", "tanh"]


@jax.custom_vjp
def rounded(x):
    return jnp.round(x)


rounded.defvjp(lambda x: (rounded(x), None), lambda _, cotangent: (cotangent,))

CALLS = {
    "jit": jax.jit(jnp.sin),
    "checkpoint": jax.checkpoint(jnp.sin),
    "custom_vjp": rounded,
}


@pytest.fixture(params=["jax_custom_vjp3", "jax_remat3"])
def calls_as_objects(request):
    """Set an option of newer versions by which calls are primitive objects."""
    name = request.param
    exists = name in jax.config.values  # the oldest versions have neither
    if exists:
        jax.config.update(name, True)
    yield
    if exists:
        jax.config.update(name, False)


@pytest.mark.parametrize("name", CALLS)
def test_called_jaxpr(name):
    check_call(name)


@pytest.mark.parametrize("name", CALLS)
def test_called_jaxpr_of_primitive_objects(name, calls_as_objects):
    check_call(name)


def check_call(name):
    (equation,) = jax.make_jaxpr(lambda x: CALLS[name](x))(2.0).jaxpr.eqns
    body = called_jaxpr(equation)
    assert [v.aval.shape for v in body.jaxpr.outvars] == [()]
    assert is_custom_vjp(equation) == (name == "custom_vjp")
    assert not is_opaque(equation)
    if name == "custom_vjp":
        found = function_name(equation)
        assert "rounded" in found and "test_jax_internals" in found


def test_factors_are_kept_through_primitive_objects(calls_as_objects, x64):
    """Through a loop in a checkpoint, and through a custom_vjp function around a product."""

    @jax.custom_vjp
    def product(x, w):
        return jnp.tanh(x @ w)

    product.defvjp(lambda x, w: (product(x, w), None), lambda _, ct: (ct, ct))

    @jax.checkpoint
    def layers(x, w):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, 3)[0]

    def loss(params):
        return jnp.mean(product(layers(normal(1, (5, 9), "float64"), params["w"]), params["w"]))

    params = {"w": normal(0, (9, 9), "float64")}
    found, expected, events, factored = push_both_ways(
        lambda p: jnp.mean(layers(layers(normal(1, (5, 9), "float64"), p["w"]), p["w"])),
        params,
        num_tangents=2,
    )
    assert_same(found, expected, 1e-11)
    assert factored == [True] and events == {("dot_general", True)}
    value_and_grad = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank())
    (v,) = (dense(x)[0] for x in value_and_grad.draw(jax.random.key(0), params).tangents)

    def entered(params):
        return jnp.mean(jnp.tanh(layers(normal(1, (5, 9), "float64"), params["w"]) @ params["w"]))

    derivative = jax.jit(lambda v: jax.jvp(entered, (params,), ({"w": v},))[1])(v)
    _, grad = jax.jit(value_and_grad)(jax.random.key(0), params)
    np.testing.assert_allclose(grad["w"], derivative * v, rtol=1e-9)
    refusing = fwdgrad.forward_value_and_grad(loss, enter_custom_vjp=False)
    with pytest.raises(TypeError, match=r"product at .*test_jax_internals\.py"):
        refusing(jax.random.key(0), params)


@jax.custom_jvp
def relu(x):
    return jnp.maximum(x, 0)


relu.defjvps(lambda t, ans, x: t * (x > 0))


def test_a_custom_jvp_function_is_not_entered():
    equation = the_equation("custom_jvp_call", relu, 2.0)
    assert called_jaxpr(equation) is None and entered_jaxprs(equation) == ()
    assert [e.primitive.name for e in custom_jvp_body(equation).jaxpr.eqns] == ["max"]


@pytest.mark.parametrize(
    "name, fun, question",
    [
        ("scan", lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, 3), scan_parts),
        ("while", lambda x: lax.while_loop(lambda c: c < 3, lambda c: c + 1, x), while_parts),
        ("cond", lambda x: lax.cond(x > 0, jnp.sin, jnp.cos, x), cond_branches),
        ("jit", lambda x: jax.jit(jnp.sin)(x), called_jaxpr),
        ("custom_jvp_call", relu, custom_jvp_body),
    ],
)
def test_an_unknown_layout_is_an_error_that_lists_the_tested_versions(name, fun, question):
    strange = the_equation(name, fun, 0.0).replace(params={"a_new_name": 1})
    found = r"lays out the primitive .*a_new_name.* JAX 0\.10\.0, .*: install one of these"
    with pytest.raises(NotImplementedError, match=found):
        question(strange)
