"""Every independent distribution: shapes, independence of leaves, covariance, fourth moments.

A new distribution needs a row of DISTRIBUTIONS.

Statistical bounds: the mean of N independent samples of known variance σ² is outside of the bound
with probability FAILURE, shared by the entries that one test compares (the union bound).
`bernstein` and `chebyshev` hold for every N. A bound z σ/√N, with z the normal quantile, holds in
the normal approximation. The seeds are fixed.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

import fwdgrad
from fwdgrad.tangents.forms import dense, is_structured
from fwdgrad.tangents.sampling import check_tangents, validated_sample
from tests.sweeps import thorough_but

FAILURE = 1e-8
DTYPES = "float16", "bfloat16", "float32", "float64"


def z(entries=1):
    return scipy.stats.norm.isf(FAILURE / (2 * entries))


def bernstein(variance, largest, number, failure):
    """Return Bernstein's bound for the mean of samples in [0, largest] of a given variance."""
    log = np.log(2 / failure)
    return np.sqrt(2 * variance * log / number) + 2 * largest * log / (3 * number)


def chebyshev(variance, number, failure):
    """Return Chebyshev's bound for the mean of samples of a given variance, bounded or not."""
    return np.sqrt(variance / (number * failure))


# Variances of X = (u·v)²‖v‖² for a unit vector u, that is of ‖g‖²/‖∇f‖², from the moments.


def normal_variance(d, u):
    # u = e₁ by symmetry, so X = a(a + s) with a = v₁², s ~ χ²(d − 1) independent;
    # E a², a³, a⁴ = 3, 15, 105 and E s² = (d − 1)(d + 1).
    second_moment = 105 + 2 * 15 * (d - 1) + 3 * (d - 1) * (d + 1)
    return second_moment - (d + 2) ** 2


def rademacher_variance(d, u):
    return d**2 * 2 * (1 - np.sum(u**4))  # ‖v‖² = d; Var (u·v)² = 2 (1 − Σ uᵢ⁴)


def sphere_variance(d, u):
    return 2 * d**2 * (d - 1) / (d + 2)  # ‖v‖² = d; (u·v)²/d ~ Beta(½, (d − 1)/2)


def low_rank_variance(d, u):
    """Return the variance by all sign vectors, for the gradient u of (b, (b, b), w).

    The tangent of w is a cᵀ with 2 × 3 entries.

    ‖v‖² = d and E (u·v)² = 1, so Var = d² (E (u·v)⁴ − 1).
    """
    signs = np.array(list(itertools.product([-1, 1], repeat=4 + 5)))
    vectors, a, c = signs[:, :4], signs[:, 4:6], signs[:, 6:]
    products = (a[:, :, None] * c[:, None, :]).reshape(-1, 6)
    along = np.concatenate([vectors, products], 1) @ u
    return d**2 * (np.mean(along**4) - 1)


# distribution, E[vᵢ⁴], E[vᵢ²vⱼ²], E‖g‖²/‖∇f‖², Var ‖g‖²/‖∇f‖⁴, all as functions of d
DISTRIBUTIONS = [
    (fwdgrad.Normal(), lambda d: 3.0, lambda d: 1.0, lambda d: d + 2, normal_variance),
    (fwdgrad.Rademacher(), lambda d: 1.0, lambda d: 1.0, lambda d: d, rademacher_variance),
    (fwdgrad.LowRank(), lambda d: 1.0, lambda d: 1.0, lambda d: d, low_rank_variance),
    (
        fwdgrad.Sphere(),
        lambda d: 3 * d / (d + 2),
        lambda d: d / (d + 2),
        lambda d: d,
        sphere_variance,
    ),
]
each_distribution = pytest.mark.parametrize(
    "distribution", [row[0] for row in DISTRIBUTIONS], ids=lambda x: type(x).__name__
)
each_row = pytest.mark.parametrize(
    ("distribution", "fourth", "mixed", "squared_norm", "variance"),
    DISTRIBUTIONS,
    ids=[type(row[0]).__name__ for row in DISTRIBUTIONS],
)

PARAMS = {"w": jnp.zeros((2, 3)), "b": (jnp.zeros(3), jnp.zeros(()))}  # d = 10


def materialize(tangent):
    return jax.tree.map(dense, tangent, is_leaf=is_structured)


def samples(distribution, key, number, params=PARAMS):
    """Return flat tangents, (number, d)."""

    def flat(key):
        return ravel_pytree(materialize(distribution.sample(key, params)))[0]

    return np.asarray(jax.jit(jax.vmap(flat))(jax.random.split(key, number)), np.float64)


@each_distribution
def test_a_distribution_follows_the_protocol(distribution):
    assert isinstance(distribution, fwdgrad.TangentDistribution)
    check_tangents(distribution)
    assert distribution == type(distribution)() and hash(distribution) == hash(type(distribution)())


@each_distribution
@pytest.mark.parametrize("dtype", thorough_but(["bfloat16", "float64"], DTYPES))
def test_a_sample_has_the_structure_shapes_and_dtypes_of_params(distribution, dtype, key, x64):
    params = {
        "w": jnp.zeros((2, 3), dtype),
        "rest": [jnp.zeros(33, dtype), None, jnp.zeros(0, dtype)],
    }
    tangent = distribution.sample(key, params)
    validated_sample(distribution, tangent, params)
    assert all(bool(jnp.all(jnp.isfinite(v))) for v in jax.tree.leaves(tangent))


@each_distribution
def test_leaves_of_one_shape_get_different_tangents(distribution, key):
    tangent = materialize(distribution.sample(key, [jnp.zeros(64), jnp.zeros(64)]))
    correlation = np.corrcoef(*map(np.asarray, tangent))[0, 1]
    assert abs(correlation) < z() / 64**0.5


@each_distribution
def test_a_key_determines_the_tangent(distribution, key):
    params = {"w": jnp.zeros((20, 30))}
    first, second = (materialize(distribution.sample(key, params)) for _ in range(2))
    np.testing.assert_array_equal(first["w"], second["w"])
    other = materialize(distribution.sample(jax.random.fold_in(key, 1), params))
    assert not np.array_equal(other["w"], first["w"])


@each_row
def test_tangents_have_zero_mean_and_identity_covariance(
    distribution, fourth, mixed, squared_norm, variance, key
):
    number, d = 200_000, 10
    v = samples(distribution, key, number)
    deviation = z(entries=d + d * d) / number**0.5
    assert np.abs(v.mean(0)).max() < deviation
    # Var vᵢvⱼ = E vᵢ²vⱼ² − δᵢⱼ
    covariance_deviation = np.full((d, d), np.sqrt(mixed(d)))
    np.fill_diagonal(covariance_deviation, np.sqrt(fourth(d) - 1))
    error = np.abs(v.T @ v / number - np.eye(d))
    assert np.all(error <= deviation * covariance_deviation + 1e-6)


@each_row
def test_the_estimate_is_unbiased_with_the_second_moment_of_the_docstring(
    distribution, fourth, mixed, squared_norm, variance, key
):
    is_normal = isinstance(distribution, fwdgrad.Normal)
    number, d = 1_000_000 if is_normal else 200_000, 10
    gradient = np.linspace(-1, 2, d, dtype=np.float32)

    def loss(params):  # linear, with "w" as the matrix of a product, and its gradient `gradient`
        vectors = ravel_pytree(params["b"])[0] @ gradient[:4]
        return vectors + jnp.sum((jnp.eye(2) @ params["w"]) * gradient[4:].reshape(2, 3))

    estimate = fwdgrad.forward_value_and_grad(loss, tangents=distribution)
    estimates = jax.jit(jax.vmap(lambda k: ravel_pytree(estimate(k, PARAMS)[1])[0]))
    g = np.asarray(estimates(jax.random.split(key, number)), np.float64)
    # E gᵢ² = E[vᵢ²vⱼ²] (‖∇f‖² − ∇fᵢ²) + E[vᵢ⁴] ∇fᵢ²; odd moments are zero by symmetry.
    norm2 = np.sum(gradient**2)
    second_moment = mixed(d) * (norm2 - gradient**2) + fourth(d) * gradient**2
    deviation = np.sqrt(second_moment - gradient**2)
    assert np.all(np.abs(g.mean(0) - gradient) < z(d + 1) * deviation / number**0.5)
    found = np.mean(np.sum(g**2, axis=1)) / norm2
    spread = variance(d, gradient / norm2**0.5)
    if is_normal:  # the tail of ‖g‖² is heavy: N = 10⁶, p = 10⁻³
        bound = chebyshev(spread, number, 1e-3)
    else:  # (u·v)²‖v‖² ≤ ‖v‖⁴ = d²
        bound = bernstein(spread, d**2, number, FAILURE)
    assert abs(found - squared_norm(d)) < bound < 0.1 * d


def test_a_wrong_variance_is_outside_of_the_bounds(key):
    """The variance of a truncated normal, 0.77."""
    v = np.asarray(jax.random.truncated_normal(key, -2, 2, (200_000,)), np.float64)
    assert abs(np.mean(v**2) - 1) > 10 * z(110) * 2**0.5 / 200_000**0.5


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 100])
def test_rademacher_entries_are_signs_and_all_patterns_occur(size, key):
    v = samples(fwdgrad.Rademacher(), key, 2_000, jnp.zeros(size))
    assert v.shape == (2_000, size) and np.all(np.abs(v) == 1)
    if size:
        # Each sign, and each product of neighbours, is a fair coin: Hoeffding's bound.
        bound = np.sqrt(2 * np.log(2 * 2 * size / FAILURE) / 2_000)
        assert np.abs(v.mean(0)).max() < bound
        assert np.abs((v * np.roll(v, 1, axis=1)).mean(0)[1:]).max(initial=0) < bound


def test_sphere_has_radius_sqrt_d_over_the_whole_pytree(key):
    v = samples(fwdgrad.Sphere(), key, 100)
    np.testing.assert_allclose(np.sum(v**2, axis=1), 10, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_normals_have_variance_one(dtype, key):
    """If sampled in half precision, bfloat16 normals would have no tail beyond 2.9."""
    v = np.asarray(fwdgrad.Normal().sample(key, jnp.zeros(400_000, dtype)), np.float64)
    # Rounding adds a relative error of at most 2⁻⁸, so to the variance at most 2⁻¹⁶/3 · 4.
    assert abs(np.mean(v**2) - 1) < z() * (2 / 400_000) ** 0.5 + 1e-4
    assert np.abs(v).max() > 4


@each_distribution
def test_sampling_needs_no_rank_promotion(distribution, key):
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(distribution.sample, key, {"w": jnp.ones((40, 30)), "b": jnp.ones(30)})
