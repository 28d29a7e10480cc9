"""Moments of an estimate against NumPy, against all sign vectors, and in low precision."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.util.moments import error_moments


def by_numpy(draws, target):
    """The moments from the covariance and the mean, in float64."""
    draws, target = np.asarray(draws, float), np.asarray(target, float)
    norm = target @ target or 1.0
    errors = draws - target
    variance = np.var(draws, axis=0, ddof=1).sum() / norm
    pairs = [a @ b for a, b in itertools.permutations(errors, 2)]
    return {
        "slope": (draws @ target).mean() / norm,
        "error": (errors**2).sum(1).mean() / norm,
        "bias": np.mean(pairs) / norm,
        "variance": variance,
    }


@pytest.mark.parametrize("is_traced", [False, True])
def test_moments_are_those_of_the_covariance(is_traced):
    generator = np.random.default_rng(0)
    draws, target = generator.normal(size=(6, 5)) + 0.3, generator.normal(size=5)
    both = [jnp.asarray(draws[:, :2], jnp.float32), jnp.asarray(draws[:, 2:], jnp.float32)]

    def moments(count):
        leaves = [jnp.asarray(target[:2], jnp.float32), jnp.asarray(target[2:], jnp.float32)]
        return error_moments(lambda i: [x[i] for x in both], count, leaves, {"first": slice(1)})

    found = (jax.jit(moments) if is_traced else moments)(6)
    for name, expected in by_numpy(draws, target).items():
        assert float(found[name]) == pytest.approx(expected, rel=1e-5), name
    norms = np.linalg.norm(draws, axis=1) * np.linalg.norm(target)
    cosines = draws @ target / norms
    assert float(found["cosine"]) == pytest.approx(cosines.mean(), rel=1e-5)
    assert float(found["squared_cosine"]) == pytest.approx((cosines**2).mean(), rel=1e-5)
    part = draws[:, :2] @ target[:2] / np.linalg.norm(draws[:, :2], axis=1)
    assert float(found["first"]) == pytest.approx(
        part.mean() / np.linalg.norm(target[:2]), rel=1e-5
    )


def test_the_error_over_all_sign_vectors_is_d_minus_1():
    gradient = jnp.array([0.5, -2.0, 1.0, 0.1])
    signs = jnp.array([*itertools.product([-1.0, 1.0], repeat=4)])
    found = error_moments(lambda i: [(signs[i] @ gradient) * signs[i]], len(signs), [gradient])
    assert float(found["error"]) == pytest.approx(3, rel=1e-6)
    assert float(found["slope"]) == pytest.approx(1, rel=1e-6)


def test_without_a_target_errors_are_absolute_and_there_is_no_cosine():
    draws = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
    found = error_moments(lambda i: [jnp.asarray(draws)[i]], 3, [jnp.zeros(2)])
    assert np.isnan(found["cosine"])
    assert float(found["variance"]) == pytest.approx(by_numpy(draws, [0, 0])["variance"], rel=1e-6)


def test_a_draw_of_zero_has_no_direction():
    """As a difference of two equal losses; the others have their cosines."""
    draws = jnp.array([[0.0, 0.0], [2.0, 0.0]])
    assert float(error_moments(lambda i: [draws[i]], 2, [jnp.ones(2)])["cosine"]) == pytest.approx(
        0.5**1.5
    )


def test_sums_are_in_float32_at_least():
    """In bfloat16 a sum of 1,000 ones ends at 256."""
    found = error_moments(lambda i: [jnp.ones(1000, jnp.bfloat16)], 2, [jnp.zeros(1000)])
    assert found["error"].dtype == jnp.float32 and float(found["error"]) == 1000
