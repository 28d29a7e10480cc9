"""Feedback: the guess of each derivative by a pre-activation, from the exact ones by the last.

**From the error**: from e_n, the exact derivatives of example n's loss by the pre-activations of
the last layers, a matrix A_z of each site z makes the guess c_n = A_z e_n, zero where the
post-activation is flat. For layers far from the last one it is a poor guess: which units in between
are on differs by example, and no fixed matrix knows that.

**Chained**: the guess at a layer is made of the guess at the next one, through the operations in
between, and through that layer with learned parameters B in the place of its own
(`fwdgrad.perturbation.links`):

    c_1 = J(B)ᵀ c_2

With B the layer's own parameters it is backpropagation. Of a dense layer B has as many entries as
its weights, and of a convolution those of its kernel, which all positions and examples teach.

Either is learned by normalised least mean squares from the residual r_n, the noise's unbiased
estimate of δ_n − c_n, where δ_n is the exact derivative:

    −Σ_n e_n r_n / Σ_n ‖e_n‖²        −∂/∂B Σ_n ⟨r_n, J(B)ᵀ c_n⟩ / S

The variance of r_n is R ‖δ_n − c_n‖², with R the number of noisy entries divided by the number of
tangents K. So too large steps raise the error of the guess and the variance of r_n together. For a
matrix, and if ‖δ_n − c_n‖ is proportional to ‖c_n‖, a step μ changes the expected squared error of
B by at most

    (−2μ/S + (μ/S)² (Σ_n ‖c_n‖² + R Σ_n ‖c_n‖⁴ / Σ_n ‖c_n‖²)) Σ_n ‖δ_n − c_n‖²

The inner bracket is S: steps below 2 are stable, and 1 is the best by this bound. An array that is
used at P positions has R/P in the place of R, and k S in the place of S, with k the number of times
that a column of it reads an entry of c_n: the number of taps of a convolution of stride 1.

S knows the layer alone. Factors on the way to it, such as a gate, a norm's gain or a table of
stacked weights, scale J and are not in S: there steps must be smaller, by the square of the factor.
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
      noise: site -> R of each example, (N,).
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
        square = _or_one(jnp.sum(jnp.square(error)))
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


class Chained:
    """Chained feedback: for each layer that follows a site, arrays like its parameters.

    A bias has none: it has no part in the derivative. A site from which no link leads to another
    has no guess.

    Args:
      loss: the loss, with its links.
      parameters: of the loss.
    """

    def __init__(self, loss: NoisyLoss, parameters: Sequence[Array]):
        self._parameters, self._noisy, self._links = parameters, loss.noisy, loss.links
        self._keys = sorted({(x.following, k) for x in loss.links.values() for k in x.uses})

    def first(self) -> list[Array]:
        like = [self._parameters[k] for _, k in self._keys]
        return [jnp.zeros(x.shape, accumulation_dtype(x.dtype)) for x in like]

    def fan_in(self) -> list[Any]:
        for i, site in self._noisy.items():
            if i not in self._links:
                raise ValueError(
                    f"feedback='fixed' gives no derivative by the value at {site.site.place}, from "
                    "which reverse mode reaches no later layer; say chained=False."
                )
        terms: dict[tuple[int, int], Any] = {}
        for link in self._links.values():
            for k, uses in link.uses.items():
                terms[link.following, k] = max(use.terms for use in uses)
        return [terms[key] for key in self._keys]

    def guesses(
        self, state: Sequence[Array], exact: Mapping[int, Array], masks: Values, values: Values
    ) -> dict[int, Array]:
        known: dict[int, Array] = dict(exact)
        for i in sorted(self._links, reverse=True):  # a site that follows comes later
            if self._links[i].following in known:
                at_value = self._at_next_value(i, values, known)
                guess = self._pulled_back(i, self._of_layer(i, state), values, at_value)
                known[i] = jnp.where(masks[i], guess, 0).astype(accumulation_dtype(guess.dtype))
        return {i: guess for i, guess in known.items() if i not in exact}

    def gradient(self, state: Sequence[Array], learned: Learned) -> list[Array]:
        sums = {key: jnp.zeros_like(a) for key, a in zip(self._keys, state, strict=True)}
        scales: dict[tuple[int, int], Any] = dict.fromkeys(self._keys, 0)
        known = {**learned.guesses, **learned.exact}
        for i in sorted(learned.guesses.keys() & learned.residuals.keys()):
            r = learned.residuals[i]
            at_next_value = jax.vmap(
                lambda varying, known, i=i: self._at_next_value(
                    i, learned.values_of(varying), known
                )
            )(learned.varying, known)

            def guessed(b: dict[int, Array], i: int = i, at_value: Array = at_next_value) -> Array:
                return jax.vmap(
                    lambda varying, c: self._pulled_back(i, b, learned.values_of(varying), c)
                )(learned.varying, at_value)

            guess, pull_back = jax.vjp(guessed, self._of_layer(i, state))
            (products,) = pull_back(r.astype(guess.dtype))
            squares = jax.vmap(lambda c: jnp.sum(jnp.square(c)))(at_next_value.astype(r.dtype))
            link = self._links[i]
            for k, uses in link.uses.items():
                sums[link.following, k] -= products[k]
                scales[link.following, k] += sum(
                    use.repeats * _scale(squares, learned.noise[i] / use.positions) for use in uses
                )
        return [sums[key] / _or_one(scales[key]) for key in self._keys]

    def _of_layer(self, i: int, state: Sequence[Array]) -> dict[int, Array]:
        """Return B of the layer that follows a site, by the index of its parameter."""
        following = self._links[i].following
        return {k: a for (j, k), a in zip(self._keys, state, strict=True) if j == following}

    def _at_next_value(self, i: int, values: Values, known: Mapping[int, Array]) -> Array:
        """Return an example's derivative by the value of the site that follows a site.

        Args:
          i: the site.
          values: those that the loss keeps of the example.
          known: site -> the exact derivative by its value, or the guess where noise enters.
        """
        following = self._links[i].following
        site = self._noisy.get(following)
        if site is None or site.post_activation is None:
            return known[following]
        return site.post_activation.pull_back(values)(known[following])

    def _pulled_back(
        self, i: int, of_layer: Mapping[int, Array], values: Values, cotangent: Array
    ) -> Array:
        """Return J(B)ᵀ c of the link of a site."""
        parameters = list(self._parameters)
        for k, b in of_layer.items():
            parameters[k] = b.astype(parameters[k].dtype)
        return self._links[i].pull_back(parameters, values)(cotangent)


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


def _scale(squares: Array, noise: Array) -> Array:
    """Return Σ_n ‖c_n‖² + Σ_n R_n ‖c_n‖⁴ / Σ_n ‖c_n‖².

    Args:
      squares: ‖c_n‖², (N,).
      noise: R_n, (N,).
    """
    total = jnp.sum(squares)
    return total + jnp.sum(noise * squares * (squares / _or_one(total)))


def _or_one(scale: Array) -> Array:
    """Return a scale, or 1 where it is zero."""
    return jnp.where(scale > 0, scale, 1)
