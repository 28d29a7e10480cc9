"""Factorisations under `vmap`: the numbers of single matrices, and no batched call of LAPACK."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.util.batched_linalg import least_squares, orthonormal
from tests.oracle import normal


def batches_of_lapack(fun, *args):
    """Return the numbers of batch dimensions of the LAPACK calls in a program for the CPU."""
    text = jax.jit(fun).trace(*args).lower(lowering_platforms=("cpu",)).as_text()
    assert "@lapack" in text
    return set(re.findall(r'@lapack.*?num_batch_dims = "(\d+)"', text))


@pytest.mark.parametrize("mapped", [1, 2])
def test_vmap_of_qr_and_least_squares_solves_each_matrix(mapped):
    columns, b = normal(0, (2, 3, 5, 4)), normal(1, (2, 3, 4))
    square = jnp.einsum("...ij,...ik->...jk", columns, columns)
    q, x = orthonormal, least_squares
    for _ in range(mapped):
        q, x = jax.vmap(q), jax.vmap(x)
    columns, square, b = (a if mapped == 2 else a[0] for a in (columns, square, b))
    basis = q(columns)
    identity = np.broadcast_to(np.eye(4), (*basis.shape[:-2], 4, 4))
    np.testing.assert_allclose(jnp.swapaxes(basis, -1, -2) @ basis, identity, atol=1e-6)
    np.testing.assert_allclose(
        basis @ (jnp.swapaxes(basis, -1, -2) @ columns), columns, atol=1e-5
    )  # the same span
    np.testing.assert_allclose(jnp.einsum("...ij,...j->...i", square, x(square, b)), b, atol=1e-3)


def test_a_singular_system_has_the_shortest_solution():
    matrix = jnp.array([[1.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(least_squares(matrix, jnp.ones(2)), [0.5, 0.5], atol=1e-6)
    np.testing.assert_array_equal(least_squares(jnp.zeros((2, 2)), jnp.zeros(2)), jnp.zeros(2))


@pytest.mark.parametrize(
    "options",
    [{"tangents": fwdgrad.Orthogonal()}, {"aggregation": fwdgrad.Projection()}],
    ids=["orthogonal", "projection"],
)
def test_activity_perturbation_calls_lapack_without_batches(options, key):
    """Batched factorisations of two layers would wait for each other for ever."""

    def loss(params, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ params[0]) @ params[1]))

    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, num_tangents=2, space=fwdgrad.Activities(layerwise=True), **options
    )
    params, x = [normal(0, (3, 4)), normal(1, (4, 2))], normal(2, (8, 3))
    assert batches_of_lapack(value_and_grad, key, params, x) == {"0"}


def test_the_oracle_finds_a_batched_call(key):
    assert batches_of_lapack(jax.vmap(jnp.linalg.qr), normal(0, (8, 4, 2))) == {"1"}
