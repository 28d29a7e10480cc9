"""`explain` lists custom_vjp functions that are entered, and the difference of their rules."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from fwdgrad.diagnostics.custom_rules import entered_custom_rules
from fwdgrad.util.jax_internals import read_program
from tests.oracle import normal

pytestmark = pytest.mark.thorough

W, X = normal(0, (4, 3)), normal(1, (5, 4))


def with_rule(function, share=1.0):
    """Return a function with a reverse-mode rule of `share` times its derivative."""

    @jax.custom_vjp
    def ruled(x):
        return function(x)

    def forward(x):
        return jax.vjp(function, x)

    ruled.defvjp(forward, lambda pull, c: (share * pull(c)[0],))
    return ruled


@jax.custom_vjp
def rounded(x):
    """Round, with the straight-through estimator as its rule."""
    return jnp.round(x)


rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, c: (c,))


@jax.custom_vjp
def weighted(weights, x):
    """Return a weighted sum whose rule has no gradient by its first argument."""
    return jnp.sum(weights * x)


weighted.defvjp(lambda w, x: (jnp.sum(w * x), w), lambda w, c: (jnp.zeros_like(w), c * w))


@jax.custom_vjp
def fixed_point(w):
    """Return x = tanh(x + w)/2 after four steps, with the derivative of the limit as its rule."""
    return lax.while_loop(
        lambda s: s[0] < 4, lambda s: (s[0] + 1, jnp.tanh(s[1] + w) / 2), (0, jnp.zeros_like(w))
    )[1]


def _implicit(x, c):
    slope = (1 - 4 * x**2) / 2
    return (c * slope / (1 - slope),)


fixed_point.defvjp(lambda w: (fixed_point(w),) * 2, _implicit)


def rules(loss, w):
    """Return the rules that `explain` lists, without compiling a step."""
    return entered_custom_rules(read_program(jax.make_jaxpr(loss)(w)), [w])


def test_a_rule_that_is_the_derivative_does_not_differ():
    """A second function, which no tangent reaches, is not listed."""
    sine, cosine = with_rule(jnp.sin), with_rule(jnp.cos)

    def loss(w):
        return jnp.sum(sine(X @ w) + cosine(X[:, :3]))

    explanation = fwdgrad.explain(loss, W)
    (rule,) = explanation.custom_rules
    assert re.match(r"ruled at .*test_custom_rules.py:\d+", rule.function)
    line = loss.__code__.co_firstlineno + 1
    assert rule.place.startswith(f"diagnostics/test_custom_rules.py:{line}:")
    assert not rule.differs and rule.difference < 1e-5
    text = str(explanation)
    assert "custom_vjp functions that forward mode enters" in text
    assert "its rule is the derivative of the function" in text


@pytest.mark.parametrize("share", [0.85, 0.0, -1.0])
def test_the_difference_of_a_scaled_rule(share):
    (rule,) = rules(lambda w: jnp.sum(with_rule(jnp.sin, share)(X @ w)), W)
    expected = abs(1 - share) / max(1, abs(share))
    np.testing.assert_allclose(rule.difference, expected, rtol=1e-4)
    text = f"DIFFERS from the derivative of the function, by {100 * expected:.3g} %"
    assert rule.differs and text in str(rule)


def test_the_difference_of_straight_through_stopped_and_implicit_rules():
    (rule,) = rules(lambda w: jnp.sum(rounded(X @ w)), W)
    assert rule.difference == 1
    (rule,) = rules(lambda w: weighted(jax.nn.softmax(w), X[:, 0]), X[:, 1])
    assert rule.differs
    # Arguments without a tangent do not count: by the second argument alone the rule is right.
    (rule,) = rules(lambda x: weighted(X[:, 1], x), X[:, 0])
    assert not rule.differs
    w = jnp.array([0.3])
    (rule,) = rules(lambda w: jnp.sum(fixed_point(w)), w)
    _, by_function = jax.jvp(fixed_point.fun, (w,), (jnp.ones(1),))
    by_rule = jax.grad(lambda w: jnp.sum(fixed_point(w)))(w)
    expected = float(abs(1 - by_function / by_rule)[0])
    assert 1e-3 < expected < 0.5
    np.testing.assert_allclose(rule.difference, expected, rtol=1e-2)


def in_scan(f):
    return lambda w: jnp.sum(lax.scan(lambda c, x: (f(c + x), None), w, jnp.ones((3, 4, 3)))[0])


def in_while(f):
    return lambda w: jnp.sum(
        lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, f(s[1])), (0, w))[1]
    )


WRAPPED = {
    "jit": lambda f: lambda w: jnp.sum(jax.jit(f)(w)),
    "checkpoint": lambda f: lambda w: jnp.sum(jax.checkpoint(f)(w)),
    "vmap": lambda f: lambda w: jnp.sum(jax.vmap(f)(w)),
    "scan": in_scan,
    "while": in_while,
    "cond": lambda f: lambda w: jnp.sum(lax.cond(w[0, 0] > 9, jnp.cos, f, w)),
    "switch": lambda f: lambda w: jnp.sum(lax.switch(7, [jnp.cos, f], w)),
    "itself": lambda f: lambda w: jnp.sum(with_rule(lambda x: f(x) ** 2)(w)),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_rule_is_found_in_calls_loops_and_branches(wrap):
    found = rules(wrap(with_rule(jnp.sin, 0.5)), W)
    differing = [rule for rule in found if rule.difference == pytest.approx(0.5, rel=1e-4)]
    # The rule of an outer function comes from reverse mode through the inner rule: it differs, too.
    assert len(differing) == (2 if wrap is WRAPPED["itself"] else 1)
    assert all(rule.differs and "test_custom_rules.py" in rule.place for rule in differing)


def test_a_difference_that_is_unknown_has_its_reason():
    sine = with_rule(jnp.sin)
    (rule,) = rules(lambda w: jnp.sum(lax.cond(w[0, 0] < 99, jnp.cos, sine, w)), W)
    assert rule.difference is None and "they are abstract here" in str(rule)
    shape = jax.ShapeDtypeStruct(W.shape, W.dtype)
    (rule,) = fwdgrad.explain(lambda w: jnp.sum(sine(X @ w)), shape).custom_rules
    assert "unknown: the comparison needs the values" in str(rule) and not rule.differs

    @jax.custom_vjp
    def broken(x):
        return x

    broken.defvjp(lambda x: (x, None), lambda _, c: 1 / 0)
    (rule,) = rules(lambda w: jnp.sum(broken(w)), W)
    assert "unknown: ZeroDivisionError" in str(rule)


def test_functions_without_tangents_and_inside_of_a_custom_jvp_function_are_not_listed():
    sine = with_rule(jnp.sin)

    @jax.custom_jvp
    def own(x):
        return sine(x)

    own.defjvp(lambda x, v: (jnp.sin(x[0]), v[0]))
    assert rules(lambda w: jnp.sum(w * sine(X[:4, :3])) + sine(lax.stop_gradient(w)).sum(), W) == ()
    assert rules(lambda w: jnp.sum(own(w)), W) == ()


def test_activity_perturbation_lists_rules_too():
    def loss(w, x):
        return jnp.mean(with_rule(jnp.sin, 0.5)(x @ w))

    (rule,) = fwdgrad.explain(loss, W, X, space=fwdgrad.Activities()).custom_rules
    np.testing.assert_allclose(rule.difference, 0.5, rtol=1e-4)
