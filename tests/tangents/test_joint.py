"""Jointly sampled tangents: covariance, orthogonality, blocks; and aggregation by projection."""

import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.tangents.forms import dense, is_structured
from tests.oracle import normal
from tests.sweeps import thorough_but

PARAMS = {"w": jnp.zeros((4, 6)), "b": (jnp.zeros(6), jnp.zeros(()))}  # d = 31
DISTRIBUTIONS = [fwdgrad.Orthogonal(), fwdgrad.BlockSparse()]
each_distribution = pytest.mark.parametrize(
    "distribution", DISTRIBUTIONS, ids=lambda x: type(x).__name__
)


def flat(distribution, key, num_tangents, params=PARAMS):
    """Return K tangents as dense rows, (K, d)."""
    together = distribution.sample_together(key, params, None, num_tangents)
    leaves = jax.tree.leaves(together, is_leaf=is_structured)
    return jnp.concatenate([dense(v).reshape(num_tangents, -1) for v in leaves], 1)


@each_distribution
@pytest.mark.parametrize("num_tangents", [1, 4, 7])
def test_the_covariance_is_the_identity(distribution, num_tangents, key):
    """By the mean over n samples of (1/K) Σ v vᵀ, within 7 standard deviations.

    In the normal approximation one of the d² entries is outside with probability 3e-9.
    """
    n = 4000

    def second_moment(key):
        v = flat(distribution, key, num_tangents)
        return v.T @ v / num_tangents

    moments = jax.lax.map(second_moment, jax.random.split(key, n), batch_size=500)
    deviation = np.asarray(moments.std(0)).max()
    assert deviation < 6
    np.testing.assert_allclose(moments.mean(0), np.eye(31), atol=7 * deviation / n**0.5)


@each_distribution
def test_the_mean_is_zero(distribution, key):
    """Also for one tangent of one entry, where the sign alone is random."""
    n = 4000
    for params in (jnp.zeros(1), jnp.zeros(3)):
        draws = jax.vmap(lambda k, p=params: flat(distribution, k, 1, p))(jax.random.split(key, n))
        np.testing.assert_allclose(draws.mean((0, 1)), 0, atol=6 * 3**0.5 / n**0.5)


@pytest.mark.parametrize("num_tangents", [1, 8, 31])
def test_orthogonal_tangents_are_orthogonal_to_rounding(num_tangents, key):
    v = flat(fwdgrad.Orthogonal(), key, num_tangents)
    np.testing.assert_allclose(v @ v.T, 31 * np.eye(num_tangents), atol=31 * 1e-5)


@pytest.mark.parametrize(
    ("shape", "num_tangents", "form"),
    [
        ((4, 6), 3, "Blocks(float32[4, 6], 3 along axis 1)"),
        ((4, 6), 4, "Blocks(float32[4, 6], 4 along axis 0)"),  # 6 are 2, 2, 2 and 0
        ((16, 28, 28), 16, "Blocks(float32[16, 28, 28], 16 along axis 0)"),
        ((16, 28, 28), 20, "Blocks(float32[16, 28, 28], 20 along axis 1)"),  # 16 has no 20 entries
        ((63, 100), 64, "Blocks(float32[63, 100], 64 along axis 1)"),
        ((4, 6), 7, None),  # no axis has seven entries
        ((4, 6), 24, None),
        ((4, 6), 30, None),
        ((6,), 30, "Blocks(float32[6], 30 along axis 0)"),
    ],
)
def test_blocks_are_disjoint_signs(shape, num_tangents, form, key):
    (v,) = fwdgrad.BlockSparse().sample_together(key, [jnp.zeros(shape)], None, num_tangents)
    assert repr(v) == form or (form is None and not is_structured(v))
    v = dense(v).reshape(num_tangents, -1)
    assert ((v != 0).sum(0) == 1).all()
    if form is None or max(shape) % num_tangents == 0:
        assert (v != 0).sum(1).max() == -(-math.prod(shape) // num_tangents)
    np.testing.assert_allclose(np.abs(v).sum(0), num_tangents**0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "constraint", "axis"), [(("n", 16), "n >= 64", 0), (("n", 64), "n <= 32", 1)]
)
def test_blocks_of_symbolic_sizes_are_along_the_longest_axis(shape, constraint, axis, key):
    (n,) = jax.export.symbolic_shape("n", constraints=[constraint])
    like = jax.ShapeDtypeStruct([n if size == "n" else size for size in shape], "float32")
    found = []

    def sample(x):
        found.append(fwdgrad.BlockSparse().sample_together(key, x, None, 8))
        return found[0].value

    exported = jax.export.export(jax.jit(sample))(like)
    assert found[0].axis == axis and exported.out_avals[0].shape == (*like.shape,)


def quadratic(params):
    return 0.5 * jnp.sum((params["w"] - 1) ** 2) + jnp.sum(jnp.sin(params["b"][0])) + params["b"][1]


def test_as_many_orthogonal_tangents_as_parameters_estimate_the_gradient_exactly(key):
    value_and_grad = fwdgrad.forward_value_and_grad(
        quadratic, tangents=fwdgrad.Orthogonal(), num_tangents=31
    )
    _, grad = value_and_grad(key, PARAMS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), grad, jax.grad(quadratic)(PARAMS)
    )


@pytest.mark.parametrize("tangents", [fwdgrad.Normal(), fwdgrad.Rademacher(), fwdgrad.Orthogonal()])
def test_the_projection_by_as_many_tangents_as_parameters_is_the_gradient(tangents, key, x64):
    """For all tangents, within the rounding ε cond(G) of the Gram matrix G."""
    value_and_grad = fwdgrad.forward_value_and_grad(
        quadratic, tangents=tangents, num_tangents=31, aggregation=fwdgrad.Projection()
    )
    params = jax.tree.map(lambda x: x.astype(jnp.float64), PARAMS)

    @jax.jit
    def error(key):
        drawn = value_and_grad.draw(key, params)
        v = jnp.concatenate([dense(v).reshape(31, -1) for v in drawn.tangents], 1)
        differences = jax.tree.map(
            jnp.subtract, value_and_grad.along(drawn, params)[1], jax.grad(quadratic)(params)
        )
        worst = jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(differences)]).max()
        return worst, jnp.linalg.cond(v) ** 2

    errors, conditions = jax.lax.map(error, jax.random.split(key, 100))
    assert (errors < 100 * 2.3e-16 * conditions).all()


@pytest.mark.parametrize("tangents", [fwdgrad.LowRank(), fwdgrad.BlockSparse(), fwdgrad.Normal()])
def test_the_projection_is_the_nearest_point_of_the_span(tangents, key):
    """The residual of the gradient is orthogonal to every tangent."""
    num_tangents = 4
    value_and_grad = fwdgrad.forward_value_and_grad(
        quadratic, tangents=tangents, num_tangents=num_tangents, aggregation=fwdgrad.Projection()
    )
    drawn = value_and_grad.draw(key, PARAMS)
    _, grad = jax.jit(value_and_grad.along)(drawn, PARAMS)
    rest = jax.tree.leaves(jax.tree.map(jnp.subtract, jax.grad(quadratic)(PARAMS), grad))
    for k in range(num_tangents):
        products = [jnp.vdot(dense(v)[k], r) for v, r in zip(drawn.tangents, rest, strict=True)]
        assert abs(sum(products)) < 1e-3


def by_jvp(loss, params, tangents):
    """Return (1/K) Σ_k (∇f·v_k) v_k for dense tangents, by `jax.jvp`."""

    @jax.jit
    def mean(params, tangents):
        derivatives = jax.vmap(lambda v: jax.jvp(loss, (params,), (v,))[1])(tangents)
        return [jnp.tensordot(derivatives, v, 1) / len(v) for v in tangents]

    return mean(params, tangents)


def test_blocks_are_materialised_by_a_jvp_rule_that_mixes_entries(key):
    """A custom_jvp function that is the identity on values, and centres their tangents."""

    @jax.custom_jvp
    def centre(x):
        return 1.0 * x

    centre.defjvp(lambda x, t: (1.0 * x[0], t[0] - t[0].mean(-1, keepdims=True)))

    def loss(w, x):
        return jnp.sum(jnp.tanh(centre(x @ w)) ** 2)

    w, x = normal(0, (3, 6)), normal(1, (2, 3))
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.BlockSparse(), num_tangents=3
    )
    drawn = value_and_grad.draw(key, w, x)
    tangents = dense(drawn.tangents[0])
    (expected,) = by_jvp(lambda of: loss(*of, x), [w], [tangents])
    found = jax.jit(value_and_grad.along)(drawn, w, x)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_blocks_have_the_derivatives_of_their_dense_arrays(key):
    params = [normal(0, (5, 6)), normal(1, (6,)), normal(2, (6, 7)), normal(3, (7, 3))]
    x = normal(4, (4, 5))

    def loss(params):
        first, bias, second, third = params
        h = jax.nn.relu(x @ first + bias)
        return jnp.mean((jnp.tanh(h @ second).reshape(4, 7, 1).squeeze(2) @ third) ** 2)

    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.BlockSparse(), num_tangents=4
    )
    drawn = value_and_grad.draw(key, params)
    assert all(isinstance(v, fwdgrad.Blocks) for v in drawn.tangents)
    value, grad = jax.jit(value_and_grad.along)(drawn, params)
    tangents = [dense(v) for v in drawn.tangents]
    np.testing.assert_allclose(value, loss(params), rtol=1e-5)
    for g, expected in zip(grad, by_jvp(loss, params, tangents), strict=True):
        np.testing.assert_allclose(g, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "num_tangents"), thorough_but([(10, 4), (4, 8)], [(10, 4), (4, 8), (8, 4), (3, 2)])
)
def test_blocks_of_channels_through_a_flattening(channels, num_tangents, key):
    """If K does not divide the number of channels, blocks are of unequal size or empty."""
    kernel, weight = normal(0, (channels, 1, 2, 2)), normal(1, (channels * 9, 5))
    x = normal(2, (2, 1, 3, 3))

    def loss(params):
        kernel, weight = params
        h = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME"))
        return jnp.mean((h.reshape(2, -1) @ weight) ** 2)

    params = [kernel, weight]
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.BlockSparse(), num_tangents=num_tangents
    )
    drawn = value_and_grad.draw(key, params)
    _, grad = jax.jit(value_and_grad.along)(drawn, params)
    tangents = [dense(v) for v in drawn.tangents]
    for g, expected in zip(grad, by_jvp(loss, params, tangents), strict=True):
        np.testing.assert_allclose(g, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("channels", [4, 3])
def test_blocks_of_channels_through_a_convolution(channels, key):
    first, second = normal(0, (channels, 1, 3, 3)), normal(1, (2, channels, 3, 3))
    x = normal(2, (2, 1, 5, 5))

    def loss(params):
        first, second = params
        h = jax.nn.relu(jax.lax.conv_general_dilated(x, first, (1, 1), "SAME"))
        return jnp.mean(jax.lax.conv_general_dilated(h, second, (2, 2), "SAME") ** 2)

    params = [first, second]
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.BlockSparse(), num_tangents=2
    )
    drawn = value_and_grad.draw(key, params)
    _, grad = jax.jit(value_and_grad.along)(drawn, params)
    tangents = [dense(v) for v in drawn.tangents]
    for g, expected in zip(grad, by_jvp(loss, params, tangents), strict=True):
        np.testing.assert_allclose(g, expected, rtol=1e-3, atol=1e-5)


def test_invalid_arguments_are_errors(key):
    with pytest.raises(ValueError, match=r"must be at most 31 for orthogonal tangents"):
        fwdgrad.forward_value_and_grad(quadratic, tangents=fwdgrad.Orthogonal(), num_tangents=32)(
            key, PARAMS
        )
    for options in (
        {"tangents": fwdgrad.BlockSparse()},
        {"tangents": fwdgrad.Orthogonal()},
        {"aggregation": fwdgrad.Projection()},
    ):
        with pytest.raises(ValueError, match="chunk_size must be at least num_tangents=4"):
            fwdgrad.forward_value_and_grad(quadratic, num_tangents=4, chunk_size=2, **options)
    with pytest.raises(TypeError, match="space must be an object, found the class Activities"):
        fwdgrad.forward_value_and_grad(quadratic, space=fwdgrad.Activities)
    with pytest.raises(TypeError, match="aggregation must have coefficients and needs_gram, as"):
        fwdgrad.forward_value_and_grad(quadratic, aggregation="mean")
