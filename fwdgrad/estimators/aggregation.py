"""How K directional derivatives d_k = ∇f·v_k become one estimate, g = Σ_k w_k v_k."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fwdgrad.util.batched_linalg import least_squares
from fwdgrad.util.trees import Array


class Aggregation(Protocol):
    """What `forward_value_and_grad(aggregation=...)` takes."""

    def coefficients(self, derivatives: Array, gram: Callable[[], Array]) -> Array:
        """The coefficients w (K,) of K tangents that are pushed forward together.

        Args:
          derivatives: d, (K,).
          gram: makes the matrix of the products ⟨v_k, v_l⟩, (K, K).
        """
        ...

    @property
    def needs_all(self) -> bool:
        """True if `coefficients` needs all tangents of an estimate: then none go in chunks."""
        ...


@dataclass(frozen=True)
class Mean:
    """The mean of the K estimates, w = d / K: unbiased if the tangents are.

    >>> import jax.numpy as jnp
    >>> Mean().coefficients(jnp.array([2.0, 4.0]), None).tolist()
    [1.0, 2.0]
    """

    needs_all = False

    def coefficients(self, derivatives: Array, gram: Callable[[], Array]) -> Array:
        return derivatives / len(derivatives)


@dataclass(frozen=True)
class Projection:
    """The orthogonal projection of ∇f onto the span of the K tangents, w = (VᵀV)⁺ d.

    The point of the span nearest to ∇f, which the directional derivatives determine: of d tangents
    that are linearly independent it is ∇f itself, and cos² of its angle with ∇f has the mean K/d.
    It is shorter than ∇f, E⟨g, ∇f⟩ = K/d ‖∇f‖², so it wants a learning rate d/K times that of the
    mean. Nearly the same direction as the mean, if K is much smaller than d, since random tangents
    are nearly orthogonal then.

    The condition of the Gram matrix is the square of V's, so close to K = d single precision loses
    directions of the span that are hardly in it. Use `Orthogonal` tangents there, or float64.

    What is solved has forward derivatives alone: reverse mode through the estimate, as for learning
    a learning rate, is an error of JAX here; use `jax.jvp`, or `Mean`.

    >>> import jax.numpy as jnp
    >>> v = jnp.array([[1.0, 1.0], [1.0, -2.0]])
    >>> w = Projection().coefficients(v @ jnp.array([3.0, 4.0]), lambda: v @ v.T)
    >>> bool(jnp.allclose(w @ v, jnp.array([3.0, 4.0]), atol=1e-5))
    True
    """

    needs_all = True

    def coefficients(self, derivatives: Array, gram: Callable[[], Array]) -> Array:
        # Noise that is masked everywhere leaves rows of zeros, so not the inverse.
        return least_squares(gram(), derivatives)
