"""Where tangents live: at the parameters, or at what the layers compute.

A space evaluates a loss along K tangents and makes the estimate of them; how many there are, from
which distribution, and how their derivatives become one estimate is none of its business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from fwdgrad.core import checks
from fwdgrad.core.forms import gram, weighted_sum
from fwdgrad.core.guess import along, square, unit
from fwdgrad.core.last_layer import LastLayer
from fwdgrad.core.losses import Loss
from fwdgrad.core.pushforward import Pushforward
from fwdgrad.core.sampling import Tangents, sample_each
from fwdgrad.core.tangents import TangentDistribution
from fwdgrad.core.trees import Array, PyTree, accumulation_dtype, combine

# (derivatives (k,), a function that makes the Gram matrix of their tangents, the number of entries
# of a tangent) -> their weights in the estimate (k,), and how many were clipped.
Weigh = Callable[[Array, Callable[[], Array], Any], tuple[Array, Array]]


class Estimate(NamedTuple):
    """The loss, and the sum over some of the K tangents.

    Attributes:
      value, aux: of the loss.
      grad: for each leaf of the parameters Σ_k w_k v_k, in accumulation dtypes, and the share of
        these tangents in what is added to that.
      num_clipped: how many of the derivatives were clipped, the mean over those for one tangent.
      guess_grad: for each leaf of the guess, if there is one, the same share of its gradient.
    """

    value: Array
    aux: PyTree
    grad: list[Array]
    num_clipped: Array
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

    def estimate(self, tangents: Tangents, number: int, weigh: Weigh) -> Estimate:
        """The estimate by these tangents, `number` of the K."""
        ...


class Space(Protocol):
    """What `forward_value_and_grad(space=...)` takes."""

    def at(
        self, loss: Loss, num_tangents: int, enter_custom_vjp: bool, guess: PyTree = None
    ) -> Evaluation:
        """The loss at its parameters and arguments; K is `num_tangents`."""
        ...


@dataclass(frozen=True)
class Weights:
    """Tangents of the parameters: one directional derivative of the whole loss for each.

    E‖g‖² grows with the number of parameters, but nothing is asked of the loss. All parameters are
    perturbed, and so those too of which the loss is independent get an estimate that is zero in the
    mean alone: leave frozen ones out of `params`.

    Args:
      exact_last: take the gradient by the parameters that only the loss function follows as it is:
        reverse mode through the last layer and the loss (softmax minus one-hot, times the layer's
        input). The tangents are those of the other parameters. The loss is evaluated once more.
        A guess is one of the other parameters' gradient alone. Arrays that are passed by position
        count as data, and a product with data as part of the loss function; so give `fun` weights
        that stay fixed as keyword arguments, or layers of them may count as part of it, too.

    >>> import fwdgrad
    >>> def loss(params, x, y):
    ...     return jnp.mean((jnp.tanh(x @ params["w"]) @ params["u"] - y) ** 2)
    >>> value_and_grad = fwdgrad.forward_value_and_grad(loss, space=Weights(exact_last=True))
    >>> params, args = {"w": jnp.ones((3, 4)), "u": jnp.ones(4)}, (jnp.ones((5, 3)), jnp.zeros(5))
    >>> _, grad = value_and_grad(jax.random.key(0), params, *args)
    >>> bool(jnp.allclose(grad["u"], jax.grad(loss)(params, *args)["u"]))
    True
    """

    exact_last: bool = False

    def at(
        self, loss: Loss, num_tangents: int, enter_custom_vjp: bool, guess: PyTree = None
    ) -> "_AtWeights":
        return _AtWeights(loss, num_tangents, enter_custom_vjp, guess, self.exact_last)


class _AtWeights:
    """Evaluates a loss along tangents of its parameters.

    Attributes:
      theta: the parameters that have tangents, a pytree with None for the others.
      exact: the others, which have their exact gradient.
      pushforward: of the loss, along tangents of `theta`.
    """

    def __init__(
        self,
        loss: Loss,
        num_tangents: int,
        enter_custom_vjp: bool,
        guess: PyTree,
        exact_last: bool,
    ):
        self._num_tangents, self._enter = num_tangents, enter_custom_vjp
        leaves, structure = jax.tree.flatten(loss.theta)
        self._leaves = leaves
        self._last = LastLayer(loss, enter_custom_vjp) if exact_last else None
        is_exact = [False] * len(leaves) if self._last is None else self._last.contains
        parts = [
            [x if is_part else None for x, is_part in zip(leaves, chosen, strict=True)]
            for chosen in ([not e for e in is_exact], is_exact)
        ]
        self.theta, self.exact = (jax.tree.unflatten(structure, part) for part in parts)
        self.pushforward = Pushforward(
            lambda theta: loss.at(combine(theta, self.exact)), self.theta
        )
        self._guess: list[Array] | None = None
        if guess is not None:
            checks.check_guess(guess, jax.eval_shape(self.first_guess))
            self._guess = jax.tree.leaves(guess)

    def first_guess(self) -> PyTree:
        return jax.tree.map(jnp.zeros_like, self.theta)

    def draw(self, distribution: TangentDistribution, keys: Array) -> Tangents:
        if not jax.tree.leaves(self.theta):  # all are exact
            return []
        return sample_each(distribution, keys, self.theta, self.pushforward.splits)

    def check_drawn(self, found: Sequence[Any], expected: Sequence[Any]) -> None:
        checks.check_drawn(found, expected, self.pushforward.names)

    def estimate(self, tangents: Tangents, number: int, weigh: Weigh) -> Estimate:
        value, derivatives, aux = self.pushforward(
            tangents, num_tangents=number, enter_custom_vjp=self._enter
        )
        share = number / self._num_tangents
        if not tangents:
            return Estimate(value, aux, self._with_exact([], share), jnp.zeros(()), [])
        dtype = accumulation_dtype(value.dtype)
        dtypes = [accumulation_dtype(x.dtype) for x in jax.tree.leaves(self.theta)]
        size = sum(x.size for x in jax.tree.leaves(self.theta))

        def weighed(derivatives: Array, matrix: Callable[[], Array]) -> tuple[Array, list, Array]:
            weights, num_clipped = weigh(derivatives, matrix, size)
            grad = [weighted_sum(v, weights, t) for v, t in zip(tangents, dtypes, strict=True)]
            return weights, grad, num_clipped

        if self._guess is None:
            _, grad, num_clipped = weighed(derivatives, lambda: gram(tangents, dtype))
            return Estimate(value, aux, self._with_exact(grad, share), num_clipped, [])
        direction = unit(self._guess)
        # Rounded in half precision û is not quite of length 1, so its square goes along.
        length = square(direction).astype(dtype)
        length = jnp.where(length > 0, length, 1)
        slope = self._slope(direction).astype(dtype) / length
        products = along(tangents, direction).astype(dtype)  # ⟨û, v_k⟩
        weights, grad, num_clipped = weighed(
            derivatives - slope * products,
            lambda: gram(tangents, dtype) - jnp.outer(products, products) / length,
        )
        length = share * slope - jnp.dot(weights, products) / length
        grad = [g + (length * u).astype(g.dtype) for g, u in zip(grad, direction, strict=True)]
        guess_grad = [share * u - g for u, g in zip(self._guess, grad, strict=True)]
        return Estimate(value, aux, self._with_exact(grad, share), num_clipped, guess_grad)

    def _slope(self, direction: list[Array]) -> Array:
        """The derivative of the loss along a direction."""
        one: list[Any] = [u[None] for u in direction]
        _, (slope,), _ = self.pushforward(one, num_tangents=1, enter_custom_vjp=self._enter)
        return slope

    def _with_exact(self, grad: list[Array], share: float) -> list[Array]:
        """The gradients by all leaves: those by `theta`, and this share of the exact ones."""
        if self._last is None or not any(self._last.contains):
            return grad
        others, exact = iter(grad), iter(self._last.gradient())
        return [
            share * next(exact).astype(accumulation_dtype(x.dtype)) if is_exact else next(others)
            for x, is_exact in zip(self._leaves, self._last.contains, strict=True)
        ]
