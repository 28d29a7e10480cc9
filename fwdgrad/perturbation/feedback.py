"""Feedback: the guess of each derivative by a pre-activation, from the exact ones by the last.

From e_n, the exact derivatives of example n's loss by the pre-activations of the last layers, a
matrix A_z of each site z makes the guess c_n = A_z e_n, zero where the post-activation is flat. It
is learned by normalised least mean squares from the residual r_n, the noise's unbiased estimate of
δ_n − c_n, where δ_n is the exact derivative:

    −Σ_n e_n r_n / Σ_n ‖e_n‖²

For layers far from the last one it is a poor guess: which units in between are on differs by
example, and no fixed matrix knows that. `fwdgrad.perturbation.chained_feedback` does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from fwdgrad.perturbation.perturbed_loss import NoisyLoss
from fwdgrad.util.sharding import has_explicit_axes
from fwdgrad.util.trees import Array, accumulation_dtype

Values = Mapping[Any, Array]  # of variables


class Learned(NamedTuple):
    """The arrays that a feedback learns from, with an axis of examples in front.

    Attributes:
      exact: site -> ∂ℓ/∂z, of the sites whose derivative is exact.
      guesses: site -> the guess.
      residuals: site -> the unbiased estimate of the exact derivative minus the guess.
      noise: site -> R of each example, the number of its noisy entries over that of tangents, (N,).
      varying: the values that the loss keeps, of those that differ by example.
      values_of: the function from those of one example to all that the loss keeps, by variable.
    """

    exact: Mapping[int, Array]
    guesses: Mapping[int, Array]
    residuals: Mapping[int, Array]
    noise: Mapping[int, Array]
    varying: list[Array]
    values_of: Callable[[list[Array]], Values]


class Feedback(Protocol):
    """A way to make guesses; its state is a list of arrays, zeros at first."""

    def first(self) -> list[Array]:
        """Return arrays of zeros."""
        ...

    def fan_in(self) -> list[Any]:
        """Return for each array the number of units that random entries are scaled by.

        Raises:
          ValueError: a site has no guess, so that fixed feedback gives its layer no derivative.
        """
        ...

    def guesses(
        self, state: Sequence[Array], exact: Mapping[int, Array], masks: Values, values: Values
    ) -> dict[int, Array]:
        """Return the guesses of an example's derivatives where noise enters, by site.

        Args:
          state: the arrays.
          exact: site -> ∂ℓ/∂z of the example, of the sites whose derivative is exact.
          masks: site -> True where noise enters.
          values: those that the loss keeps of the example.
        """
        ...

    def gradient(self, state: Sequence[Array], learned: Learned) -> list[Array]:
        """Return the gradient of each array."""
        ...


class FromError:
    """Feedback from the error, a matrix (E, *shape of the value) for each site.

    Args:
      loss: the loss.
      sites: those that have a guess.
      exact: those whose exact derivatives are the error.
    """

    def __init__(self, loss: NoisyLoss, sites: Sequence[int], exact: Sequence[int]):
        self._exact = exact
        self._entries = {i: loss.noisy[i].entry.aval for i in sites}
        self._number = sum(loss.sites[i].variable.aval.size for i in exact)

    def first(self) -> list[Array]:
        return [
            jnp.zeros((self._number, *v.shape), accumulation_dtype(v.dtype))
            for v in self._entries.values()
        ]

    def fan_in(self) -> list[Any]:
        return [math.prod(v.shape) for v in self._entries.values()]

    def guesses(
        self, state: Sequence[Array], exact: Mapping[int, Array], masks: Values, values: Values
    ) -> dict[int, Array]:
        error = self._error(exact)
        return {
            i: jnp.where(masks[i], jnp.tensordot(error.astype(a.dtype), a, 1), 0)
            for i, a in zip(self._entries, state, strict=True)
        }

    def gradient(self, state: Sequence[Array], learned: Learned) -> list[Array]:
        error = jax.vmap(self._error)(learned.exact)
        square = or_one(jnp.sum(jnp.square(error)))
        whole = jax.sharding.PartitionSpec() if has_explicit_axes() else None
        gradients = []
        for i, a in zip(self._entries, state, strict=True):
            if i not in learned.residuals:
                gradients.append(jnp.zeros_like(a))
                continue
            r = learned.residuals[i]
            product = jnp.tensordot(error.astype(r.dtype), r, (0, 0), out_sharding=whole)
            gradients.append(-product / square)
        return gradients

    def _error(self, exact: Mapping[int, Array]) -> Array:
        return jnp.concatenate([exact[i].ravel() for i in self._exact])


def random_like(
    parameters: Sequence[Array], arrays: Sequence[Array], fan_in: Sequence[Any]
) -> list[Array]:
    """Return arrays with entries from U(−1/√n, 1/√n), the usual distribution of weights.

    The key is made of the bits of `parameters`, so that other first parameters have other arrays.

    Args:
      parameters: of the loss.
      arrays: arrays of the shapes and dtypes to return.
      fan_in: n of each.
    """
    key = jax.random.key(0)
    for x in parameters:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        key = jax.random.fold_in(key, jnp.sum(bits, dtype=jnp.uint32))
    return [
        jax.random.uniform(k, a.shape, a.dtype, -1, 1) / math.sqrt(n)
        for k, a, n in zip(jax.random.split(key, len(arrays)), arrays, fan_in, strict=True)
    ]


def or_one(scale: Array) -> Array:
    """Return a scale, or 1 where it is zero."""
    return jnp.where(scale > 0, scale, 1)
