"""Distributions whose K tangents are drawn together, to be as different from each other as can be.

The mean of K independent tangents' estimates has E‖g‖² ≥ (1 + (d − 1)/K) ‖∇f‖²; tangents that are
orthogonal do not tell twice of one direction, and their mean has d/K ‖∇f‖², at K = d ‖∇f‖² itself.
"""

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.forms import dense, is_structured
from fwdgrad.tangents.independent import Splits, signs
from fwdgrad.util.batched_linalg import orthonormal
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype


class _Together(ABC):
    """One tangent of a distribution that draws K of them."""

    def sample(self, key: Array, params: PyTree, splits: Splits = None) -> PyTree:
        """One tangent: the case K = 1, written out."""
        together = self.sample_together(key, params, splits, 1)

        return jax.tree.map(lambda v: dense(v)[0], together, is_leaf=is_structured)

    @abstractmethod
    def sample_together(
        self, key: Array, params: PyTree, splits: Splits, num_tangents: int
    ) -> PyTree:
        """K tangents: a pytree like `params`, its leaves (K, ...) or `Blocks`."""

    def relative_error(self, num_parameters: Any, num_tangents: int) -> Any:
        """E‖g − ∇f‖² / ‖∇f‖² = d/K − 1; of blocks, if they are equal.

        At activities the units that are off are not among the d, and what is left of the tangents
        is not orthogonal, or of equal blocks, any more: there the error is larger.
        """
        return jnp.maximum(num_parameters / num_tangents - 1, 0)


@dataclass(frozen=True)
class Orthogonal(_Together):
    """K exactly orthogonal tangents of length √d over the whole pytree: v_k = √d q_k.

    The q_k are the columns of an orthonormal basis of K random directions (QR of normal numbers),
    so the mean estimate is d/K times the projection of ∇f onto their span, E‖g‖² = (d/K) ‖∇f‖², and
    at K = d the gradient itself. One tangent is that of `Sphere`. They take K arrays of the size of
    the parameters and d K² operations, so this is for small models and for activities; all K are
    drawn together, so not in chunks.

    Raises:
      ValueError: there are more tangents than parameters (at activities: than entries that get
        noise together, where a parameter that gets noise itself, one for all, is by itself).

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
                f"num_tangents must be at most the number of entries, {d}, for orthogonal tangents "
                f"(of the parameters, or of a layer's outputs with space=Activities()); found "
                f"{num_tangents}."
            )
        ends = list(itertools.accumulate(sizes, initial=0))
        key, sign_key = jax.random.split(key)
        widest = accumulation_dtype(*(x.dtype for x in leaves))
        numbers = jax.random.normal(key, (d, num_tangents), widest)
        basis = orthonormal(numbers)
        # The factorisation fixes the sign of each column, so that its mean would not be zero.
        directions = signs(sign_key, jnp.zeros(num_tangents, basis.dtype))[None] * basis
        rows = d**0.5 * directions.T
        tangents = [
            rows[:, i:j].reshape(num_tangents, *x.shape).astype(x.dtype)
            for x, (i, j) in zip(leaves, itertools.pairwise(ends), strict=True)
        ]
        return jax.tree.unflatten(structure, tangents)


@dataclass(frozen=True)
class BlockSparse(_Together):
    """K tangents of signs with disjoint supports, blocks of units: v_k = √K ξ on the k-th block.

    Each leaf is cut along one axis: where the loss uses it as a matrix, that of the layer's outputs
    if there are K or more of them; else the longest. Every entry is in one block alone, so (1/K)
    Σ_k v_k v_kᵀ has the expectation I: the mean of the K estimates is unbiased, with E‖g‖² = Σ_k
    d_k ‖∇f‖²_k of the blocks, so for equal blocks (d/K) ‖∇f‖². It is as good as K orthogonal
    tangents and much cheaper: all K are one array (`fwdgrad.Blocks`), and the product that follows
    costs what one dense tangent costs. All K are drawn together, so not in chunks.

    Leaves that are numbers cannot be cut: they get a sign for each tangent, and the mean of their K
    estimates has the error of independent ones. √K is rounded in half precision.

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
                tangents.append(signs(k, jnp.zeros(num_tangents, x.dtype)))
                continue
            split = None if splits is None else splits[i]
            columns = () if split is None else split.columns
            axes = [i for i in columns if x.shape[i] >= num_tangents] or range(x.ndim)
            axis = max(axes, key=lambda axis: x.shape[axis])
            value = signs(k, x) * jnp.asarray(num_tangents**0.5, x.dtype)
            tangents.append(Blocks(value, axis, num_tangents))
        return jax.tree.unflatten(structure, tangents)
