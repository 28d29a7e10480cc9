"""The law of an estimate's noise, and the shrunken estimate that is nearest to the gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from tests.oracle import normal
from tests.sweeps import thorough_but

DISTRIBUTIONS = {
    "normal": (fwdgrad.Normal(), lambda d, k: (d + 1) / k),
    "rademacher": (fwdgrad.Rademacher(), lambda d, k: (d - 1) / k),
    "sphere": (fwdgrad.Sphere(), lambda d, k: (d - 1) / k),
    "low rank": (fwdgrad.LowRank(), lambda d, k: (d - 1) / k),
    "rank 2": (fwdgrad.LowRank(rank=2), lambda d, k: d / k),
    "orthogonal": (fwdgrad.Orthogonal(), lambda d, k: d / k - 1),
    "blocks": (fwdgrad.BlockSparse(), lambda d, k: d / k - 1),
}


@pytest.mark.parametrize(
    ("name", "num_tangents"),
    thorough_but(
        [*zip(DISTRIBUTIONS, [1, 2, 1, 2, 1, 2, 2], strict=True)],
        itertools.product(DISTRIBUTIONS, [1, 2]),
    ),
)
def test_the_noise_is_what_its_law_says(name, num_tangents):
    """And the shrunken mean is nearer to the gradient than with any other factor.

    The mean of n squared errors is within 5 of its standard deviations but with probability 6e-7,
    in the normal approximation.
    """
    distribution, law = DISTRIBUTIONS[name]
    params, direction = jnp.zeros((4, 6)), normal(0, (4, 6))
    n, d = 20_000, params.size

    def loss(w):
        return jnp.sum(w @ jnp.eye(6) * direction)  # a matrix: factors are drawn for it

    @jax.jit
    @jax.vmap
    def estimates(key):
        """The plain one and the shrunken."""
        return [
            fwdgrad.forward_value_and_grad(
                loss, tangents=distribution, num_tangents=num_tangents, shrink=shrink
            )(key, params)[1]
            for shrink in (False, True)
        ]

    assert float(distribution.relative_error(d, num_tangents)) == pytest.approx(
        law(d, num_tangents)
    )
    plain, shrunken = map(np.asarray, estimates(jax.random.split(jax.random.key(0), n)))
    target = np.asarray(direction)
    errors = np.sum((plain - target) ** 2, (1, 2)) / np.sum(target**2)
    assert errors.mean() == pytest.approx(
        law(d, num_tangents), abs=float(5 * errors.std() / n**0.5 + 1e-3)
    )
    factor = 1 / (1 + law(d, num_tangents))
    np.testing.assert_allclose(shrunken, factor * plain, rtol=1e-4, atol=1e-6)


def test_at_activities_the_law_is_of_an_example_and_of_units_that_are_on(key):
    def loss(w, x):
        return jnp.mean(jnp.maximum(x @ w, 0).sum(1))

    w, x = jnp.array([[1.0, 1.0, -1.0]]), jnp.ones((2, 1))  # two of three are on
    options = {"tangents": fwdgrad.Rademacher(), "space": fwdgrad.Activities()}
    plain, shrunken = (
        jax.jit(fwdgrad.forward_value_and_grad(loss, shrink=shrink, **options))(key, w, x)[1]
        for shrink in (False, True)
    )
    np.testing.assert_allclose(shrunken, plain / 2, rtol=1e-6)


def test_units_that_are_all_off_get_nothing(key):
    def loss(w, x):
        return jnp.mean(jnp.maximum(x @ w, 0))

    w, x = -jnp.ones((1, 2)), jnp.ones((3, 1))
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), space=fwdgrad.Activities(), shrink=True
    )
    assert (value_and_grad(key, w, x)[1] == 0).all()


def test_errors():
    class Coordinate:
        def sample(self, key, params, splits):
            return params

    def loss(w):
        return w.sum()

    with pytest.raises(TypeError, match="tangents must have relative_error, as"):
        fwdgrad.forward_value_and_grad(loss, tangents=Coordinate(), shrink=True)
    with pytest.raises(ValueError, match="shrink=True is for the mean"):
        fwdgrad.forward_value_and_grad(loss, aggregation=fwdgrad.Projection(), shrink=True)
    normals = fwdgrad.LowRank(factors="normal")
    with pytest.raises(ValueError, match="Use factors='rademacher'"):
        fwdgrad.forward_value_and_grad(loss, tangents=normals, shrink=True)(
            jax.random.key(0), jnp.ones((2, 2))
        )
