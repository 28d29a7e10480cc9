"""`explain(..., check_nan=True)`: the equation at which a tangent becomes NaN or infinite."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from fwdgrad.diagnostics.nonfinite import find_nonfinite
from fwdgrad.propagation.pushforward import trace

pytestmark = pytest.mark.thorough

ZEROS, X = jnp.zeros(3), jnp.arange(1.0, 4.0)


def checked(loss, w):
    """Return the report of `explain`, without compiling a step."""
    traced = trace(lambda leaves: (loss(*leaves), None), [w]).entered(1)
    return str(find_nonfinite(traced.program, [w]))


def power(x, y):
    return x**y  # the line of `power`


def body(c, x):
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
        lambda w: lax.scan(body, 3 + w[0], jnp.ones(4))[1].sum(),
        "sqrt",
        r"where the value is 0 \(of 0\), in iteration 3 of scan at diagnostics/test_nonfinite.py",
    ),
    "reverse scan": (
        lambda w: lax.scan(
            lambda c, x: (c * x, jnp.sqrt(x - 2 + w[0])), 1.0, X[1:], reverse=True
        )[1].sum(),
        "sqrt", "in iteration 1 of scan",
    ),
    "while": (
        lambda w: lax.while_loop(
            lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sqrt(s[1])), (0, jnp.sum(w))
        )[1],
        "sqrt", "in iteration 0 of while",
    ),
    "loop in a loop": (
        lambda w: lax.fori_loop(
            0, 2, lambda i, c: lax.fori_loop(0, 2, lambda j, c: jnp.sqrt(c * (i < 1)), c), w[0] + 1
        ),
        "sqrt", "in iteration 0 of .*, in iteration 1 of",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "primitive", "message"), BECOMING.values(), ids=BECOMING)
def test_the_report_names_the_equation_and_its_line(loss, primitive, message):
    value, derivative = jax.jvp(loss, (ZEROS,), (jnp.array([1.0, -1.0, 1.0]),))
    assert jnp.isfinite(value) and not jnp.isfinite(derivative)
    found = checked(loss, ZEROS)
    assert f"the loss is {value:.6g}, its derivative" in found.splitlines()[0]
    (place,) = found.splitlines()[1:]
    assert place.lstrip().startswith(f"{primitive} at diagnostics/test_nonfinite.py:"), place
    assert re.search(message, place), place


def test_a_custom_vjp_function_with_a_safe_rule_is_searched():
    """`jax.grad` is finite by the rule; the forward gradient, like `jax.jacfwd`, is not."""

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
        lambda w: lax.scan(body, 3 + w[0], jnp.ones(3))[1].sum(),
    ],
)
def test_a_bad_tangent_that_is_masked_is_not_reported(loss):
    found = checked(loss, ZEROS)
    assert "no tangent that reaches it is NaN or infinite" in found
    _, derivative = jax.jvp(loss, (ZEROS,), (jnp.ones(3),))
    assert jnp.isfinite(derivative)


def test_the_cause_is_reported_alone():
    """Neither a masked NaN before it nor the equations after it."""

    def loss(w):
        harmless = jnp.where(w > 0, jnp.sqrt(w), 0)
        cause = jnp.cbrt(w)
        return jnp.sum(jnp.exp(jnp.sin(harmless + cause)))

    (place,) = checked(loss, ZEROS).splitlines()[1:]
    assert place.lstrip().startswith("cbrt at ")


def test_two_causes_are_both_reported():
    def loss(w):
        return jnp.sum(jnp.sqrt(w)) + jnp.sum(jnp.cbrt(w))

    places = [place.split()[0] for place in checked(loss, ZEROS).splitlines()[1:]]
    assert places == ["sqrt", "cbrt"]


def test_a_value_that_becomes_nan_is_reported():
    found = checked(lambda w: jnp.sum(jnp.log(w - 1)), ZEROS)
    assert "the loss is nan" in found and "log at " in found and "the value becomes nan" in found


def test_activity_perturbation_searches_minibatches_of_one():
    """The deviation of a single example is 0, where it has no derivative."""

    def loss(w, x):
        z = x @ w
        return jnp.mean((z - z.mean(0)) ** 2) + jnp.std(z)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    explain = partial(fwdgrad.explain, check_nan=True)
    explanation = explain(loss, X, x)
    assert "no tangent" in explanation.nonfinite and "check_nan: the loss is" in str(explanation)
    found = explain(loss, X, x, space=fwdgrad.Activities()).nonfinite
    assert "sqrt at diagnostics/test_nonfinite.py" in found and "at 4 of 4 entries" in found


def test_check_nan_without_values_is_an_error():
    with pytest.raises(TypeError, match=r"check_nan=True.*give arrays, or leave check_nan out"):
        fwdgrad.explain(jnp.sum, jax.ShapeDtypeStruct((3,), "float32"), check_nan=True)


def test_a_loss_without_a_jaxpr_cannot_be_searched():
    def loss(w):
        return jnp.sum(w) if w[0] > 1 else jnp.sum(-w)

    found = fwdgrad.explain(loss, ZEROS, check_nan=True).nonfinite
    assert "impossible, because its Python code asks for the value" in found
