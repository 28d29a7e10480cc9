"""Weights w of K tangents in an estimate g = Σ_k w_k v_k, from the derivatives d_k = ∇f·v_k."""

from dataclasses import dataclass
from typing import Any, Protocol

from fwdgrad.util.batched_linalg import least_squares
from fwdgrad.util.trees import Array


class Aggregation(Protocol):
    """The protocol of `forward_value_and_grad(aggregation=...)`."""

    def coefficients(self, derivatives: Array, gram: Any) -> Array:
        """Return the weights w (K,) of K tangents that are pushed forward together.

        Args:
          derivatives: d, (K,).
          gram: the matrix of the inner products ⟨v_k, v_l⟩, (K, K), or None unless `needs_gram`.
        """
        ...

    @property
    def needs_gram(self) -> bool:
        """True if `coefficients` reads the Gram matrix: then all tangents go together."""
        ...


@dataclass(frozen=True)
class Mean:
    """The mean of the K estimates, w = d / K: unbiased if the tangents are.

    >>> import jax.numpy as jnp
    >>> Mean().coefficients(jnp.array([2.0, 4.0]), None).tolist()
    [1.0, 2.0]
    """

    needs_gram = False

    def coefficients(self, derivatives: Array, gram: Any) -> Array:
        del gram
        return derivatives / len(derivatives)


@dataclass(frozen=True)
class Projection:
    """The orthogonal projection of ∇f onto the span of the K tangents, w = (VᵀV)⁺ d.

    The projection is the point of the span nearest to ∇f, and the directional derivatives determine
    it: with d linearly independent tangents it is ∇f itself. The cosine of its angle with ∇f has
    E cos² = K/d. It is shorter than ∇f, E⟨g, ∇f⟩ = K/d ‖∇f‖², so it wants a learning rate d/K times
    that of the mean. For K much smaller than d it has nearly the direction of the mean, since then
    random tangents are nearly orthogonal.

    The condition number of the Gram matrix is the square of V's. So close to K = d single precision
    loses directions that are hardly in the span: use `Orthogonal` tangents there, or float64.

    The solution has forward derivatives alone: reverse mode through the estimate, as for learning a
    learning rate, is an error of JAX here. Use `jax.jvp`, or `Mean`.

    >>> import jax.numpy as jnp
    >>> v = jnp.array([[1.0, 1.0], [1.0, -2.0]])
    >>> w = Projection().coefficients(v @ jnp.array([3.0, 4.0]), v @ v.T)
    >>> bool(jnp.allclose(w @ v, jnp.array([3.0, 4.0]), atol=1e-5))
    True
    """

    needs_gram = True

    def coefficients(self, derivatives: Array, gram: Any) -> Array:
        # Noise that is masked everywhere leaves rows of zeros, so not the inverse.
        return least_squares(gram, derivatives)
