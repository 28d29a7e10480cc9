"""Weight perturbation: tangents of the parameters, directional derivatives of the whole loss."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.perturbation.control_variates import exact_direction, unit
from fwdgrad.perturbation.layer_groups import Layers
from fwdgrad.perturbation.loss import Loss
from fwdgrad.perturbation.space import Derivatives, Estimate, PushedForward
from fwdgrad.propagation.pushforward import Pushforward
from fwdgrad.propagation.record import current_record
from fwdgrad.tangents.forms import count_tangents, gram, weighted_sum
from fwdgrad.tangents.independent import TangentDistribution
from fwdgrad.tangents.sampling import Tangents, check_drawn, check_guess, sample_tangents
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype


@dataclass(frozen=True)
class Weights:
    """Weight perturbation: one directional derivative of the whole loss for each tangent.

    Any loss will do, and E‖g‖² grows with the number of parameters. All parameters are perturbed.
    Parameters that the loss does not depend on get an estimate that is zero only in the mean: leave
    frozen ones out of `params`.

    Args:
      layerwise: push the tangents of each layer's parameters forward separately. Each layer has a
        directional derivative of its own, without the noise of the others, and E‖g‖² is the sum of
        the layers' own. The cost is one tangent and one pass for each layer.
      exact_last: take the exact gradient by the last layer's parameters, those that only the loss
        function follows: reverse mode through the last layer and the loss (softmax minus one-hot,
        times the layer's input). The other parameters have tangents, and a guess is one of their
        gradient alone. The loss is evaluated once more. Arrays that are passed by position count as
        data, and a product with data as part of the loss function. So pass fixed weights to `fun`
        as keyword arguments, or layers made of them may count as part of the loss function, too.

    >>> import fwdgrad
    >>> def loss(params, x, y):
    ...     return jnp.mean((jnp.tanh(x @ params["w"]) @ params["u"] - y) ** 2)
    >>> value_and_grad = fwdgrad.forward_value_and_grad(loss, space=Weights(exact_last=True))
    >>> params, args = {"w": jnp.ones((3, 4)), "u": jnp.ones(4)}, (jnp.ones((5, 3)), jnp.zeros(5))
    >>> _, grad = value_and_grad(jax.random.key(0), params, *args)
    >>> bool(jnp.allclose(grad["u"], jax.grad(loss)(params, *args)["u"]))
    True
    """

    layerwise: bool = False
    exact_last: bool = False

    def at(self, loss: Loss, guess: PyTree = None) -> "_AtWeights":
        return _AtWeights(self, loss, guess)


class _AtWeights:
    """A loss, to be evaluated along tangents of its parameters.

    Attributes:
      leaves: the parameters that have tangents.
      exact: the other parameters, by name: their gradient is exact.
      pushforward: of the loss, along tangents of `leaves`.
    """

    def __init__(self, space: Weights, loss: Loss, guess: PyTree):
        self._layers: Layers | None = None
        if space.layerwise or space.exact_last:
            choice = "layerwise" if space.layerwise else "exact_last"
            needed_by = f"space=Weights({choice}=True)"
            self._layers = Layers(loss, needed_by=needed_by)
        self._is_exact = [False] * len(loss.theta)
        if self._layers is not None and space.exact_last:
            self._is_exact = self._layers.is_last
        self._frame = loss.frame
        named = list(zip(loss.names, loss.theta, self._is_exact, strict=True))
        self.leaves = [x for _, x, is_exact in named if not is_exact]
        self.exact = {name: x for name, x, is_exact in named if is_exact}

        def of_leaves(leaves: list[Array]) -> tuple[Array, PyTree]:
            return loss.at(self._merged(leaves, self.exact.values()))

        self.pushforward = Pushforward(
            loss.trace(of_leaves, self.leaves),
            self.leaves,
            [name for name, _, is_exact in named if not is_exact],
        )
        self._groups = [list(range(len(self.leaves)))] if self.leaves else []
        if self._layers is not None and space.layerwise:
            noisy = [i for i, is_exact in enumerate(self._is_exact) if not is_exact]
            groups = [[noisy.index(i) for i in x if i in noisy] for x in self._layers.groups]
            self._groups = [group for group in groups if group]
        self._guess: list[Array] | None = None
        if guess is not None:
            check_guess(guess, self.first_guess())
            self._guess = jax.tree.leaves(guess)

    def _merged(self, leaves: Iterable[Any], exact: Iterable[Any]) -> list[Any]:
        """Return one value for each leaf of the parameters, from those of both kinds."""
        parts = [iter(leaves), iter(exact)]
        return [next(parts[is_exact]) for is_exact in self._is_exact]

    def _for_distribution(self) -> PyTree:
        return self._frame.subtree(self._merged(self.leaves, [None] * len(self.exact)))

    def first_guess(self) -> PyTree:
        zeros = map(jnp.zeros_like, self.leaves)
        return self._frame.subtree(self._merged(zeros, [None] * len(self.exact)), like_whole=True)

    def draw(self, distribution: TangentDistribution, keys: Array) -> Tangents:
        if not self.leaves:  # all are exact
            return []
        splits = self.pushforward.splits
        if len(self._groups) == 1:
            return sample_tangents(distribution, keys, self._for_distribution(), splits)
        drawn: dict[int, Any] = {}
        for number, group in enumerate(self._groups):
            folded = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            parts = [self.leaves[i] for i in group], [splits[i] for i in group]
            drawn.update(zip(group, sample_tangents(distribution, folded, *parts), strict=True))
        return [drawn[i] for i in range(len(self.leaves))]

    def check_drawn(self, found: Sequence[Any], expected: Sequence[Any]) -> None:
        check_drawn(found, expected, self.pushforward.names)

    def push(self, tangents: Tangents, with_gram: bool) -> PushedForward:
        if not tangents:
            value, _, aux = self._push([], [])
            return PushedForward(value, aux, [], ([], []))
        derivatives, directions = [], []
        for number, group in enumerate(self._groups):
            of_group = [tangents[i] for i in group]
            value, along, aux = self._push(group, of_group)
            products = None
            if with_gram:
                products = gram(of_group, accumulation_dtype(value.dtype))
            if self._guess is not None:
                guess, slope = self._slopes[number]
                dtype = accumulation_dtype(value.dtype)
                direction = exact_direction(guess, slope, of_group, dtype)
                along, products = direction.across(along, products)
                directions.append(direction)
            size = sum(self.leaves[i].size for i in group)
            derivatives.append(Derivatives(along, products, size))
        return PushedForward(value, aux, derivatives, (tangents, directions))

    # The next two do not depend on the tangents. They are computed for the first chunk, outside of
    # the scan over the other chunks, which read the values.
    @cached_property
    def _slopes(self) -> list[tuple[list[Array], Array]]:
        """For each group of leaves, the guess as a unit direction and the derivative along it."""
        assert self._guess is not None
        slopes = []
        for group in self._groups:
            guess = unit([self._guess[i] for i in group])
            _, (slope,), _ = self._push(group, [u[None] for u in guess])
            slopes.append((guess, slope))
        return slopes

    @cached_property
    def _gradient_of_last(self) -> list[Array]:
        """The exact gradients, in accumulation dtypes."""
        assert self._layers is not None
        found = self._layers.gradient_of_last()
        return [g.astype(accumulation_dtype(g.dtype)) for g in found]

    def _push(self, group: list[int], tangents: Tangents) -> tuple[Array, Array, PyTree]:
        """Push the loss forward along tangents of the leaves in a group alone."""
        of_all: list[Any] = [None] * len(self.leaves)
        for i, v in zip(group, tangents, strict=True):
            of_all[i] = v
        number = max(map(count_tangents, tangents), default=1)
        return self.pushforward(of_all, num_tangents=number)

    def combine(self, pushed: PushedForward, weights: Sequence[Array]) -> Estimate:
        tangents, directions = pushed.residuals
        dtypes = [accumulation_dtype(x.dtype) for x in self.leaves]
        grad: dict[int, Array] = {}
        guess_grad: dict[int, Array] = {}
        for number, (group, of_group) in enumerate(zip(self._groups, weights, strict=True)):
            sums = [weighted_sum(tangents[i], of_group, dtypes[i]) for i in group]
            if self._guess is not None:
                sums = directions[number].completed(sums, of_group)
                guess_grad.update(
                    (i, self._guess[i].astype(g.dtype) - g)
                    for i, g in zip(group, sums, strict=True)
                )
            grad.update(zip(group, sums, strict=True))
        in_order = [grad[i] for i in range(len(grad))]
        return Estimate(self._with_exact(in_order), [guess_grad[i] for i in range(len(guess_grad))])

    def _with_exact(self, grad: list[Array]) -> list[Array]:
        """Return the gradients by all leaves, from those by `leaves` and the exact ones."""
        if not self.exact:
            return grad
        if (record := current_record()) is not None:
            record.exact.update(dict.fromkeys(self.exact))
        return self._merged(grad, self._gradient_of_last)
