"""Factorisations of small matrices that are safe under `vmap`, as over the examples of a minibatch.

XLA's CPU backend hands a *batch* of factorisations to its thread pool and waits for the result in a
thread of the same pool. Two independent batches, such as the noise of two layers, then wait for
each other for ever once each holds one of two threads (jaxlib 0.10.2, `jax::ParallelBatchMap`).
A single matrix needs no pool, so on the CPU a batch is a loop over its matrices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec

from fwdgrad.util.programs import map_over
from fwdgrad.util.sharding import has_explicit_axes
from fwdgrad.util.trees import Array


def _singly_on_cpu(fun: Callable[..., Array]) -> Callable[..., Array]:
    """Return `fun` with a rule for `vmap`: on the CPU, a loop over the matrices."""
    in_a_loop = custom_vmap(fun)

    @in_a_loop.def_vmap
    def over_matrices(size: int, are_mapped: list[bool], *args: Array) -> tuple[Array, bool]:
        mapped = [x for x, is_mapped in zip(args, are_mapped, strict=True) if is_mapped]
        spec = jax.typeof(mapped[0]).sharding.spec
        if has_explicit_axes():  # a loop cannot run over a sharded axis
            mapped = [jax.sharding.reshard(x, PartitionSpec()) for x in mapped]

        def of_one(own: list[Array]) -> Array:
            rest = iter(own)
            both = zip(args, are_mapped, strict=True)
            return in_a_loop(*(next(rest) if is_mapped else x for x, is_mapped in both))

        outputs = map_over(of_one, mapped)
        if has_explicit_axes():
            outputs = jax.sharding.reshard(outputs, PartitionSpec(spec[0]))
        return outputs, True

    def call(*args: Array) -> Array:
        return lax.platform_dependent(*args, cpu=in_a_loop, default=fun)

    return call


@_singly_on_cpu
def orthonormal(columns: Array) -> Array:
    """Return an orthonormal basis of the span of the columns of a matrix (d, K), K ≤ d, by QR.

    >>> bool(jnp.allclose(abs(orthonormal(jnp.array([[3.0], [4.0]])).T), jnp.array([0.6, 0.8])))
    True
    """
    return jnp.linalg.qr(columns)[0]


@_singly_on_cpu
def least_squares(matrix: Array, b: Array) -> Array:
    """Solve A x = b for a symmetric matrix A (K, K) that may be singular: the shortest x (K,).

    Eigenvalues below K ε of the largest one are zero but for rounding, and are left out.

    >>> least_squares(jnp.diag(jnp.array([2.0, 0.0])), jnp.array([1.0, 0.0])).tolist()
    [0.5, 0.0]
    """
    rounding = len(matrix) * jnp.finfo(matrix.dtype).eps
    return jnp.asarray(jnp.linalg.pinv(matrix, rtol=rounding, hermitian=True) @ b)
