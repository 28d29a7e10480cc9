"""The distribution of low-rank tangents, which are sampled and pushed forward as factors."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fwdgrad.tangents.factored import Factored, Split
from fwdgrad.tangents.independent import Splits, sample_bits, sample_normals, sample_signs
from fwdgrad.util.backend import choices
from fwdgrad.util.sharding import has_explicit_axes
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype
from fwdgrad.util.validation import check_positive_integer

# Dense tangents of more entries are sampled with a key of their own, the same on every backend
# because the tangents of a key depend on it. An embedding of 5 million entries took 45 ms a step
# and an array of its size when it was cut from one sample with the factors; with a key of its own,
# XLA fuses its signs into the operation that reads them: 15 ms.
_MAX_JOINT_ENTRIES = 2**14


@dataclass(frozen=True)
class LowRank:
    """Low-rank tangents V = r^(−½) Σ_ρ a_ρ c_ρᵀ for every weight matrix, with independent factors.

    The entries of all a_ρ (m) and c_ρ (n) are independent signs, or standard normal, so
    E[V_ij V_kl] = δ_ik δ_jl and the estimate is unbiased. With signs and rank one
    E‖g‖² = d ‖∇f‖², as with dense signs. In general a leaf G (m × n) of ∇f contributes

        ‖G‖² (d + (q − m n)/r + 2 (1 − 1/r)),    q = m n (signs), (m + 2)(n + 2) (normal).

    A step costs much less than with dense tangents: x V = (x a) cᵀ is two thin products, and
    only m + n numbers are sampled and kept. The price is a larger fourth moment of the directional
    derivative ∇f·v at rank one, so the squared derivative varies more from step to step. The
    fourth moment falls to that of a dense tangent as the rank grows: with signs
    E[(∇f·v)⁴] = (3 + (κ − 3)/r) E[(∇f·v)²]² for one matrix, κ ≤ 9. If a run diverges, clip its
    estimates: `optimizer=sgd_clipped` on the command line of `experiments.train`,
    `fwdgrad.training.clip_by_running_quantile` in any loop with optax.

    The estimate is the sum of K·r products (K: `num_tangents`). Up to 8 products are added on the
    fly in the operation that reads the estimate; more are one matrix product, an array of the
    weight's size.

    The loss shows which leaves are matrices, and along which axes (`fwdgrad.explain` prints it):
    operands of matrix products and of batches of them, kernels of convolutions, and embedding
    tables whose rows are looked up. Any other leaf (biases, scales), and a leaf whose factors would
    be no smaller, gets a dense tangent with entries of the same distribution.

    In half precision r^(−½) is rounded: E[v²] is 1.003 in bfloat16 at rank 3, and exactly one at
    ranks 1, 4 and 16. In float32 E[v²] is one but for rounding.

    Args:
      rank: r, the number of products.
      factors: "rademacher" or "normal", the distribution of all entries.

    Raises:
      TypeError, ValueError: `rank` is not an integer of at least 1, or `factors` is neither name.

    >>> params = {"w": jnp.zeros((30, 20)), "b": jnp.zeros(20)}
    >>> tangent = LowRank().sample(jax.random.key(0), params)
    >>> tangent["w"], tangent["b"].shape
    (Factored(float32[30, 20], rank 1), (20,))
    """

    rank: int = 1
    factors: Literal["rademacher", "normal"] = "rademacher"

    def __post_init__(self) -> None:
        check_positive_integer("rank", self.rank)
        if self.factors not in ("rademacher", "normal"):
            raise ValueError(f'factors must be "rademacher" or "normal"; found {self.factors!r}.')

    def sample(self, key: Array, params: PyTree, splits: Splits = None) -> PyTree:
        """Sample one tangent; without `splits`, a matrix is split into its rows and columns."""
        leaves, structure = jax.tree.flatten(params)
        if splits is None:
            splits = [Split((0,), (1,)) if x.ndim == 2 else None for x in leaves]
        shapes = [self._shapes(x, split) for x, split in zip(leaves, splits, strict=True)]
        both = list(zip(leaves, shapes, strict=True))
        num_large = sum(not each for each in shapes)
        # An unneeded split of the key took a tenth of a step of logistic regression.
        joint_key, *own = jax.random.split(key, 1 + num_large) if num_large else [key]
        wanted = [(shape, x.dtype) for x, each in both for shape in each]
        entries = iter(self._sample_jointly(joint_key, wanted))
        own_keys = iter(own)
        tangents: list[Any] = []
        for x, each in both:
            match [next(entries) for _ in each]:
                case [left, right]:
                    scale = jnp.asarray(self.rank**-0.5, x.dtype)
                    left = left * scale if self.rank > 1 else left
                    tangents.append(Factored(left, right, x.shape))
                case [dense]:
                    tangents.append(dense)
                case _:
                    is_signs = self.factors == "rademacher"
                    sample = sample_signs if is_signs else sample_normals
                    tangents.append(sample(next(own_keys), x).astype(x.dtype))
        return jax.tree.unflatten(structure, tangents)

    def relative_error(self, num_parameters: Any, num_tangents: int) -> Any:
        """Return E‖g − ∇f‖² / ‖∇f‖² = (d − 1 + 2 (1 − 1/r))/K, with signs as factors.

        Raises:
          ValueError: with normal factors the error depends on the gradient.
        """
        if self.factors != "rademacher":
            raise ValueError(
                "shrink=True needs the relative error of the estimate, and with "
                "LowRank(factors='normal') it depends on the gradient. Use factors='rademacher'."
            )
        return (num_parameters - 1 + 2 * (1 - 1 / self.rank)) / num_tangents

    def _shapes(self, leaf: Array, split: Split | None) -> list[tuple[int, ...]]:
        """Return the shapes of the arrays for a leaf in the joint sample.

        Two factors, or one dense tangent, or none if the dense tangent is so large that it is
        sampled with a key of its own.
        """
        if split is not None:
            rows, columns = split.sizes(leaf.shape)
            if self.rank * (rows + columns) < rows * columns:
                return [
                    (self.rank, *(1 if i in others else n for i, n in enumerate(leaf.shape)))
                    for others in (split.columns, split.rows)
                ]
        return [leaf.shape] if leaf.size <= _MAX_JOINT_ENTRIES else []

    def _sample_jointly(self, key: Array, wanted: list[tuple[tuple[int, ...], Any]]) -> list[Array]:
        """Sample arrays of the wanted shapes and dtypes with one call of the generator.

        All of them together have few entries, so each further call would cost as much as the first.
        """
        sizes = [math.prod(shape) for shape, _ in wanted]
        if self.factors == "rademacher":
            flat = sample_bits(key, sum(sizes))
        else:
            widest = accumulation_dtype(*(dtype for _, dtype in wanted))
            flat = jax.random.normal(key, (sum(sizes),), widest)
        ends = list(itertools.accumulate(sizes, initial=0))
        parts = [flat[i:j] for i, j in itertools.pairwise(ends)]
        # On meshes with explicit axes a lookup needs the sharding of its result as an argument.
        by_lookup = choices().signs_by_lookup and not has_explicit_axes()
        return [
            self._entries(p, dtype, by_lookup).reshape(shape)
            for p, (shape, dtype) in zip(parts, wanted, strict=True)
        ]

    def _entries(self, sampled: Array, dtype: Any, by_lookup: bool) -> Array:
        """Return the entries of factors in `dtype`: signs from bits, or the normal numbers."""
        if self.factors != "rademacher":
            return sampled.astype(dtype)
        if by_lookup:
            return jnp.array([1, -1], dtype)[sampled]
        return jnp.where(sampled == 0, 1, -1).astype(dtype)
