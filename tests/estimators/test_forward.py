"""The estimators: exact oracles first, then properties, then statistics."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import fwdgrad
from tests.examples import examples
from tests.sweeps import thorough_but


class Given:
    """The distribution that always samples one given tangent: takes chance out of a test."""

    def __init__(self, tangent):
        self.tangent = tangent

    def sample(self, key, params, splits):
        return self.tangent


def network_loss(params, x):
    """A loss of 10 parameters, smooth, with every entry of its Hessian at work."""
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["v"]) ** 2) + jnp.sum(params["v"] ** 3)


@pytest.fixture
def network(key, dtype, x64):
    keys = jax.random.split(key, 4)
    params = {
        "w": jax.random.normal(keys[0], (3, 2), dtype),
        "b": jax.random.normal(keys[1], (2,), dtype),
        "v": jax.random.normal(keys[2], (2,), dtype),
    }
    return params, jax.random.normal(keys[3], (5, 3), dtype)


def mean_over_tangents(loss, params, x, tangents):
    """The mean of the estimate over rows of flat tangents, flat."""
    _, unravel = ravel_pytree(params)

    @jax.vmap
    def estimates(v):
        estimate = fwdgrad.forward_value_and_grad(loss, tangents=Given(unravel(v)))
        return ravel_pytree(estimate(jax.random.key(0), params, x)[1])[0]

    return jnp.mean(jax.jit(estimates)(tangents), axis=0)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 2e-5), ("float64", 1e-13)])
def test_average_over_all_sign_vectors_is_the_gradient(network, dtype, rounding):
    params, x = network
    signs = jnp.array(list(itertools.product([-1, 1], repeat=10)), dtype)
    exact = ravel_pytree(jax.jit(jax.grad(network_loss))(params, x))[0]
    average = mean_over_tangents(network_loss, params, x, signs)
    np.testing.assert_allclose(average, exact, atol=rounding * float(jnp.linalg.norm(exact)))


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 2e-6), ("float64", 1e-14)])
def test_average_over_the_scaled_standard_basis_is_the_gradient(network, dtype, rounding):
    params, x = network
    exact = ravel_pytree(jax.jit(jax.grad(network_loss))(params, x))[0]
    average = mean_over_tangents(network_loss, params, x, 10**0.5 * jnp.eye(10, dtype=dtype))
    np.testing.assert_allclose(average, exact, atol=rounding * float(jnp.linalg.norm(exact)))


@pytest.mark.parametrize("dtype", ["float32"])
def test_equals_hand_written_jvp(network, key):
    params, x = network
    tangent = fwdgrad.Normal().sample(key, params)
    value, derivative = jax.jvp(lambda p: network_loss(p, x), (params,), (tangent,))
    found_value, found = fwdgrad.forward_value_and_grad(network_loss)(key, params, x)
    np.testing.assert_allclose(found_value, value, rtol=1e-6)  # its products share contractions
    jax.tree.map(
        lambda g, v: np.testing.assert_allclose(g, derivative * v, rtol=2e-6), found, tangent
    )


@pytest.mark.parametrize("dtype", ["float32"])
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_mean_of_independent_tangents_in_any_chunks(network, key, chunk_size):
    params, x = network
    one = jax.jit(fwdgrad.forward_value_and_grad(network_loss))
    singles = [one(k, params, x)[1] for k in jax.random.split(key, 7)]
    expected = jax.tree.map(lambda *g: np.mean(g, axis=0), *singles)
    many = fwdgrad.forward_value_and_grad(network_loss, num_tangents=7, chunk_size=chunk_size)
    value, grad = jax.jit(many)(key, params, x)
    np.testing.assert_allclose(value, network_loss(params, x), rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), grad, expected
    )


def count_shapes(jaxpr, primitive):
    """The output shapes of every equation of one primitive, inner jaxprs included."""
    shapes = [e.outvars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == primitive]
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                shapes += count_shapes(value.jaxpr, primitive)
    return shapes


def test_primal_is_evaluated_once_for_all_tangents(key):
    estimate = fwdgrad.forward_value_and_grad(lambda w: jnp.sum(jnp.exp(w)), num_tangents=16)
    jaxpr = jax.make_jaxpr(estimate)(key, jnp.zeros(3)).jaxpr
    assert count_shapes(jaxpr, "exp") == [(3,)]  # and not (16, 3)


def test_chunks_bound_the_memory(key, on_cpu):
    """The compiled program's temporary memory grows with the chunk, not with K."""
    w, x = jnp.zeros((256, 256)), jnp.ones((4, 256))

    def temporary_bytes(num_tangents, chunk_size):
        estimate = fwdgrad.forward_value_and_grad(
            lambda w, x: jnp.mean((x @ w) ** 2), num_tangents=num_tangents, chunk_size=chunk_size
        )
        return jax.jit(estimate).lower(key, w, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(64, 2) < 1.5 * temporary_bytes(8, 2) < temporary_bytes(64, None) / 4


@pytest.mark.parametrize("num_tangents", [4])
def test_squared_norm_of_the_mean_of_normal_tangents(num_tangents, key):
    """E‖g‖² = ((d + 1)/K + 1) ‖∇f‖², with failure probability 1e-8 (z = 5.73)."""
    gradient, number = jnp.array([1.0, -2.0, 0.5, 0.0, 3.0]), 100_000
    estimate = fwdgrad.forward_value_and_grad(lambda w: w @ gradient, num_tangents=num_tangents)
    keys = jax.random.split(key, number)
    g = jax.jit(jax.vmap(lambda k: estimate(k, jnp.zeros(5))[1]))(keys)
    squares = np.sum(np.asarray(g, np.float64) ** 2, axis=1) / np.sum(gradient**2)
    expected = (5 + 1) / num_tangents + 1
    # Var ‖g‖² has no short form here; its estimate from 100,000 samples is good to a percent.
    assert abs(squares.mean() - expected) < 5.73 * 1.02 * squares.std() / number**0.5


def test_clipping_bounds_the_derivative_and_reports_its_rate(key):
    def estimate(clip):
        value_and_grad = fwdgrad.forward_value_and_grad(
            lambda w: 10 * jnp.sum(w),
            tangents=fwdgrad.Rademacher(),
            num_tangents=20,
            chunk_size=8,
            clip=clip,
            has_report=True,
        )
        return jax.jit(value_and_grad)(key, jnp.zeros(3))

    # The derivatives are ±10 and ±30 with probabilities 3/4 and 1/4.
    sample = jax.vmap(lambda k: fwdgrad.Rademacher().sample(k, jnp.zeros(3)))
    signs = np.asarray(sample(jax.random.split(key, 20)))
    derivatives = 10 * signs.sum(axis=1)
    assert {10, 30} == set(np.abs(derivatives))
    for clip, rate in ((None, 0), (20, np.mean(np.abs(derivatives) > 20)), (5, 1)):
        _, grad, report = estimate(clip)
        clipped = np.clip(derivatives, -(clip or np.inf), clip or np.inf)
        np.testing.assert_allclose(grad, np.mean(clipped[:, None] * signs, axis=0), rtol=1e-5)
        np.testing.assert_allclose(report["clip_rate"], rate, rtol=1e-6)


ESTIMATORS = [
    lambda f, **options: fwdgrad.forward_value_and_grad(f, **options),
    lambda f, **options: fwdgrad.forward_value_and_grad(f, num_tangents=2, **options),
    lambda f, **options: fwdgrad.forward_value_and_grad(f, tangents=fwdgrad.Sphere(), **options),
    lambda f, **options: fwdgrad.backprop_value_and_grad(f, **options),
]
each_estimator = pytest.mark.parametrize(
    "estimator", ESTIMATORS, ids=["normal", "two", "sphere", "backprop"]
)


@each_estimator
def test_other_leaves_are_zero_if_they_are_numbers(estimator, key):
    count, mask = jnp.array([1, 2]), jnp.array([True, False])
    params = {
        "w": jnp.ones(2),
        "rest": [count, mask, None, 3, True, 0.5, "name", jnp.tanh],
        "array": np.ones(2, np.float32),
        "key": key,
    }

    def loss(params):
        count, mask, nothing, number, flag, rate, name, function = params["rest"]
        assert nothing is None and number == 3 and flag is True and name == "name"
        return jnp.sum(function(params["w"] * count * mask) * rate + params["array"])

    value, grad = estimator(loss)(key, params)
    for zeros, leaf in zip(grad["rest"], (count, mask), strict=False):
        assert not zeros.any() and (zeros.shape, zeros.dtype) == (leaf.shape, leaf.dtype)
    assert grad["rest"][2:] == [None, 0, False, 0.0, "name", jnp.tanh] and grad["key"] is key
    assert [type(leaf) for leaf in grad["rest"][3:6]] == [int, bool, float]
    assert grad["w"].dtype == jnp.float32 and isinstance(grad["array"], jax.Array)
    assert jax.tree.structure(grad) == jax.tree.structure(params)
    assert value.shape == ()


@each_estimator
def test_aux_nests_as_in_jax(estimator, key):
    def loss(w, x, *, scale):
        return scale * jnp.sum(w * x), {"twice": 2 * x, "count": 3, "name": "x", "f": jnp.tanh}

    w, x = jnp.ones(3), jnp.arange(3.0)
    (value, aux), grad = estimator(loss, has_aux=True)(key, w, x, scale=2.0)
    (expected, _), _ = jax.value_and_grad(loss, has_aux=True)(w, x, scale=2.0)
    assert value == expected and grad.shape == (3,)
    assert (aux["count"], aux["name"], aux["f"]) == (3, "x", jnp.tanh)
    np.testing.assert_array_equal(aux["twice"], 2 * x)


@pytest.mark.parametrize(
    "estimator",
    thorough_but(ESTIMATORS[1::2], ESTIMATORS),
    ids=["normal", "two", "sphere", "backprop"],
)
def test_transformations_change_nothing(estimator, key):
    def loss(params, x):
        return jnp.mean(jax.nn.relu(x @ params["w"]) ** 2) + jnp.sum(params["b"] ** 2)

    params = {"w": jnp.arange(6.0).reshape(3, 2) / 6, "b": jnp.ones(())}
    x = jax.random.normal(key, (4, 3))
    estimate = estimator(loss)
    compiled = jax.jit(estimate)
    keys = jax.random.split(key, 3)
    each = [compiled(k, params, x) for k in keys]

    def assert_same(found, expected):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
        )

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    assert_same(estimate(keys[0], params, x), each[0])
    assert_same(jax.jit(jax.vmap(estimate, in_axes=(0, None, None)))(keys, params, x), stacked)
    assert_same(jax.lax.scan(lambda c, k: (c, estimate(k, params, x)), 0, keys)[1], stacked)
    copy = jax.tree.map(jnp.copy, params)
    assert_same(jax.jit(estimate, donate_argnums=1)(keys[0], copy, x), each[0])
    assert copy["w"].is_deleted()


@each_estimator
def test_loss_with_a_key_of_its_own(estimator, key):
    def loss(w, *, key, params):
        return jnp.sum(w * jax.random.bernoulli(key, 0.5, w.shape)) * params

    w, other = jnp.arange(1.0, 9.0), jax.random.key(7)
    value, _ = estimator(loss)(key, w, key=other, params=2.0)
    np.testing.assert_allclose(value, loss(w, key=other, params=2.0))


def test_backprop_is_jax_grad_and_ignores_the_key(key):
    w = jnp.arange(3.0)
    for given_key in (key, None, "anything"):
        value, grad, report = fwdgrad.backprop_value_and_grad(
            lambda w: jnp.sum(jnp.sin(w)), has_report=True
        )(given_key, w)
        assert report == {} and value == jnp.sum(jnp.sin(w))
        np.testing.assert_array_equal(grad, jnp.cos(w))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@each_estimator
def test_dtypes_are_kept(estimator, dtype, key, x64):
    params = {"w": jnp.full((4, 3), 0.5, dtype), "other": jnp.ones(2, "float32")}

    def loss(params):
        return jnp.sum(params["w"] ** 2) + jnp.sum(params["other"]).astype(dtype)

    value, grad = jax.eval_shape(estimator(loss), key, params)
    assert value.dtype == dtype and grad["w"].dtype == dtype and grad["other"].dtype == jnp.float32


def test_half_precision_gradients_are_accumulated_in_float32(key):
    """The mean of 256 tangents in bfloat16 differs from float32's by its own rounding alone."""
    estimate = fwdgrad.forward_value_and_grad(
        lambda w: jnp.sum(w.astype(jnp.float32) * jnp.arange(1.0, 9.0)),
        tangents=fwdgrad.Rademacher(),  # exact in every dtype
        num_tangents=256,
        chunk_size=1,
    )
    estimate = jax.jit(estimate)
    exact = estimate(key, jnp.ones(8, "float32"))[1]
    half = estimate(key, jnp.ones(8, "bfloat16"))[1].astype(jnp.float32)
    np.testing.assert_allclose(half, exact, rtol=2**-8)


leaves = st.one_of(
    st.none(),
    st.integers(-3, 3),
    st.booleans(),
    st.builds(
        lambda shape, dtype: jnp.ones(shape, dtype),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        st.sampled_from(["float16", "bfloat16", "float32", "int32", "uint8", "bool"]),
    ),
)
pytrees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    ),
    max_leaves=6,
)


@examples(12)
@given(pytrees, st.sampled_from([1, 3]))
def test_any_pytree(tree, num_tangents):
    params = {"tree": tree, "w": jnp.ones(2)}

    def loss(params):
        floats = jax.tree.leaves(fwdgrad.partition(params)[0])
        return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in floats)

    estimate = fwdgrad.forward_value_and_grad(loss, num_tangents=num_tangents)
    value, grad = estimate(jax.random.key(0), params)
    assert jax.tree.structure(grad) == jax.tree.structure(params)
    # The same as of its floating leaves alone.
    theta = fwdgrad.partition(params)[0]
    expected_value, expected = estimate(jax.random.key(0), theta)
    assert value == expected_value
    found = fwdgrad.partition(grad)[0]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    for g, x in zip(jax.tree.leaves(grad), jax.tree.leaves(params), strict=True):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating):
            assert g.shape == x.shape and g.dtype == x.dtype
        else:  # a number, or an array of numbers
            assert np.all(np.asarray(g) == 0) and jnp.shape(g) == jnp.shape(x)
            assert isinstance(x, jax.Array) or type(g) is type(x)
    theta, rest = fwdgrad.partition(params)
    again = fwdgrad.combine(theta, rest)
    assert jax.tree.structure(again) == jax.tree.structure(params)


VALUE_AND_GRADS = [
    fwdgrad.forward_value_and_grad,
    fwdgrad.backprop_value_and_grad,
    fwdgrad.spsa_value_and_grad,
    fwdgrad.evolution_value_and_grad,
]


@pytest.mark.parametrize(
    ("make", "jit"),
    thorough_but(
        [(fwdgrad.forward_value_and_grad, False), *((make, True) for make in VALUE_AND_GRADS)],
        itertools.product(VALUE_AND_GRADS, [False, True]),
    ),
)
def test_a_step_leaves_counters_at_their_value(make, jit, key):
    params = {"w": jnp.ones(2), "count": jnp.array([100]), "seen": np.int32(7), "on": True}
    value_and_grad = make(lambda p: jnp.sum(p["w"] ** 2) + 0.0 * jnp.sum(p["count"]))
    _, grad = (jax.jit if jit else lambda f: f)(value_and_grad)(key, params)
    for after in (
        jax.tree.map(lambda p, g: p - 0.1 * g, params, grad),
        optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grad)),
    ):
        assert (after["count"], after["seen"], after["on"]) == (100, 7, True)
