"""What follows a layer: where noise goes in, where it has an effect, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from fwdgrad.perturbation.post_activation import find_post_activation
from fwdgrad.perturbation.sites import Plan, Site
from fwdgrad.problems.models import _POOLINGS
from fwdgrad.propagation.jaxprs import inlined
from fwdgrad.util.jax_internals import read_program
from tests.oracle import normal


def followed(fun, z, *params):
    """What follows z in fun(z, *params), which goes into a layer after that, and all values."""
    mixing = normal(9, (jax.eval_shape(fun, z, *params).size, 2))

    def loss(z, mixing, *params):
        return jnp.sum(jnp.tanh(fun(z, *params).reshape(-1) @ mixing))

    inputs = (z, mixing, *params)
    jaxpr = inlined(read_program(jax.make_jaxpr(loss)(*inputs)))
    first, *others = jaxpr.invars
    site = Site(first, (), frozenset(), frozenset(), True, True, "", (0, 0), is_last=False)
    plan = Plan([site], [], set(), set(others), [True] * len(jaxpr.eqns))
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    return find_post_activation(jaxpr, site, plan), values


def has_effect(after, values):
    """`after.has_effect(values)`, compiled as a whole."""
    compiled = jax.jit(lambda entries: after.has_effect(dict(zip(values, entries, strict=True))))
    return np.asarray(compiled([*values.values()]))


def reduce_window(z):
    return lax.reduce_window(z, -jnp.inf, lax.max, (1, 2, 2), (1, 2, 2), "VALID")


FOLLOWED = {
    "relu": jax.nn.relu,
    "where": lambda z: jnp.where(z > 0, z, 0),
    "clip": lambda z: jnp.clip(z, -0.5, 0.5),
    "tanh": jnp.tanh,
    "leaky": jax.nn.leaky_relu,
    "pool of relu": lambda z: _POOLINGS["select"](jax.nn.relu(z)),
    "pool as a reduction": lambda z: jax.nn.relu(_POOLINGS["reduce"](z)),
    "reduce_window": lambda z: jax.nn.relu(reduce_window(z)),
    "maxout": lambda z: z.reshape(2, 2, -1).max(0),
    "mean over positions": lambda z: jax.nn.relu(z).mean((1, 2)),
    "average pool": lambda z: jax.nn.relu(z).reshape(4, 2, 2, 2, 2).sum((2, 4)),
    "part": lambda z: z[:, 1:, ::2] * 2,
    "two readers": lambda z: jnp.stack([jax.nn.relu(z), jax.nn.relu(z - 1)]),
    "cancelling": lambda z: jnp.stack([jax.nn.relu(z), jax.nn.relu(-z)]),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_noise_goes_where_the_derivative_is_not_zero(name):
    fun, z = FOLLOWED[name], normal(0, (4, 4, 4))
    after, values = followed(fun, z)
    jacobian = np.asarray(jax.jit(jax.jacobian(fun))(z)).reshape(-1, z.size)
    expected = (jacobian != 0).any(1 if after.narrows else 0)
    assert after.narrows == (len(jacobian) < z.size)
    np.testing.assert_array_equal(has_effect(after, values).reshape(-1), expected)


def test_outputs_do_not_cancel_each_other():
    """They go into the layer each by itself."""

    def fun(z):
        return jnp.concatenate(
            [jax.nn.relu(z) @ jnp.ones((4, 2)), -jax.nn.relu(z) @ normal(2, (4, 2))]
        )

    z = normal(0, (4, 4))
    after, values = followed(fun, z)
    assert len(after.outputs) == 2
    np.testing.assert_array_equal(after.has_effect(values), z > 0)


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_found_there_is_pulled_back_exactly(name):
    fun, z = FOLLOWED[name], normal(0, (4, 4, 4))
    after, values = followed(fun, z)
    cotangent = normal(1, after.noisy.aval.shape)
    (expected,) = (
        jax.vjp(fun, z)[1](cotangent.reshape(fun(z).shape)) if after.narrows else (cotangent,)
    )
    np.testing.assert_allclose(after.pull_back(values)(cotangent), expected, rtol=1e-6)


def test_it_ends_where_entries_are_mixed_or_a_parameter_comes_in():
    z, scale, shift = normal(0, (4, 4, 4)), normal(1, (4, 4, 4)), jnp.zeros((4, 4))
    after, values = followed(lambda z, scale: jax.nn.relu(jax.nn.relu(z) * scale), z, scale)
    np.testing.assert_array_equal(after.has_effect(values), z > 0)
    assert followed(lambda z, scale: jax.nn.relu(z * scale), z, scale)[0] is None
    # z goes on as it is, too.
    assert followed(lambda z: jax.nn.relu(z) + z @ jnp.ones((4, 4)), z)[0] is None
    after, values = followed(lambda z: jax.nn.relu(z) + jnp.roll(z, 1) @ jnp.ones((4, 4)), z)
    assert not after.narrows and after.has_effect(values).all()
    # A sum is of use only if there is nothing else.
    after, _ = followed(lambda z, shift: jax.nn.relu(z.sum(0)) + shift, z, shift)
    assert after.narrows and after.noisy.aval.shape == (4, 4)
    both = followed(lambda z, shift: (jax.nn.relu(z) + shift) * jax.nn.relu(z).sum(0), z, shift)
    assert not both[0].narrows


def test_a_last_layer_gets_noise_itself():
    """What follows it is narrower: it is the loss."""
    space = fwdgrad.Activities()
    x, params = normal(0, (3, 2)), {"w": normal(1, (2, 4)), "u": normal(2, (4, 5))}

    def loss(params, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ params["w"]) @ params["u"]))

    sites = fwdgrad.explain(loss, params, x, tangents=fwdgrad.Normal(), space=space).sites
    assert [site.shape for site in sites] == [(1, 4), (1, 5)]


@pytest.mark.parametrize("pooling", _POOLINGS.values(), ids=_POOLINGS)
def test_so_noise_is_in_the_largest_of_each_window_alone(pooling, key):
    """With signs the estimate is ±d at each unit that has noise."""
    x, kernel, u = normal(0, (1, 1, 4, 4)), normal(1, (2, 1, 3, 3)), normal(2, (8, 1))

    def loss(params, x):
        z = lax.conv_general_dilated(x, kernel, (1, 1), "SAME")[0] + params["bias"]
        return jnp.sum(jnp.tanh(pooling(jax.nn.relu(z)).reshape(-1) @ params["u"]))

    params = {"bias": jnp.zeros((2, 4, 4)), "u": u}
    target = np.asarray(jax.jit(jax.grad(loss))(params, x)["bias"])
    assert 4 <= (target != 0).sum() <= 8
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), space=fwdgrad.Activities(layerwise=True)
    )
    grad = np.abs(jax.jit(value_and_grad)(key, params, x)[1]["bias"])
    np.testing.assert_allclose(grad, grad.max() * (target != 0), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_nothing_cancels_in_half_precision(dtype):
    z = normal(0, (4096,), dtype)
    for fun in (
        lambda z: z[:2048] - z[2048:],
        lambda z: jnp.stack([jnp.tanh(z / 4), -jnp.tanh(z / 4)]),
    ):
        after, values = followed(fun, z)
        assert has_effect(after, values).all()


def test_it_ends_at_complex_numbers(key):
    def loss(params, x):
        spectrum = jnp.abs(jnp.fft.fft(jnp.tanh(x @ params["w"])))
        return jnp.mean(jnp.tanh(spectrum @ params["u"]))

    params = {"w": normal(0, (3, 4)), "u": normal(1, (4, 2))}
    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=fwdgrad.Activities())
    value, _ = jax.jit(value_and_grad)(key, params, normal(2, (5, 3)))
    np.testing.assert_allclose(value, loss(params, normal(2, (5, 3))), rtol=1e-5)


def test_it_ends_at_what_has_no_reverse_mode(key):
    """Forward mode is all that the estimators need."""

    @jax.custom_jvp
    def fun(z):
        return jnp.maximum(z[..., :2], z[..., 2:])

    @fun.defjvp
    def fun_jvp(primals, tangents):
        tangent = jax.jvp(lambda z: z[..., :2], primals, tangents)[1]
        return fun(*primals), lax.while_loop(lambda t: t.sum() < -1e9, jnp.negative, tangent)

    assert followed(fun, normal(0, (4, 4)))[0] is None
    params, x = {"w": normal(0, (3, 4)), "u": normal(1, (2, 2))}, normal(2, (5, 3))
    value_and_grad = fwdgrad.forward_value_and_grad(
        lambda params, x: jnp.mean(jnp.tanh(fun(x @ params["w"]) @ params["u"])),
        space=fwdgrad.Activities(),
    )
    _, grad = jax.jit(value_and_grad)(key, params, x)
    assert all((g != 0).any() for g in jax.tree.leaves(grad))


def test_noise_is_not_moved_to_where_entries_weigh_differently():
    z, scale = normal(0, (4, 8)), jnp.array([30.0, 1, 1, 1])
    after, _ = followed(lambda z: (z * jnp.tile(scale, 2)).reshape(4, 2, 4).sum(1), z)
    assert not after.narrows
    after, _ = followed(lambda z: (z[:, :4] + z[:, 4:]) * scale, z)
    assert after.narrows and [e.primitive.name for e in after.equations][-1] == "add"
    after, _ = followed(lambda z: jnp.exp(z).sum(1), z)
    assert not after.narrows
    assert followed(lambda z: (z[:, :4] + z[:, 4:]) * 30, z)[0].narrows
