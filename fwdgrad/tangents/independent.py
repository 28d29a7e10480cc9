"""Distributions of independent tangents (normal, Rademacher, sphere), and their protocol.

A forward gradient is g = (∇f·v) v for a random tangent v. It is unbiased exactly if
E[v vᵀ] = I, because E[(∇f·v) v] = E[v vᵀ] ∇f = ∇f. So every distribution here has
zero mean, identity covariance over the *whole* pytree, and one key for each leaf (with
one key for two leaves of the same shape, both would get the same tangent, and the
estimate would be biased). The distributions differ in their fourth moments, and so in the
variance of the estimate:

    Normal                 E‖g‖² = (d + 2) ‖∇f‖²
    Rademacher, Sphere     E‖g‖² =  d      ‖∇f‖²      (d: number of parameters)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from fwdgrad.tangents.factored import Split
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype

Splits: TypeAlias = Sequence[Split | None] | None


@runtime_checkable
class TangentDistribution(Protocol):
    """The protocol of a distribution, as `forward_value_and_grad(tangents=...)` takes it.

    A distribution has the method `sample`. JAX must be able to trace it, so no Python randomness.
    Two more methods are optional:

        sample_together(key, params, splits, K)   samples K tangents jointly, with
                E[(1/K) Σ_k v_k v_kᵀ] = I. Each leaf is an array (K, *shape), or a structured form
                of K tangents such as `fwdgrad.Blocks`; see `fwdgrad.tangents.joint`.
        relative_error(d, K)   returns E‖g − ∇f‖² / ‖∇f‖² of the mean of K estimates with d
                parameters, which `forward_value_and_grad(shrink=True)` needs.

    >>> from jax.flatten_util import ravel_pytree
    >>> class Coordinate:  # one standard basis vector times √d: unbiased, very noisy
    ...     def sample(self, key, params, splits):
    ...         flat, unravel = ravel_pytree(params)
    ...         index = jax.random.randint(key, (), -flat.size, flat.size)  # its sign, too
    ...         length = jnp.where(index < 0, -1, 1) * flat.size**0.5
    ...         return unravel(jnp.zeros_like(flat).at[index].set(length))
    >>> isinstance(Coordinate(), TangentDistribution)
    True
    """

    def sample(self, key: Array, params: PyTree, splits: Splits) -> PyTree:
        """Sample one tangent v of `params`, with E[v] = 0 and E[v vᵀ] = I.

        Args:
          key: a single typed PRNG key, `jax.random.key(seed)`.
          params: a pytree whose leaves are all arrays of real floating dtypes. User parameters
            made of dicts, lists and tuples keep their structure, with `None` for any other leaf.
            User parameters of another class come as the list of their arrays, because the class
            may check its children and refuse `None` or a factored tangent.
          splits: for each leaf in the order of `jax.tree.leaves(params)`, the axes by which the
            loss uses the leaf as a matrix (a `Split`), or None. A distribution without factors
            ignores it.

        Returns:
          A pytree with the structure of `params`, and the shape and dtype of each leaf. A leaf is
          an array, `fwdgrad.Factored`, or another `fwdgrad.StructuredTangent`.
        """
        ...


def _sample_each_leaf(
    sample: Callable[[Array, Array], Array], key: Array, params: PyTree
) -> PyTree:
    """Return a pytree of sample(key, leaf), with a key of its own for each leaf."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    tangents = [sample(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, tangents)


def sample_normals(key: Array, leaf: Array) -> Array:
    """Sample standard normal entries, of the leaf's shape but of its accumulation dtype."""
    # In float32 even for float16 and bfloat16: JAX's half-precision normals come from a
    # uniform of 8 to 11 bits, which cuts the tail off, so their variance is not one.
    return jax.random.normal(key, leaf.shape, accumulation_dtype(leaf.dtype))


def sample_signs(key: Array, leaf: Array) -> Array:
    """Sample independent Rademacher signs ±1, of the leaf's shape and dtype."""
    return (1 - 2 * sample_bits(key, leaf.size).astype(leaf.dtype)).reshape(leaf.shape)


def sample_bits(key: Array, size: int) -> Array:
    """Sample independent fair bits, (size,) of uint32."""
    # One random bit for each sign. With 32 bits for each, as in jax.random.rademacher, a
    # training step of the paper's MLP took 14.2 ms on two CPU cores instead of 7.0 (medians
    # of 7 rounds of 50 steps, in turns): the generator was the slowest part of the step.
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    return ((words[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1).reshape(-1)[:size]


@dataclass(frozen=True)
class Normal:
    """Independent standard normal entries: v ~ N(0, I), the distribution of the paper.

    E‖g‖² = (d + 2) ‖∇f‖² for one tangent, ((d + 1)/K + 1) ‖∇f‖² for the mean of K.
    Each leaf keeps its shape and dtype; half precisions are sampled in float32 and rounded.

    >>> Normal().sample(jax.random.key(0), {"w": jnp.zeros((2, 3))})["w"].shape
    (2, 3)

    Source: Baydin et al., Gradients without Backpropagation (2022), section 3.
    """

    def sample(self, key: Array, params: PyTree, splits: Splits = None) -> PyTree:
        return _sample_each_leaf(lambda k, x: sample_normals(k, x).astype(x.dtype), key, params)

    def relative_error(self, num_parameters: Any, num_tangents: int) -> Any:
        """Return E‖g − ∇f‖² / ‖∇f‖² = (d + 1)/K."""
        return (num_parameters + 1) / num_tangents


@dataclass(frozen=True)
class Rademacher:
    """Independent Rademacher signs ±1: the smallest variance among independent entries.

    E‖g‖² = d ‖∇f‖² for one tangent. Among distributions with independent entries of
    variance one, E‖g‖² grows with the fourth moment E[vᵢ⁴] ≥ 1, and signs attain 1.
    Signs are exact in every dtype and take one random bit an entry.

    >>> signs = Rademacher().sample(jax.random.key(0), jnp.zeros(100, jnp.bfloat16))
    >>> signs.dtype, bool(jnp.all(jnp.abs(signs) == 1))
    (dtype(bfloat16), True)

    Source: Spall, Multivariate stochastic approximation using a simultaneous perturbation
    gradient approximation (1992), for signs as directions.
    """

    def sample(self, key: Array, params: PyTree, splits: Splits = None) -> PyTree:
        return _sample_each_leaf(sample_signs, key, params)

    def relative_error(self, num_parameters: Any, num_tangents: int) -> Any:
        """Return E‖g − ∇f‖² / ‖∇f‖² = (d − 1)/K."""
        return (num_parameters - 1) / num_tangents


@dataclass(frozen=True)
class Sphere:
    """Uniform tangents on the sphere of radius √d over the whole pytree: v = √d z/‖z‖.

    d is the number of entries of all leaves together, and z is standard normal. E[v vᵀ] = I by
    symmetry and ‖v‖² = d. E‖g‖² = d ‖∇f‖² for one tangent.

    >>> tangent = Sphere().sample(jax.random.key(0), {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
    >>> bool(jnp.isclose(sum(jnp.sum(v**2) for v in jax.tree.leaves(tangent)), 9, rtol=1e-5))
    True

    Source: Nesterov & Spokoiny, Random gradient-free minimization of convex functions (2017).
    """

    def sample(self, key: Array, params: PyTree, splits: Splits = None) -> PyTree:
        directions = _sample_each_leaf(sample_normals, key, params)
        leaves = jax.tree.leaves(directions)
        dtype = accumulation_dtype(*(z.dtype for z in leaves))
        squared_norm: Any = sum(jnp.sum(jnp.square(z.astype(dtype))) for z in leaves)
        scale = jnp.sqrt(sum(z.size for z in leaves) / squared_norm)
        return jax.tree.map(
            lambda z, x: (scale * z.astype(dtype)).astype(x.dtype), directions, params
        )

    def relative_error(self, num_parameters: Any, num_tangents: int) -> Any:
        """Return E‖g − ∇f‖² / ‖∇f‖² = (d − 1)/K."""
        return (num_parameters - 1) / num_tangents
