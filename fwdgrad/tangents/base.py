"""`StructuredTangent`, the base class of every form of a tangent that is no dense array."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fwdgrad.util.shapes import merge_axes
from fwdgrad.util.trees import Array

_HIGHEST = jax.lax.Precision.HIGHEST


class StructuredTangent(ABC):
    """K tangents v_k of an array, in a form that is smaller than the dense array (K, *shape).

    A new form is a subclass that is registered as a pytree and defines

        shape, dtype    of the array whose tangents these are;
        origin          the names of the parameters that the tangents come from, for `explain`;
        parts           a plural noun for messages, such as "factors" (an attribute of the class);
        num_tangents    K, as a property;
        dense           the dense array (K, *shape);
        with_origin     the same tangents with another `origin`.

    All other methods default to the dense array; a form overrides those that it makes cheaper. Two
    attributes are optional, `rank` and `num_blocks`: `explain` shows them if a form has them.

    A distribution (`fwdgrad.TangentDistribution`) returns the form from `sample_together`; or from
    `sample` with every array of one tangent, to which the library adds the axis of K in front.
    Rules (`fwdgrad.register_rule`) keep the form through a primitive. At a primitive without a rule
    for the form, propagation materialises the tangents.

    >>> import dataclasses, functools
    >>> @functools.partial(
    ...     jax.tree_util.register_dataclass, data_fields=["entries"], meta_fields=["origin"]
    ... )
    ... @dataclasses.dataclass
    ... class Diagonal(StructuredTangent):  # K diagonal matrices, by their diagonals (K, n)
    ...     entries: Array
    ...     origin: tuple[str, ...] = ()
    ...     parts = "diagonals"
    ...     shape = property(lambda self: self.entries.shape[1:] * 2)
    ...     dtype = property(lambda self: self.entries.dtype)
    ...     num_tangents = property(lambda self: self.entries.shape[0])
    ...     def dense(self):
    ...         return jax.vmap(jnp.diag)(self.entries)
    ...     def with_origin(self, origin):
    ...         return dataclasses.replace(self, origin=origin)
    >>> v = Diagonal(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> v.gram(jnp.float32).tolist()
    [[5.0, 11.0], [11.0, 25.0]]
    """

    shape: Any
    dtype: Any
    origin: tuple[str, ...]
    parts: ClassVar[str]

    @property
    @abstractmethod
    def num_tangents(self) -> int:
        """K, the number of tangents."""

    @abstractmethod
    def dense(self) -> Array:
        """Return the tangents as an array (K, *shape)."""

    @abstractmethod
    def with_origin(self, origin: tuple[str, ...]) -> "StructuredTangent":
        """Return the same tangents with another `origin`."""

    @property
    def num_entries(self) -> int:
        """The number of entries of all arrays of the form."""
        return sum(x.size for x in jax.tree.leaves(self))

    def shape_error(self) -> str:
        """Return a description of parts of a sample whose shapes or dtypes disagree, or ''.

        The parts have the axis of K, and may be `jax.ShapeDtypeStruct`.
        """
        return ""

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)} by {self.parts}"

    def add(self, other: "StructuredTangent") -> "StructuredTangent | None":
        """Return the sum with tangents of the same form, or None where the sum is dense."""
        return None

    def weighted_sum(self, weights: Array, dtype: Any) -> Array:
        """Return Σ_k weights[k] v_k, an array of `shape`; weights (K,) have `dtype`."""
        return jnp.tensordot(weights, self.dense().astype(dtype), 1, precision=_HIGHEST)

    def inner(self, cotangent: Array) -> Array:
        """Return the inner products ⟨c, v_k⟩, (K,), with a cotangent of `shape`."""
        return jnp.tensordot(self.dense(), cotangent, cotangent.ndim, precision=_HIGHEST)

    def gram(self, dtype: Any) -> Array:
        """Return the Gram matrix ⟨v_k, v_l⟩, (K, K), in `dtype`."""
        flat = merge_axes(self.dense(), 1, 1 + len(self.shape)).astype(dtype)
        return jnp.matmul(flat, flat.T, precision=_HIGHEST)

    def take(self, k: Array) -> Array:
        """Return v_k as an array of `shape`; the index may be traced."""
        return jnp.take(self.dense(), k, 0, mode="clip")

    def masked(self, mask: Array) -> "Array | StructuredTangent":
        """Return the tangents times a mask of `shape` and `dtype`."""
        return self.dense() * mask[None]

    def append_to(self, earlier: Array) -> "Array | StructuredTangent":
        """Return R + K tangents: R dense ones, (R, *shape), then these."""
        return jnp.concatenate([earlier, self.dense()])

    def scan_inputs(self) -> list[Array | None] | None:
        """Return the parts with their slices along the first axis of `shape` in front.

        `lax.scan` slices them, and `from_scan_slice` builds the tangents of one slice. A part that
        all slices share is None. The default, None for the whole, has `lax.scan` slice the dense
        array.
        """
        return None

    def from_scan_slice(self, parts: Sequence[Array | None]) -> "StructuredTangent":
        """Return the tangents of one slice along the first axis, from the slices of `scan_inputs`.

        A form that overrides `scan_inputs` overrides this method, too.
        """
        name = type(self).__name__
        raise TypeError(f"{name} overrides scan_inputs alone. Override from_scan_slice, too.")

    def reason_not_kept(self, primitive: str, others: "Sequence[StructuredTangent]") -> str:
        """Return why the rule of a primitive could not keep this form, for `explain`, or ''.

        Args:
          primitive: the name of the primitive.
          others: the tangents of its other operands, of the same form.
        """
        return ""
