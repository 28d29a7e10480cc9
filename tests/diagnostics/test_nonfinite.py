"""`explain(..., check_nan=True)`: where a tangent becomes NaN though its value is finite."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from fwdgrad.diagnostics.nonfinite import find_nonfinite

pytestmark = pytest.mark.thorough

ZEROS, X = jnp.zeros(3), jnp.arange(1.0, 4.0)


def checked(loss, w):
    """As `explain` finds it, without the costs of a step, which take it longest."""
    return str(find_nonfinite(jax.make_jaxpr(loss)(w), [w]))


def power(x, y):
    return x**y  # the line of `power`


def turns(c, x):
    return c - x, jnp.sqrt(c)


BECOMING = {  # loss, the primitive, what it becomes and the value there
    "sqrt": (lambda w: jnp.sum(jnp.sqrt(w)), "sqrt", "tangent becomes -?inf where the value is 0"),
    "norm": (lambda w: jnp.linalg.norm(w * X), "sqrt", "becomes nan where the value is 0"),
    "power": (lambda w: jnp.sum(power(w, 0.5)), "pow", r"becomes -?inf.*\(of 0, 0.5\)"),
    "both": (lambda w: jnp.sum(power(w, w)), "pow", "becomes nan where the value is 1"),
    "log": (lambda w: jnp.sum(jnp.exp(jnp.log(w))), "log", "becomes -?inf where the value is -inf"),
    "arccos": (lambda w: jnp.sum(jnp.arccos(w + 1)), "acos", r"\(of 1\)"),
    "jit": (lambda w: jax.jit(lambda w: jnp.sum(jnp.sqrt(w)))(w), "sqrt", "3 of 3 entries"),
    "checkpoint": (lambda w: jax.checkpoint(lambda w: jnp.sum(jnp.sqrt(w)))(w), "sqrt", "of 3"),
    "cond": (
        lambda w: lax.cond(w[0] < 1, lambda w: jnp.sum(jnp.sqrt(w)), jnp.sum, w), "sqrt", "of 3"
    ),
    "scan": (
        lambda w: lax.scan(turns, 3 + w[0], jnp.ones(4))[1].sum(),
        "sqrt",
        r"where the value is 0 \(of 0\), in turn 3 of scan at diagnostics/test_nonfinite.py",
    ),
    "reverse scan": (
        lambda w: lax.scan(
            lambda c, x: (c * x, jnp.sqrt(x - 2 + w[0])), 1.0, X[1:], reverse=True
        )[1].sum(),
        "sqrt", "in turn 1 of scan",
    ),
    "while": (
        lambda w: lax.while_loop(
            lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sqrt(s[1])), (0, jnp.sum(w))
        )[1],
        "sqrt", "in turn 0 of while",
    ),
    "loop in a loop": (
        lambda w: lax.fori_loop(
            0, 2, lambda i, c: lax.fori_loop(0, 2, lambda j, c: jnp.sqrt(c * (i < 1)), c), w[0] + 1
        ),
        "sqrt", "in turn 0 of .*, in turn 1 of",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "primitive", "message"), BECOMING.values(), ids=BECOMING)
def test_the_equation_and_the_line(loss, primitive, message):
    value, derivative = jax.jvp(loss, (ZEROS,), (jnp.array([1.0, -1.0, 1.0]),))
    assert jnp.isfinite(value) and not jnp.isfinite(derivative)
    found = checked(loss, ZEROS)
    assert f"the loss is {value:.6g}, its derivative" in found.splitlines()[0]
    (place,) = found.splitlines()[1:]
    assert place.lstrip().startswith(f"{primitive} at diagnostics/test_nonfinite.py:"), place
    assert re.search(message, place), place


def test_a_reverse_rule_that_is_safe_does_not_help_and_is_entered():
    """`jax.grad` is finite, by the rule; `jax.jacfwd` and the forward gradient are not."""

    @jax.custom_vjp
    def safe(x):
        return jnp.sqrt(x)

    safe.defvjp(lambda x: (safe(x), x), lambda x, c: (jnp.where(x > 0, c, 0),))

    def loss(w):
        return jnp.sum(safe(w))

    assert jnp.isfinite(jax.grad(loss)(ZEROS)).all()
    assert "sqrt at diagnostics/test_nonfinite.py" in checked(loss, ZEROS)


@pytest.mark.parametrize(
    "loss",
    [
        lambda w: jnp.sum(jnp.where(w > 0, jnp.sqrt(w), 0)),  # reverse mode has NaN there
        lambda w: jnp.sum(jnp.where(w != 0, jnp.sin(w) / w, 1)),
        lambda w: jnp.sum(jax.nn.softmax(jnp.where(jnp.eye(3) > 0, w, -jnp.inf)) @ X),
        lambda w: jnp.sum(jnp.sqrt(lax.stop_gradient(w)) + w),
        lambda w: lax.scan(turns, 3 + w[0], jnp.ones(3))[1].sum(),
    ],
)
def test_what_is_selected_away_is_no_cause(loss):
    found = checked(loss, ZEROS)
    assert "no tangent that goes on to it is NaN or infinite" in found
    _, derivative = jax.jvp(loss, (ZEROS,), (jnp.ones(3),))
    assert jnp.isfinite(derivative)


def test_the_cause_and_not_what_comes_before_or_after():
    def loss(w):
        harmless = jnp.where(w > 0, jnp.sqrt(w), 0)
        cause = jnp.cbrt(w)
        return jnp.sum(jnp.exp(jnp.sin(harmless + cause)))

    (place,) = checked(loss, ZEROS).splitlines()[1:]
    assert place.lstrip().startswith("cbrt at ")


def test_two_causes():
    def loss(w):
        return jnp.sum(jnp.sqrt(w)) + jnp.sum(jnp.cbrt(w))

    places = [place.split()[0] for place in checked(loss, ZEROS).splitlines()[1:]]
    assert places == ["sqrt", "cbrt"]


def test_a_value_that_is_nan_is_said_to_be():
    found = checked(lambda w: jnp.sum(jnp.log(w - 1)), ZEROS)
    assert "the loss is nan" in found and "log at " in found and "the value becomes nan" in found


def test_at_activities_each_example_is_alone():
    """Of one example the deviation is 0, and has no derivative there."""

    def loss(w, x):
        z = x @ w
        return jnp.mean((z - z.mean(0)) ** 2) + jnp.std(z)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    explain = partial(fwdgrad.explain, check_nan=True)
    explanation = explain(loss, X, x)
    assert "no tangent" in explanation.nonfinite and "check_nan: the loss is" in str(explanation)
    found = explain(loss, X, x, space=fwdgrad.Activities()).nonfinite
    assert "sqrt at diagnostics/test_nonfinite.py" in found and "at 4 of 4 entries" in found


def test_shapes_are_not_enough():
    with pytest.raises(TypeError, match=r"check_nan=True.*give arrays, or leave check_nan out"):
        fwdgrad.explain(jnp.sum, jax.ShapeDtypeStruct((3,), "float32"), check_nan=True)


def test_a_loss_that_asks_for_values():
    def loss(w):
        return jnp.sum(w) if w[0] > 1 else jnp.sum(-w)

    found = fwdgrad.explain(loss, ZEROS, check_nan=True).nonfinite
    assert "cannot be told, since its Python code asks for the value" in found
