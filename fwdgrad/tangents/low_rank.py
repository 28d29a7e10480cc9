"""Tangents of low rank: drawn, kept and pushed forward as factors."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fwdgrad.tangents.factored import Factored, Split
from fwdgrad.tangents.independent import Splits, normals, random_bits, signs
from fwdgrad.util.backend import choices
from fwdgrad.util.sharding import has_explicit_axes
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype
from fwdgrad.util.validation import check_positive_integer

# Entries. The same on every backend, since it decides what a key draws. An embedding of 5 million
# took 45 ms a step and an array of its size when it was drawn together with the factors; by itself
# XLA fuses its signs into what reads them: 15 ms.
_LARGE = 2**14


@dataclass(frozen=True)
class LowRank:
    """Low-rank matrices, V = r^(−½) Σ_ρ a_ρ c_ρᵀ with independent factors, for every weight matrix.

    The entries of all a_ρ (m) and c_ρ (n) are independent signs, or standard normal, so
    E[V_ij V_kl] = δ_ik δ_jl and the estimate is unbiased. With signs and rank one
    E‖g‖² = d ‖∇f‖², as of dense signs. In general a leaf G (m × n) of ∇f contributes

        ‖G‖² (d + (q − m n)/r + 2 (1 − 1/r)),    q = m n (signs), (m + 2)(n + 2) (normal).

    A step costs much less than with dense tangents: x V = (x a) cᵀ is two thin products, and
    only m + n numbers are drawn and kept. What is not free is the fourth moment of ∇f·v, which
    is larger at rank one (the squared derivative varies more from step to step), and falls to
    that of a dense tangent as the rank grows: with signs
    E[(∇f·v)⁴] = (3 + (κ − 3)/r) E[(∇f·v)²]² for one matrix, κ ≤ 9. If a run diverges, clip its
    estimates: `optimizer=sgd_clipped` on the command line of `experiments.train`,
    `fwdgrad.work.clip_by_running_quantile` in any loop with optax.

    The estimate is the sum of K·r products (K: `num_tangents`). Up to 8 of them are added on the
    fly where the estimate is read; more are one matrix product, an array of the weight's size.

    Which leaves are matrices, and along which axes, is read off the loss (`fwdgrad.explain`
    shows it): operands of matrix products, batches of them, kernels of convolutions, and tables
    whose rows are looked up. Any other leaf (biases, scales) and one whose factors would be no
    smaller gets a dense tangent of the same entries.

    In half precision r^(−½) is rounded: at rank 3 E[v²] is 1.003 in bfloat16, and exactly one at
    ranks 1, 4, 16 and in float32 to its rounding.

    Args:
      rank: r, the number of products.
      factors: "rademacher" or "normal", the distribution of all entries.

    Raises:
      TypeError, ValueError: rank is not an integer of at least 1; factors is none of the two.

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
        """Without `splits`, matrices are split into rows and columns."""
        leaves, structure = jax.tree.flatten(params)
        if splits is None:
            splits = [Split((0,), (1,)) if x.ndim == 2 else None for x in leaves]
        shapes = [self._shapes(x, split) for x, split in zip(leaves, splits, strict=True)]
        both = list(zip(leaves, shapes, strict=True))
        num_large = sum(not each for each in shapes)
        # Splitting a key for nothing took a tenth of a step of logistic regression.
        joint, *own = jax.random.split(key, 1 + num_large) if num_large else [key]
        entries = iter(self._draw(joint, [(s, x.dtype) for x, each in both for s in each]))
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
                    draw = signs if self.factors == "rademacher" else normals
                    tangents.append(draw(next(own_keys), x).astype(x.dtype))
        return jax.tree.unflatten(structure, tangents)

    def relative_error(self, num_parameters: Any, num_tangents: int) -> Any:
        """E‖g − ∇f‖² / ‖∇f‖² = (d − 1)/K of rank-one signs, and 2 (1 − 1/r)/K more of rank r.

        Raises:
          ValueError: of normal factors, whose noise depends on the gradient.
        """
        if self.factors != "rademacher":
            raise ValueError(
                "the noise of LowRank(factors='normal') is not known from the number of parameters "
                "alone, which shrink=True asks for; use factors='rademacher'."
            )
        return (num_parameters - 1 + 2 * (1 - 1 / self.rank)) / num_tangents

    def _shapes(self, leaf: Array, split: Split | None) -> list[tuple[int, ...]]:
        """The shapes of what is drawn for a leaf together with others: two factors, or the leaf.

        Or nothing, if its tangent is dense and large, so that it had better be drawn by itself.
        """
        if split is not None:
            rows, columns = split.sizes(leaf.shape)
            if self.rank * (rows + columns) < rows * columns:
                return [
                    (self.rank, *(1 if i in others else n for i, n in enumerate(leaf.shape)))
                    for others in (split.columns, split.rows)
                ]
        return [leaf.shape] if leaf.size <= _LARGE else []

    def _draw(self, key: Array, wanted: list[tuple[tuple[int, ...], Any]]) -> list[Array]:
        """Arrays of the wanted shapes and dtypes, cut from one draw.

        There are few numbers, so what a call of the generator costs is the call.
        """
        sizes = [math.prod(shape) for shape, _ in wanted]
        if self.factors == "rademacher":
            flat = random_bits(key, sum(sizes))
        else:
            widest = accumulation_dtype(*(dtype for _, dtype in wanted))
            flat = jax.random.normal(key, (sum(sizes),), widest)
        ends = list(itertools.accumulate(sizes, initial=0))
        parts = [flat[i:j] for i, j in itertools.pairwise(ends)]
        return [
            self._entries(p, dtype).reshape(shape)
            for p, (shape, dtype) in zip(parts, wanted, strict=True)
        ]

    def _entries(self, drawn: Array, dtype: Any) -> Array:
        """Signs from bits; normals as they are."""
        if self.factors != "rademacher":
            return drawn.astype(dtype)
        # Meshes of explicit axes ask how to shard what is looked up.
        if choices().signs_by_lookup and not has_explicit_axes():
            return jnp.array([1, -1], dtype)[drawn]
        return jnp.where(drawn == 0, 1, -1).astype(dtype)
