"""The protocols by which training and measurement know an estimator, and training a problem."""

from collections.abc import Callable
from typing import Any, Protocol

from fwdgrad.util.trees import Array, PyTree


class ValueAndGrad(Protocol):
    """The protocol of an estimator of a loss's gradient."""

    @property
    def draws_ahead(self) -> bool:
        """True if tangents can be drawn before they are used.

        Then there are also `draw(key, state, batch)`, which returns tangents, a pytree of arrays,
        and `along(drawn, state, batch)`, which returns the outputs of a call with them.
        """
        ...

    def init(self, params: PyTree, batch: PyTree, /) -> PyTree:
        """Return the state that a training of these parameters starts from."""
        ...

    def params_of(self, state: PyTree, /) -> PyTree:
        """Return the parameters within a state, or within its gradient."""
        ...

    def __call__(self, key: Array, state: PyTree, batch: PyTree, /) -> tuple[Any, ...]:
        """Return (value, gradient by the state), and a report if it was asked for."""
        ...


# loss function, has_report=True -> the estimator of its gradient
Estimator = Callable[..., ValueAndGrad]


class TrainableProblem(Protocol):
    """The protocol of a problem, such as `fwdgrad.problems.Problem`.

    It may have `augment` too: None, or (key, minibatch) -> the minibatch that a step sees.
    """

    @property
    def train(self) -> PyTree: ...

    @property
    def valid(self) -> PyTree: ...

    @property
    def test(self) -> PyTree: ...

    def init(self, key: Array) -> PyTree: ...

    def scores(self, params: PyTree, batch: PyTree) -> dict[str, Array]: ...

    def loss(self, params: PyTree, batch: PyTree) -> Array: ...
