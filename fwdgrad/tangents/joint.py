"""Distributions of jointly sampled tangents: orthogonal and block-sparse.

The mean over K independent tangents has E‖g‖² ≥ (1 + (d − 1)/K) ‖∇f‖². Orthogonal tangents measure
no direction twice: their mean has E‖g‖² = (d/K) ‖∇f‖², and at K = d no variance at all.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.forms import dense, is_structured
from fwdgrad.tangents.independent import Splits, sample_signs
from fwdgrad.util.batched_linalg import orthonormal
from fwdgrad.util.shapes import surely_at_most, surely_less
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype


class _JointDistribution(ABC):
    """The base class of distributions that sample K tangents jointly."""

    def sample(self, key: Array, params: PyTree, splits: Splits = None) -> PyTree:
        """Sample one dense tangent, the case K = 1."""
        sampled = self.sample_together(key, params, splits, 1)
        return jax.tree.map(lambda v: dense(v)[0], sampled, is_leaf=is_structured)

    @abstractmethod
    def sample_together(
        self, key: Array, params: PyTree, splits: Splits, num_tangents: int
    ) -> PyTree:
        """Sample K tangents: a pytree like `params`, with leaves (K, *shape) or `Blocks`."""

    def relative_error(self, num_parameters: Any, num_tangents: int) -> Any:
        """Return E‖g − ∇f‖² / ‖∇f‖² = d/K − 1, for blocks of equal size.

        With activity perturbation the mask of inactive units removes entries, so the tangents are
        no longer orthogonal, or the blocks no longer equal, and the error is larger.
        """
        return jnp.maximum(num_parameters / num_tangents - 1, 0)


@dataclass(frozen=True)
class Orthogonal(_JointDistribution):
    """K exactly orthogonal tangents of length √d over the whole pytree: v_k = √d q_k.

    The q_k are an orthonormal basis of the span of K random directions (QR of a normal matrix). So
    the mean over K is d/K times the projection of ∇f onto that span, E‖g‖² = (d/K) ‖∇f‖², and the
    gradient itself at K = d. One tangent alone is distributed as `Sphere`. Sampling takes K arrays
    of the size of the parameters and d K² operations, so this is for small models and for activity
    perturbation. All K tangents are sampled jointly, so they cannot be evaluated in chunks.

    Raises:
      ValueError: K is larger than the number of entries that are perturbed together: of all
        parameters, or with `Activities` of one example's noise, or of a parameter with its own.

    >>> v = Orthogonal().sample_together(jax.random.key(0), jnp.zeros(3), None, 3)
    >>> bool(jnp.allclose(v @ v.T, 3 * jnp.eye(3), atol=1e-5))
    True

    Source: Choromanski et al., Structured evolution with compact architectures for scalable policy
    optimization (2018).
    """

    def sample_together(
        self, key: Array, params: PyTree, splits: Splits, num_tangents: int
    ) -> PyTree:
        leaves, structure = jax.tree.flatten(params)
        sizes = [x.size for x in leaves]
        d = sum(sizes)
        if num_tangents > d:
            raise ValueError(
                f"num_tangents must be at most {d} for orthogonal tangents, the number of entries "
                "(of the parameters, or of a layer's outputs with space=Activities()); found "
                f"{num_tangents}."
            )
        ends = list(itertools.accumulate(sizes, initial=0))
        key, sign_key = jax.random.split(key)
        widest = accumulation_dtype(*(x.dtype for x in leaves))
        directions = jax.random.normal(key, (d, num_tangents), widest)
        basis = orthonormal(directions)
        # QR fixes the sign of each column, so without random signs its mean would not be zero.
        basis = sample_signs(sign_key, jnp.zeros(num_tangents, basis.dtype))[None] * basis
        rows = d**0.5 * basis.T
        tangents = [
            rows[:, i:j].reshape(num_tangents, *x.shape).astype(x.dtype)
            for x, (i, j) in zip(leaves, itertools.pairwise(ends), strict=True)
        ]
        return jax.tree.unflatten(structure, tangents)


@dataclass(frozen=True)
class BlockSparse(_JointDistribution):
    """K block-sparse tangents with disjoint supports: v_k = √K ξ on the k-th block, ξ signs.

    Each leaf is cut into blocks along an axis with K or more entries. Of a matrix of the loss it is
    the axis of the layer's outputs; otherwise the one that K cuts most evenly, and the longest of
    those. A leaf whose axes are all shorter than K is cut across them, into dense tangents. Every
    entry is in one block, so E[(1/K) Σ_k v_k v_kᵀ] = I and the mean over K is unbiased. E‖g‖² is
    the sum over blocks of d_k ‖∇f‖² on the block, so (d/K) ‖∇f‖² for equal blocks. The variance is
    that of K orthogonal tangents, at a fraction of the cost: all K tangents are one array
    (`fwdgrad.Blocks`), and the matrix product costs as much as with one dense tangent. All K
    tangents are sampled jointly, so they cannot be evaluated in chunks.

    A scalar leaf cannot be cut: it gets an independent sign for each tangent, with the error of
    independent tangents. √K is rounded in half precision.

    >>> v = BlockSparse().sample_together(jax.random.key(0), jnp.zeros((4, 6)), None, 3)
    >>> v, bool(jnp.allclose(abs(v.value), 3**0.5))
    (Blocks(float32[4, 6], 3 along axis 1), True)
    """

    def sample_together(
        self, key: Array, params: PyTree, splits: Splits, num_tangents: int
    ) -> PyTree:
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        tangents: list[Array | Blocks] = []
        for i, (k, x) in enumerate(zip(keys, leaves, strict=True)):
            if x.ndim == 0:
                tangents.append(sample_signs(k, jnp.zeros(num_tangents, x.dtype)))
                continue
            split = None if splits is None else splits[i]
            axis = _axis_to_cut(x.shape, () if split is None else split.columns, num_tangents)
            value = sample_signs(k, x) * jnp.asarray(num_tangents**0.5, x.dtype)
            is_vector = sum(n != 1 for n in x.shape) < 2
            if not is_vector and all(surely_less(n, num_tangents) for n in x.shape):
                flat = Blocks(value.ravel(), 0, num_tangents).dense()
                tangents.append(flat.reshape(num_tangents, *x.shape))
            else:
                tangents.append(Blocks(value, axis, num_tangents))
        return jax.tree.unflatten(structure, tangents)


def _axis_to_cut(shape: Sequence[int], columns: Sequence[int], number: int) -> int:
    """Return the axis to cut: of those with `number` entries or more, if any, a column, if any.

    >>> _axis_to_cut((16, 28, 28), (), 16), _axis_to_cut((16, 28, 28), (), 20)  # 28 are 2 each
    (0, 1)
    >>> _axis_to_cut((784, 10), (1,), 4), _axis_to_cut((784, 10), (1,), 16)
    (1, 0)
    """
    long = [i for i, n in enumerate(shape) if surely_at_most(number, n)]
    axes = [i for i in columns if i in long] or long or range(len(shape))

    def rank(axis: int) -> tuple[float, int]:
        size = shape[axis]
        return (-(-size // number) * number / size if size else 1.0), -size

    if all(isinstance(shape[i], int) for i in axes):
        return min(axes, key=rank)
    return max(axes, key=lambda axis: shape[axis])  # a symbolic size has no remainder
