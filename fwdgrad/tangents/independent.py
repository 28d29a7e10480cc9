"""Distributions of random tangents.

A forward gradient is (∇f·v) v for a random tangent v. It is unbiased exactly when
E[v vᵀ] = I, since then E[(∇f·v) v] = E[v vᵀ] ∇f = ∇f. So every distribution here has
zero mean, identity covariance over the *whole* pytree, and one key for each leaf (with
one key for two leaves of the same shape, both would get the same tangent, and the
estimate would be biased). They differ in their fourth moments, that is in variance:

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
    """What `forward_value_and_grad(tangents=...)` takes: anything that samples tangents.

    A distribution is one method. It must be traceable by JAX, so no Python randomness:

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
        """Draws one tangent v for `params`, with E[v] = 0 and E[v vᵀ] = I.

        Args:
          key: one typed PRNG key, `jax.random.key(seed)`.
          params: a pytree whose leaves are all arrays of real floating dtypes. It has the structure
            of the user's parameters, with `None` for leaves of any other kind, if that is made of
            dicts, lists and tuples alone. Otherwise it is the list of the arrays, since a class of
            the user's may check its children and refuse `None` or a factored tangent.
          splits: for each leaf in the order of `jax.tree.leaves(params)`, along which axes the
            loss uses it as a matrix (a `Split`), or None if it does not. A distribution without
            factors ignores it.

        Returns:
          A pytree like `params`: the same structure, and each leaf's shape and dtype. A leaf is
          an array, `fwdgrad.Factored`, or another `fwdgrad.StructuredTangent`.

        A distribution may have a second method, `sample_together(key, params, splits, K)`, that
        draws K tangents which depend on each other, with E[(1/K) Σ_k v_k v_kᵀ] = I. Each leaf then
        has an axis K in front, or is `fwdgrad.Blocks`; see `fwdgrad.tangents.joint`.

        And a third, `relative_error(d, K)`, that returns E‖g − ∇f‖² / ‖∇f‖² of the mean of K
        estimates with d parameters; it is what `shrink` of `forward_value_and_grad` asks for.
        """
        ...


def _sample_each_leaf(draw: Callable[[Array, Array], Array], key: Array, params: PyTree) -> PyTree:
    """Applies `draw(key, leaf)` to every leaf, each with a key of its own."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    tangents = [draw(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, tangents)


def normals(key: Array, leaf: Array) -> Array:
    """Independent normal numbers, of the leaf's shape but of its accumulation dtype."""
    # Drawn in float32 even for float16 and bfloat16: JAX's half-precision normals come
    # from a uniform of 8 to 11 bits, whose tail is cut off, so their variance is not one.
    return jax.random.normal(key, leaf.shape, accumulation_dtype(leaf.dtype))


def signs(key: Array, leaf: Array) -> Array:
    """Independent signs, of the leaf's shape and dtype."""
    return (1 - 2 * random_bits(key, leaf.size).astype(leaf.dtype)).reshape(leaf.shape)


def random_bits(key: Array, size: int) -> Array:
    """`size` independent fair bits, as uint32."""
    # One random bit for each sign. With 32 bits for each, as jax.random.rademacher draws them,
    # a training step of the paper's MLP took 14.2 ms on two CPU cores instead of 7.0 (medians
    # of 7 rounds of 50 steps, in turns): the generator was the dearest part of the step.
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    return ((words[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None]) & 1).reshape(-1)[:size]


@dataclass(frozen=True)
class Normal:
    """Independent standard normal entries: v ~ N(0, I), the distribution of the paper.

    E‖g‖² = (d + 2) ‖∇f‖² for one tangent, ((d + 1)/K + 1) ‖∇f‖² for the mean of K.
    Each leaf keeps its shape and dtype; half precisions are drawn in float32 and rounded.

    >>> Normal().sample(jax.random.key(0), {"w": jnp.zeros((2, 3))})["w"].shape
    (2, 3)

    Source: Baydin et al., Gradients without Backpropagation (2022), section 3.
    """

    def sample(self, key: Array, params: PyTree, splits: Splits = None) -> PyTree:
        return _sample_each_leaf(lambda k, x: normals(k, x).astype(x.dtype), key, params)

    def relative_error(self, num_parameters: Any, num_tangents: int) -> Any:
        """E‖g − ∇f‖² / ‖∇f‖² = (d + 1)/K."""
        return (num_parameters + 1) / num_tangents


@dataclass(frozen=True)
class Rademacher:
    """Independent entries ±1 with probability ½ each: least variance of independent entries.

    E‖g‖² = d ‖∇f‖² for one tangent. Among distributions with independent entries of
    variance one, the second moment of g grows with E[vᵢ⁴] ≥ 1, and signs attain it.
    Exact in every dtype, and cheap: one random bit an entry.

    >>> signs = Rademacher().sample(jax.random.key(0), jnp.zeros(100, jnp.bfloat16))
    >>> signs.dtype, bool(jnp.all(jnp.abs(signs) == 1))
    (dtype(bfloat16), True)

    Source: Spall, Multivariate stochastic approximation using a simultaneous perturbation
    gradient approximation (1992), for signs as directions.
    """

    def sample(self, key: Array, params: PyTree, splits: Splits = None) -> PyTree:
        return _sample_each_leaf(signs, key, params)

    def relative_error(self, num_parameters: Any, num_tangents: int) -> Any:
        """E‖g − ∇f‖² / ‖∇f‖² = (d − 1)/K."""
        return (num_parameters - 1) / num_tangents


@dataclass(frozen=True)
class Sphere:
    """Uniform on the sphere of radius √d around 0, over the whole pytree: v = √d z/‖z‖.

    E‖g‖² = d ‖∇f‖² for one tangent, with d the number of entries of all leaves together
    and z standard normal. E[v vᵀ] = I by symmetry and ‖v‖² = d.

    >>> tangent = Sphere().sample(jax.random.key(0), {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
    >>> bool(jnp.isclose(sum(jnp.sum(v**2) for v in jax.tree.leaves(tangent)), 9, rtol=1e-5))
    True

    Source: Nesterov & Spokoiny, Random gradient-free minimization of convex functions (2017).
    """

    def sample(self, key: Array, params: PyTree, splits: Splits = None) -> PyTree:
        directions = _sample_each_leaf(normals, key, params)
        leaves = jax.tree.leaves(directions)
        dtype = accumulation_dtype(*(z.dtype for z in leaves))
        squared_norm: Any = sum(jnp.sum(jnp.square(z.astype(dtype))) for z in leaves)
        scale = jnp.sqrt(sum(z.size for z in leaves) / squared_norm)
        return jax.tree.map(
            lambda z, x: (scale * z.astype(dtype)).astype(x.dtype), directions, params
        )

    def relative_error(self, num_parameters: Any, num_tangents: int) -> Any:
        """E‖g − ∇f‖² / ‖∇f‖² = (d − 1)/K."""
        return (num_parameters - 1) / num_tangents
