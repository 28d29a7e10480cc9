"""The protocol of a space: tangents of the parameters, or noise at pre-activations.

A space evaluates a loss along K tangents and makes the estimate of them; how many there are, from
which distribution, and how their derivatives become one estimate is none of its business.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from fwdgrad.perturbation.loss import Loss
from fwdgrad.tangents.independent import TangentDistribution
from fwdgrad.tangents.sampling import Tangents
from fwdgrad.util.trees import Array, PyTree

# (derivatives (K,), a function that makes the Gram matrix of their tangents, the number of entries
# of a tangent) -> their weights in the estimate (K,), and the share of them that was clipped.
Weigh = Callable[[Array, Callable[[], Array], Any], tuple[Array, Array]]


class Estimate(NamedTuple):
    """The loss, and the estimate of its gradient by K tangents.

    Attributes:
      value, aux: of the loss.
      grad: for each leaf of the parameters, Σ_k w_k v_k and what is added to that, in accumulation
        dtypes.
      clip_rate: the share of the derivatives that was clipped.
      guess_grad: for each leaf of the guess, if there is one, its gradient.
    """

    value: Array
    aux: PyTree
    grad: list[Array]
    clip_rate: Array
    guess_grad: list[Array]


class Evaluation(Protocol):
    """A loss at given parameters and arguments, ready to be evaluated along tangents."""

    def first_guess(self) -> PyTree:
        """A guess of zeros."""
        ...

    def draw(self, distribution: TangentDistribution, keys: Array) -> Tangents:
        """As many tangents as keys."""
        ...

    def check_drawn(self, found: Sequence[Any], expected: Sequence[Any]) -> None:
        """Raises ValueError unless `found` are tangents such as `draw` makes, `expected`."""
        ...

    def estimate(self, tangents: Tangents, weigh: Weigh) -> Estimate:
        """The estimate by these tangents."""
        ...


class Space(Protocol):
    """What `forward_value_and_grad(space=...)` takes."""

    def at(self, loss: Loss, guess: PyTree = None) -> Evaluation:
        """The loss at its parameters and arguments."""
        ...
