"""Losses whose derivative is not in their jaxpr, and parts that cannot be mapped over tangents."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_batching import custom_vmap, sequential_vmap

import fwdgrad
from fwdgrad.propagation.pushforward import Pushforward, trace
from fwdgrad.tangents.forms import dense
from tests.oracle import normal
from tests.sweeps import thorough_but

X = normal(1, (4, 6))


def rule_that_closes_over_a_mapped_value(w):
    def of_example(row):
        scale = jnp.sum(row)

        @jax.custom_jvp
        def scaled(y):
            return y * scale

        scaled.defjvp(lambda p, t: (scaled(p[0]), t[0] * scale * 2))
        return jnp.sum(scaled(row @ w))

    return jnp.sum(jax.vmap(of_example)(X))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def noisy(key, y):
    return y + jax.random.normal(key, y.shape)


@noisy.defjvp
def _(key, primals, tangents):
    return noisy(key, primals[0]), tangents[0] * jax.random.normal(key, tangents[0].shape)


def key_made_in_the_loss(w):
    return jnp.sum(noisy(jax.random.fold_in(jax.random.key(0), 3), X @ w))


def key_of_each_example(w):
    keys = jax.random.split(jax.random.key(0), 4)
    return jnp.sum(jax.vmap(lambda key, row: noisy(jax.random.split(key)[0], row @ w))(keys, X))


@jax.custom_jvp
def constant(y):
    return jnp.ones(())


@constant.defjvp
def _(primals, tangents):
    return jnp.ones(()), 2 * jnp.sum(tangents[0])


def constant_with_a_slope(w):
    return jnp.sum(jax.vmap(lambda row: constant(row @ w))(X))


def a_part_in_float64(w):
    y = X @ w
    with jax.enable_x64(True):
        z = jnp.sum(y.astype("float64") ** 2) * jnp.float64(1.5)
    return z.astype("float32") + jnp.sum(jnp.tanh(y))


def a_loop_in_float64(w):
    with jax.enable_x64(True):
        start = (X @ w).astype("float64")
        z, _ = jax.lax.scan(lambda c, _: (jnp.sin(c), jnp.sum(c)), start, None, 3)
        total = jnp.sum(z)
    return total.astype("float32")


WHOLE = {  # losses that are pushed forward as a whole
    f.__name__: f
    for f in (
        rule_that_closes_over_a_mapped_value,
        key_made_in_the_loss,
        key_of_each_example,
        constant_with_a_slope,
    )
}
STAGED = {f.__name__: f for f in (a_part_in_float64, a_loop_in_float64)}
TANGENTS = {
    "dense": (fwdgrad.Normal(), 1),
    "low rank": (fwdgrad.LowRank(), 3),
    "blocks": (fwdgrad.BlockSparse(), 3),
}


def check_estimate(loss, tangents, num_tangents, key):
    w = normal(0, (6, 5))
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=tangents, num_tangents=num_tangents
    )
    v = dense(value_and_grad.draw(key, w).tangents[0])
    value, grad = jax.jit(value_and_grad)(key, w)
    along = jax.jit(lambda each: jax.jvp(loss, (w,), (each,))[1])
    expected = np.tensordot([along(each) for each in v], v, 1) / num_tangents
    np.testing.assert_allclose(value, loss(w), rtol=1e-5)
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert grad.dtype == w.dtype


@pytest.mark.parametrize(
    ("name", "form"),
    thorough_but(
        [
            *zip(WHOLE, ["low rank", "dense", "blocks", "low rank"], strict=True),
            *zip(STAGED, ["low rank", "blocks"], strict=True),
        ],
        itertools.product(WHOLE | STAGED, TANGENTS),
    ),
)
def test_the_estimate_is_that_of_jvp(name, form, key):
    check_estimate((WHOLE | STAGED)[name], *TANGENTS[form], key)


@pytest.mark.parametrize("loss", WHOLE.values())
def test_the_reason_for_a_pushforward_as_a_whole_names_the_function(loss):
    w = [normal(0, (6, 5))]
    pushforward = Pushforward(trace(lambda leaves: (loss(*leaves), None), w), w, ["w"])
    assert not pushforward.why_whole
    pushforward([normal(2, (1, 6, 5))])
    assert "custom_jvp function" in pushforward.why_whole
    assert "test_staging.py" in pushforward.why_whole


def test_explain_prints_the_reason():
    text = str(fwdgrad.explain(key_made_in_the_loss, normal(0, (6, 5))))
    assert "jax.jvp of the whole loss" in text and "custom_jvp function noisy" in text


def test_activities_are_an_error_with_the_remedy(key):
    def loss(w, x):
        return jnp.mean(noisy(jax.random.fold_in(jax.random.key(0), 3), x @ w))

    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=fwdgrad.Activities())
    with pytest.raises(TypeError, match=r"noisy.*Pass what the rule uses .* space=Weights\(\)"):
        value_and_grad(key, normal(0, (6, 5)), X)


def test_a_rule_may_close_over_values_of_a_transformation_around_the_estimator(key):
    """The loss is not pushed forward as a whole then, and factors are kept."""

    def step(key, w, scale):
        @jax.custom_jvp
        def scaled(y):
            return y * scale

        scaled.defjvp(lambda p, t: (scaled(p[0]), t[0] * scale * 2))
        made = []

        def loss(leaves):
            return jnp.sum(scaled(X @ leaves[0])), None

        pushforward = Pushforward(trace(loss, [w]), [w], ["w"])
        made.append(pushforward([normal(2, (1, 6, 5))])[1])
        assert pushforward.why_whole == ""
        return made[0]

    w = normal(0, (6, 5))
    expected = step(key, w, 3.0)
    np.testing.assert_allclose(jax.jit(step)(key, w, 3.0), expected, rtol=1e-5)
    mapped = jax.vmap(step, (None, None, 0))(key, w, jnp.array([3.0, 6.0]))
    np.testing.assert_allclose(mapped[1], 2 * expected, rtol=1e-5)
    scanned = jax.jit(
        lambda s: jax.lax.scan(lambda c, s: (c, step(key, w, s)), 0, s)[1]
    )(jnp.array([3.0]))  # fmt: skip
    np.testing.assert_allclose(scanned[0], expected, rtol=1e-5)


def test_an_error_of_the_loss_is_raised_unchanged(key):
    def loss(w):
        raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user"):
        fwdgrad.forward_value_and_grad(loss)(key, normal(0, (6, 5)))


def raising(error):
    """Return a function whose rule for `vmap` raises."""

    @custom_vmap
    def product(x, w):
        return jnp.tanh(x @ w)

    @product.def_vmap
    def _(size, mapped, *args):
        raise error("cannot be mapped")

    return product


@sequential_vmap
def in_sequence(x, w):
    return jnp.tanh(x @ w)


@custom_vmap
def by_a_rule(x, w):
    return jnp.tanh(x @ w)


@by_a_rule.def_vmap
def _(size, mapped, x, w):
    x, w = (
        a if is_mapped else jnp.broadcast_to(a, (size, *a.shape))
        for a, is_mapped in zip((x, w), mapped, strict=True)
    )
    return jnp.tanh(jnp.einsum("kij,kjl->kil", x, w)), True


def ragged(x, w):
    sizes = jnp.array([3, 1], jnp.int32)
    return jnp.tanh(jax.lax.ragged_dot(x, jnp.stack([w, 2 * w]), sizes))


UNMAPPED = {
    **{f"{e.__name__}": raising(e) for e in (IndexError, AssertionError, KeyError, RuntimeError)},
    "sequential_vmap": in_sequence,
    "custom_vmap": by_a_rule,
    "ragged_dot": ragged,
    "callback": lambda x, w: jnp.tanh(x @ w) + 0 * _with_callback(w),
}


def _with_callback(w):
    jax.debug.callback(lambda _: None, w, ordered=True)
    return jnp.sum(w)


@pytest.mark.parametrize("name", UNMAPPED)
def test_tangents_are_pushed_one_by_one_where_vmap_fails(name, key):
    def loss(w):
        return jnp.sum(jnp.sin(UNMAPPED[name](X, w)))

    check_estimate(loss, fwdgrad.LowRank(), 3, key)


def test_the_first_error_is_raised_if_pushing_one_by_one_fails_too(key):
    @jax.custom_jvp
    def fails(y):
        return y

    @fails.defjvp
    def _(primals, tangents):
        raise LookupError("no rule at all")

    def loss(w):
        return jnp.sum(fails(X @ w))

    for num_tangents in (1, 3):
        with pytest.raises(LookupError, match="no rule at all"):
            fwdgrad.forward_value_and_grad(loss, num_tangents=num_tangents)(key, normal(0, (6, 5)))
