"""Chained feedback: the guess at a layer is made of the guess at the next one.

It goes through the operations in between, and through the next layer with learned parameters B in
the place of its own (`fwdgrad.perturbation.links`):

    c_1 = J(B)ᵀ c_2

With B the layer's own parameters it is backpropagation. Of a dense layer B has as many entries as
its weights, and of a convolution those of its kernel, which all positions and examples teach.

B is learned by normalised least mean squares from the residual r_n, the noise's unbiased estimate
of δ_n − c_n, where δ_n is the exact derivative:

    −∂/∂B Σ_n ⟨r_n, J(B)ᵀ c_n⟩ / S

The variance of r_n is R ‖δ_n − c_n‖², with R the number of noisy entries divided by the number of
tangents K. So too large steps raise the error of the guess and the variance of r_n together. For a
matrix, and if ‖δ_n − c_n‖ is proportional to ‖c_n‖, a step μ changes the expected squared error of
B by at most

    (−2μ/S + (μ/S)² (Σ_n ‖c_n‖² + R Σ_n ‖c_n‖⁴ / Σ_n ‖c_n‖²)) Σ_n ‖δ_n − c_n‖²

The inner bracket is S: steps below 2 are stable, and 1 is the best by this bound. An array that is
used at P positions has R/P in the place of R, and k S in the place of S, with k the number of times
that a column of it reads an entry of c_n: the number of taps of a convolution of stride 1.

S is that of a layer alone. Factors above 1 on the way to it, such as a gate or a norm's gain,
enlarge J, and S is multiplied by their square: by the largest of 1 and three measured ratios. With
J₀ the pull-back through the layer without the operations before it, they are

    Σ_n ‖J(X)ᵀ c_n‖² / Σ_n ‖J₀(X)ᵀ c_n‖²     X an outer product of random signs
    Σ_n ‖J(G)ᵀ c_n‖² / Σ_n ‖J₀(G)ᵀ c_n‖²     G the gradient of B
    Σ_n ‖J(G)ᵀ c_n‖² / k ‖G‖² Σ_n ‖c_n‖²     the denominator is the most that a layer alone has

The sums are over an eighth of the examples, and at least 16. Where the operations are known to
enlarge nothing, such as ReLU (`fwdgrad.perturbation.slopes`), nothing is measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.perturbation.feedback import Learned, Values, or_one
from fwdgrad.perturbation.perturbed_loss import NoisyLoss
from fwdgrad.util.sharding import has_explicit_axes, varying_as, varying_axes
from fwdgrad.util.trees import Array, accumulation_dtype


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
            at_next_value = jax.vmap(
                lambda varying, known, i=i: self._at_next_value(
                    i, learned.values_of(varying), known
                )
            )(learned.varying, known)
            b = self._of_layer(i, state)
            for k, (product, scale) in self._products(i, b, at_next_value, learned).items():
                if axes := varying_axes(jax.typeof(scale)) - varying_axes(jax.typeof(product)):
                    # Of `shard_map`: if devices share B, the product is the sum over them.
                    scale = jax.lax.psum(scale, tuple(sorted(axes)))
                sums[self._links[i].following, k] -= product
                scales[self._links[i].following, k] += scale
        return [sums[key] / or_one(scales[key]) for key in self._keys]

    def _products(
        self, i: int, b: Mapping[int, Array], cotangents: Array, learned: Learned
    ) -> dict[int, tuple[Array, Array]]:
        """Return ∂/∂B Σ_n ⟨r_n, J(B)ᵀ c_n⟩ and S of the link of a site, by parameter.

        Args:
          i: the site.
          b: B, by the index of its parameter.
          cotangents: c_n.
          learned: what the feedback learns from.
        """
        residuals = learned.residuals[i]
        guess, pull_back = jax.vjp(lambda b: self._guessed(i, b, cotangents, learned), b)
        (products,) = pull_back(residuals.astype(guess.dtype))
        squares = jax.vmap(lambda c: jnp.sum(jnp.square(c)))(cotangents.astype(residuals.dtype))
        found = {}
        for k, uses in self._links[i].uses.items():
            scale = sum(x.reads * _scale(squares, learned.noise[i] / x.positions) for x in uses)
            gain = self._gain(i, b, k, products[k], cotangents, learned)
            found[k] = products[k], scale * gain
        return found

    def _gain(
        self,
        i: int,
        b: Mapping[int, Array],
        k: int,
        product: Array,
        cotangents: Array,
        learned: Learned,
    ) -> Array:
        """Return the gain of a link over its layer alone, at least 1; arguments as of `_products`.

        Args:
          k: the parameter whose B it is of.
          product: the gradient of B.
        """
        if self._links[i].is_plain:
            return jnp.ones((), product.dtype)
        number = cotangents.shape[0]
        if not has_explicit_axes() and isinstance(number, int):
            number = min(number, max(16, number // 8))
        cotangents = cotangents[:number]

        def squares(x: Array) -> tuple[Array, Array]:
            with_x, with_zero = (self._with_layer({**b, k: y}) for y in (x, jnp.zeros_like(x)))

            def of_example(varying: list[Array], c: Array) -> tuple[Array, Array]:
                values = learned.values_of(varying)
                return self._links[i].with_and_without_operations(with_x, with_zero, values, c)

            each = jax.vmap(of_example)([v[:number] for v in learned.varying], cotangents)
            whole, alone = jax.tree.map(jnp.sum, each)
            return whole, whole / or_one(alone)

        _, of_signs = squares(varying_as(_signs(product.shape, product.dtype), b[k]))
        whole, of_gradient = squares(product / or_one(jnp.linalg.norm(product)))
        reads = sum(use.reads for use in self._links[i].uses[k])
        wide = cotangents.astype(accumulation_dtype(cotangents.dtype))
        of_layer = whole / or_one(reads * jnp.sum(jnp.square(wide)))
        return jnp.maximum(jnp.maximum(of_signs, of_gradient), jnp.maximum(of_layer, 1))

    def _guessed(
        self, i: int, b: Mapping[int, Array], cotangents: Array, learned: Learned
    ) -> Array:
        """Return J(B)ᵀ c_n of the link of a site; arguments as of `_products`."""
        return jax.vmap(lambda varying, c: self._pulled_back(i, b, learned.values_of(varying), c))(
            learned.varying, cotangents
        )

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
        return self._links[i].pull_back(self._with_layer(of_layer), values)(cotangent)

    def _with_layer(self, of_layer: Mapping[int, Array]) -> list[Array]:
        """Return the parameters of the loss with those of a layer replaced."""
        parameters = list(self._parameters)
        for k, b in of_layer.items():
            parameters[k] = b.astype(parameters[k].dtype)
        return parameters


def _signs(shape: Sequence[Any], dtype: Any) -> Array:
    """Return an outer product of random signs of each axis, the same in every call."""
    signs = jnp.ones((), dtype)
    for axis, key in enumerate(
        jax.random.split(jax.random.key(0), max(1, len(shape)))[: len(shape)]
    ):
        signs = signs[..., None] * jax.random.rademacher(key, (shape[axis],), dtype)
    return signs


def _scale(squares: Array, noise: Array) -> Array:
    """Return Σ_n ‖c_n‖² + Σ_n R_n ‖c_n‖⁴ / Σ_n ‖c_n‖².

    Args:
      squares: ‖c_n‖², (N,).
      noise: R_n, (N,).
    """
    total = jnp.sum(squares)
    return total + jnp.sum(noise * squares * (squares / or_one(total)))
