"""What a user gets wrong: every error names the argument, what was found, and the remedy."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import fwdgrad

W = jnp.ones(3)


def loss(w):
    return jnp.sum(w**2)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"num_tangents": 0}, ValueError, "num_tangents must be at least 1; found 0"),
        ({"num_tangents": -2}, ValueError, "num_tangents must be at least 1; found -2"),
        ({"num_tangents": 2.0}, TypeError, "num_tangents must be an integer.*found 2.0"),
        ({"num_tangents": True}, TypeError, "num_tangents must be an integer.*found True"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1; found 0"),
        ({"clip": 0}, ValueError, "clip must be positive.*found 0.*clip=None"),
        ({"clip": float("nan")}, ValueError, "clip must be positive.*found nan"),
        ({"clip": jnp.float32(-1)}, ValueError, "clip must be positive.*found -1"),
        ({"clip": jnp.ones(2)}, TypeError, "clip must be None or a positive number; found Array"),
        ({"clip": jnp.array(True)}, TypeError, "clip must be None or a positive number"),
        ({"clip": "1"}, TypeError, "clip must be None or a positive number; found '1'"),
        ({"tangents": fwdgrad.Normal}, TypeError, r"found the class Normal.*tangents=Normal\(\)"),
        ({"tangents": "normal"}, TypeError, r"sample\(key, params, splits\).*found 'normal'"),
    ],
)
def test_options(options, kind, message):
    with pytest.raises(kind, match=message):
        fwdgrad.forward_value_and_grad(loss, **options)


@pytest.mark.parametrize(
    ("bad_key", "kind", "message"),
    [
        (jax.random.PRNGKey(0), TypeError, r"key.*uint32\[2\].*PRNGKey.*wrap_key_data"),
        (0, TypeError, r"key must be a typed PRNG key.*found int.*jax.random.key\(seed\)"),
        (None, TypeError, "found NoneType"),
        ({"w": W}, TypeError, "found dict"),
        (jax.random.split(jax.random.key(0), 2), ValueError, r"shape \(2,\).*jax.vmap"),
    ],
)
def test_keys(bad_key, kind, message):
    with pytest.raises(kind, match=message):
        fwdgrad.forward_value_and_grad(loss)(bad_key, W)


both = pytest.mark.parametrize(
    "estimator", [fwdgrad.forward_value_and_grad, fwdgrad.backprop_value_and_grad]
)


@both
def test_a_loss_that_is_no_function(estimator):
    with pytest.raises(TypeError, match=r"fun must be a function.*found dict"):
        estimator({"w": W})


@both
@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        ({"n": jnp.arange(3)}, ValueError, r"no differentiable leaf.*\['n'\]: int32\[3\].*astype"),
        (1.0, ValueError, "no differentiable leaf: found params: float.*jnp.asarray"),
        ({}, ValueError, "no differentiable leaf: found an empty pytree"),
        (
            {"a": W, "z": [jnp.ones(2, "complex64")]},
            TypeError,
            r"params\['z'\]\[0\] has the complex dtype complex64.*two real leaves",
        ),
    ],
)
def test_parameters(estimator, params, kind, message, key):
    with pytest.raises(kind, match=message):
        estimator(loss)(key, params)


def vector_loss(w):
    return w**2


@both
@pytest.mark.parametrize(
    ("fun", "options", "message"),
    [
        (vector_loss, {}, r"fun \(vector_loss\) must return a scalar.*found shape \(3,\).*mean"),
        (lambda w: jnp.sum(w)[None], {}, r"found shape \(1,\)"),
        (lambda w: jnp.sum(w).astype(int), {}, "real floating-point loss; found dtype int32"),
        (lambda w: jnp.sum(w) * 1j, {}, "real floating-point loss; found dtype complex64"),
        (lambda w: None, {}, "must return a scalar loss; found NoneType"),
        (lambda w: (jnp.sum(w), w), {}, "found a tuple.*has_aux=True"),
        (loss, {"has_aux": True}, r"pair \(loss, aux\) because has_aux=True; found"),
    ],
)
def test_losses(estimator, fun, options, message, key):
    with pytest.raises(TypeError, match=message):
        estimator(fun, **options)(key, W)


def test_aux_is_not_advised_where_there_is_none(key):
    for estimator in (fwdgrad.spsa_value_and_grad, fwdgrad.evolution_value_and_grad):
        with pytest.raises(TypeError, match=r"found a tuple\. Return the loss alone"):
            estimator(lambda w: (jnp.sum(w), w))(key, W)


@pytest.mark.parametrize(
    "estimator",
    [
        fwdgrad.forward_value_and_grad,
        fwdgrad.backprop_value_and_grad,
        fwdgrad.spsa_value_and_grad,
        fwdgrad.evolution_value_and_grad,
        fwdgrad.explain,
    ],
)
def test_a_guess_where_none_is_used(estimator, key):
    guided = fwdgrad.forward_value_and_grad(loss).guided().init(W)
    call = (
        partial(estimator, loss) if estimator is fwdgrad.explain else partial(estimator(loss), key)
    )
    with pytest.raises(TypeError, match=r"params is a Guided.*guided\(\).*its params alone"):
        call(guided)


def test_each_method_names_the_one_that_takes_what_was_given(key):
    estimate = fwdgrad.forward_value_and_grad(loss)
    drawn = estimate.draw(key, W)
    for method in (estimate, estimate.draw):
        with pytest.raises(TypeError, match=r"found a Drawn.*value_and_grad.along\(drawn, params"):
            method(drawn, W)
    with pytest.raises(TypeError, match=r"drawn must be.*value_and_grad\.draw.*found .* key"):
        estimate.along(key, W)
    for method, source in [(estimate.draw, key), (estimate.along, drawn)]:
        with pytest.raises(TypeError, match=r"params is a Guided.*guided\(\)"):
            method(source, fwdgrad.Guided(W, W))
    guided = estimate.guided()
    for method, source in [(guided, key), (guided.draw, key), (guided.along, drawn)]:
        with pytest.raises(
            TypeError, match=r"params must be a Guided.*value_and_grad.init.*found Array"
        ):
            method(source, W)
    with pytest.raises(TypeError, match="params is a Guided"):
        guided.init(fwdgrad.Guided(W, W))


@pytest.mark.parametrize(
    ("tangent", "message"),
    [
        ({"w": jnp.ones(2)}, r"float32\[2\] for params\['w'\].*float32\[3\]"),
        ({"w": jnp.ones(3, "int32")}, r"int32\[3\] for params\['w'\]"),
        ([jnp.ones(3)], "structure PyTreeDef.*must return the structure of params"),
    ],
)
def test_a_distribution_of_the_user_that_samples_what_does_not_fit(tangent, message, key):
    class Wrong:
        def sample(self, key, params, splits):
            return tangent

    with pytest.raises(ValueError, match=message):
        fwdgrad.forward_value_and_grad(lambda p: loss(p["w"]), tangents=Wrong())(key, {"w": W})


@jax.custom_vjp
def clip_gradient(x):
    return x


clip_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -1, 1),))


@pytest.mark.parametrize(
    "fun",
    [
        lambda w: jnp.sum(clip_gradient(w)),
        lambda w: jnp.sum(jax.jit(clip_gradient)(w)),
        lambda w: jnp.sum(jax.checkpoint(clip_gradient)(w)),
        lambda w: jnp.sum(jax.vmap(clip_gradient)(w)),
        lambda w: jnp.sum(jax.lax.scan(lambda c, _: (clip_gradient(c), None), w, length=2)[0]),
        lambda w: jnp.sum(jax.lax.cond(w[0] > 0, clip_gradient, lambda x: x, w)),
    ],
    ids=["plain", "jit", "checkpoint", "vmap", "scan", "cond"],
)
@pytest.mark.parametrize("num_tangents", [1, 3])
def test_custom_vjp_is_named_with_its_place(fun, num_tangents, key):
    estimate = fwdgrad.forward_value_and_grad(
        fun, num_tangents=num_tangents, enter_custom_vjp=False
    )
    message = r"jax.custom_vjp.*clip_gradient at .*test_errors.py:\d+.*jax.custom_jvp instead"
    calls = [estimate, jax.jit(estimate), lambda key, w: jax.jit(lambda k: estimate(k, w))(key)]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call(key, W)


@pytest.mark.parametrize("num_tangents", [1, 3])
def test_custom_vjp_that_no_tangent_reaches_is_no_obstacle(num_tangents, key):
    def fun(w):
        return jnp.sum(w * clip_gradient(jnp.arange(3.0)) + clip_gradient(jax.lax.stop_gradient(w)))

    estimate = fwdgrad.forward_value_and_grad(
        fun, num_tangents=num_tangents, enter_custom_vjp=False
    )
    for call in (estimate, jax.jit(estimate)):
        assert call(key, W)[0] == 6


def test_other_type_errors_of_the_loss_pass_through(key):
    def broken(w):
        raise TypeError("about custom_vjp, but not JAX's")

    with pytest.raises(TypeError, match=re.escape("about custom_vjp, but not JAX's")):
        fwdgrad.forward_value_and_grad(broken)(key, W)


def test_tangents_drawn_ahead_for_another_number(key):
    drawn = fwdgrad.forward_value_and_grad(loss, num_tangents=8).draw(key, W)
    with pytest.raises(ValueError, match=r"drawn holds tangents.*\[8, .* they must be .*\[2, "):
        fwdgrad.forward_value_and_grad(loss, num_tangents=2).along(drawn, W)


def test_tangents_drawn_ahead_for_other_parameters(key):
    def total(params):
        return sum(jnp.sum(x) for x in jax.tree.leaves(params))

    estimate = fwdgrad.forward_value_and_grad(total, num_tangents=2)
    drawn, w = estimate.draw(key, jnp.ones((3, 4))), jnp.ones((3, 4))
    with pytest.raises(ValueError, match="drawn holds tangents for 1 leaves; params has 2"):
        estimate.along(drawn, {"w": w, "v": w})
    message = r"for params that are float32\[2, 3, 4\]; .* float32\[2, 2, 4\]"
    with pytest.raises(ValueError, match=message):
        estimate.along(drawn, w[:-1])
    stack = jax.vmap(lambda k: estimate.draw(k, w))(jax.random.split(key, 2))
    with pytest.raises(
        ValueError, match=r"float32\[2, 2, 3, 4\].* If drawn holds a stack of draws, take one"
    ):
        estimate.along(stack, w)


def test_factors_that_do_not_fit(key):
    class Wrong:
        def sample(self, key, params, splits):
            return fwdgrad.Factored(jnp.ones((1, 3, 1)), jnp.ones((1, 1, 5)), (3, 4))

    factors = r"float32\[1, 3, 1\] and float32\[1, 1, 5\]"
    message = rf"for params factors {factors}; both must have.*\[3, 4\] or 1"
    with pytest.raises(ValueError, match=message):
        fwdgrad.forward_value_and_grad(loss, tangents=Wrong())(key, jnp.ones((3, 4)))


def test_a_distribution_without_splits():
    class Old:
        def sample(self, key, params):
            return params

    with pytest.raises(TypeError, match=r"three arguments, sample\(key, params, splits\).*Add"):
        fwdgrad.forward_value_and_grad(loss, tangents=Old())
