"""The protocol of a space: tangents of the parameters, or noise at pre-activations.

A space evaluates a loss along tangents. The estimator alone knows their distribution, how many
there are in all, and how their derivatives become one estimate. It calls, one after the other,

    evaluation = space.at(loss, guess)
    tangents   = evaluation.draw(distribution, keys)
    pushed     = evaluation.push(tangents, with_gram)    the loss, d_k = ∇f·v_k
    estimate   = evaluation.combine(pushed, weights)     Σ_k w_k v_k
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from fwdgrad.perturbation.loss import Loss
from fwdgrad.tangents.independent import TangentDistribution
from fwdgrad.tangents.sampling import Tangents
from fwdgrad.util.trees import Array, PyTree


class Derivatives(NamedTuple):
    """Directional derivatives along a group of K tangents, which are pushed forward together.

    Where each example has tangents of its own, all arrays have an axis of examples in front.

    Attributes:
      along: the derivatives d_k, (K,).
      gram: the inner products ⟨v_k, v_l⟩, (K, K), or None if they are not needed.
      num_entries: the number of entries of a tangent, without masked ones.
    """

    along: Array
    gram: Array | None
    num_entries: Any


class PushedForward(NamedTuple):
    """A loss, pushed forward along tangents.

    Attributes:
      value, aux: of the loss.
      derivatives: one entry for each group of tangents.
      residuals: the rest of what `combine` reads, as the space keeps it.
    """

    value: Array
    aux: PyTree
    derivatives: list[Derivatives]
    residuals: Any


class Estimate(NamedTuple):
    """The estimate of the gradient by some tangents.

    Attributes:
      grad: for each leaf of the parameters Σ_k w_k v_k, with exact parts and the guess added, in
        accumulation dtypes.
      guess_grad: for each leaf of the guess, if there is one, its gradient.
    """

    grad: list[Array]
    guess_grad: list[Array]


class Evaluation(Protocol):
    """A loss at given parameters and arguments, ready to be evaluated along tangents."""

    def first_guess(self) -> PyTree:
        """Return a guess of zeros."""
        ...

    def draw(self, distribution: TangentDistribution, keys: Array) -> Tangents:
        """Return as many tangents as keys."""
        ...

    def check_drawn(self, found: Sequence[Any], expected: Sequence[Any]) -> None:
        """Raise ValueError unless `found` are tangents such as `draw` returns, `expected`."""
        ...

    def push(self, tangents: Tangents, with_gram: bool) -> PushedForward:
        """Push the loss forward along the tangents of each group, with Gram matrices if asked."""
        ...

    def combine(self, pushed: PushedForward, weights: Sequence[Array]) -> Estimate:
        """Return the estimate with these weights, of each group an array like its derivatives."""
        ...


class Space(Protocol):
    """The protocol of `forward_value_and_grad(space=...)`."""

    def at(self, loss: Loss, guess: PyTree = None) -> Evaluation:
        """Return an evaluation of the loss at its parameters and arguments."""
        ...
