"""Factorisations of small matrices that are safe to map over examples.

XLA's CPU backend hands a *batch* of factorisations to its thread pool and waits for it, from a
thread of the same pool. Two that do not depend on each other, such as those of the noise of two
layers, so wait for each other for ever once each has one of its two threads (jaxlib 0.10.2,
`jax::ParallelBatchMap`). One matrix at a time needs no pool.
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
    """`fun`, which under `vmap` on the CPU is a loop over the matrices."""
    in_a_loop = custom_vmap(fun)

    @in_a_loop.def_vmap
    def over_matrices(number: int, are_mapped: list[bool], *args: Array) -> tuple[Array, bool]:
        mapped = [x for x, is_mapped in zip(args, are_mapped, strict=True) if is_mapped]
        spec = jax.typeof(mapped[0]).sharding.spec
        if has_explicit_axes():  # a loop does not go over what is sharded
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
    """An orthonormal basis of the span of the columns, (d, K), by QR.

    >>> bool(jnp.allclose(abs(orthonormal(jnp.array([[3.0], [4.0]])).T), jnp.array([0.6, 0.8])))
    True
    """
    return jnp.linalg.qr(columns)[0]


@_singly_on_cpu
def least_squares(matrix: Array, b: Array) -> Array:
    """The shortest solution x (K,) of matrix x = b, of a symmetric matrix that may be singular.

    What is cut off is no more than rounding.

    >>> least_squares(jnp.diag(jnp.array([2.0, 0.0])), jnp.array([1.0, 0.0])).tolist()
    [0.5, 0.0]
    """
    rounding = len(matrix) * jnp.finfo(matrix.dtype).eps
    return jnp.asarray(jnp.linalg.pinv(matrix, rtol=rounding, hermitian=True) @ b)
