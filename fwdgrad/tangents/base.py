"""The base class of tangents that are kept in a structured form."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fwdgrad.util.axes import merge_axes
from fwdgrad.util.trees import Array

_HIGHEST = jax.lax.Precision.HIGHEST


class StructuredTangent(ABC):
    """K tangents of an array, in a form that is cheaper than the array (K, *shape) of them.

    A form is a subclass that is a pytree, with `dense`, `with_origin` and the attributes below. Its
    other methods may stay as they are here, where all of them go by `dense`. Rules keep a form in
    propagation (`fwdgrad.propagation.rules.registry`); an equation without a rule for it has it
    materialised.

    Attributes:
      shape, dtype: of the array whose tangents these are.
      origin: names of the parameters that the tangents come from, for `explain`.
      parts: the plural of what the form is made of, for messages.
    """

    shape: Any
    dtype: Any
    origin: tuple[str, ...]
    parts: ClassVar[str]

    @property
    @abstractmethod
    def num_tangents(self) -> int:
        """K."""

    @abstractmethod
    def dense(self) -> Array:
        """Return the tangents as an array (K, *shape)."""

    @abstractmethod
    def with_origin(self, origin: tuple[str, ...]) -> "StructuredTangent":
        """Return the same tangents with another `origin`."""

    @property
    def num_entries(self) -> int:
        """How many numbers the form is made of."""
        return sum(x.size for x in jax.tree.leaves(self))

    @property
    def sampled_shape(self) -> tuple[int, ...]:
        """The shape for which the result of a distribution's `sample_together` stands.

        A form that comes from `sample`, one tangent, returns `shape` here, as `Factored` does.
        """
        return (self.num_tangents, *self.shape)

    def shape_error(self) -> str:
        """Return why the parts of a distribution's sample do not fit each other, '' if they do."""
        return ""

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)} by {self.parts}"

    def add(self, other: "StructuredTangent") -> "StructuredTangent | None":
        """Return the sum with tangents of the same form, or None if it is dense."""
        return None

    def weighted_sum(self, weights: Array, dtype: Any) -> Array:
        """Return Σ_k weights[k] v_k as an array of `shape`; weights have `dtype`."""
        return jnp.tensordot(weights, self.dense().astype(dtype), 1, precision=_HIGHEST)

    def inner(self, cotangent: Array) -> Array:
        """Return the products ⟨c, v_k⟩, (K,)."""
        return jnp.tensordot(self.dense(), cotangent, cotangent.ndim, precision=_HIGHEST)

    def gram(self, dtype: Any) -> Array:
        """Return the inner products ⟨v_k, v_l⟩, (K, K)."""
        flat = merge_axes(self.dense(), 1, 1 + len(self.shape)).astype(dtype)
        return jnp.matmul(flat, flat.T, precision=_HIGHEST)

    def take(self, k: Array) -> Array:
        """Return v_k as an array of `shape`, for an index that may be traced."""
        return jnp.take(self.dense(), k, 0, mode="clip")

    def masked(self, mask: Array) -> "Array | StructuredTangent":
        """Return the tangents times a mask of `shape` and `dtype`."""
        return self.dense() * mask[None]

    def append_to(self, earlier: Array) -> "Array | StructuredTangent":
        """Return dense tangents (R, *shape) and these after them."""
        return jnp.concatenate([earlier, self.dense()])

    def scan_inputs(self) -> list[Array | None] | None:
        """Return the parts that depend on the first axis of `shape`, with that axis in front.

        None if the form has no slices of its own along the axis.
        """
        return None

    def from_scan_slice(self, scanned: Sequence[Array | None]) -> "StructuredTangent":
        """Return the tangents of one slice along the first axis, from `scanned` at it.

        It is called where `scanned` is not None, so a form that has the one has the other.
        """
        raise TypeError(f"{type(self).__name__} has `scanned` and no `from_scan_slice`")

    def reason_not_kept(self, primitive: str, others: "Sequence[StructuredTangent]") -> str:
        """Return why a rule for a primitive did not keep this form beside others of it, or ''."""
        return ""
