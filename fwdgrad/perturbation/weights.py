"""Tangents of the parameters: the estimate from directional derivatives of the whole loss."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.perturbation.control_variates import along, square, unit
from fwdgrad.perturbation.layer_groups import Layers
from fwdgrad.perturbation.loss import Loss
from fwdgrad.perturbation.space import Estimate, Weigh
from fwdgrad.propagation.pushforward import Pushforward
from fwdgrad.propagation.record import current_record
from fwdgrad.tangents.forms import count_tangents, gram, weighted_sum
from fwdgrad.tangents.independent import TangentDistribution
from fwdgrad.tangents.sampling import Tangents, sample_tangents
from fwdgrad.tangents.validation import check_drawn, check_guess
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype


@dataclass(frozen=True)
class Weights:
    """Tangents of the parameters: one directional derivative of the whole loss for each.

    E‖g‖² grows with the number of parameters, but nothing is asked of the loss. All parameters are
    perturbed, and so those too of which the loss is independent get an estimate that is zero in the
    mean alone: leave frozen ones out of `params`.

    Args:
      layerwise: push the tangents of each layer's parameters forward for themselves, so that layers
        do not disturb each other: each has a derivative of its own, and E‖g‖² is the sum of what
        each has alone. Takes as many tangents, and as many passes, as there are layers.
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

    layerwise: bool = False
    exact_last: bool = False

    def at(self, loss: Loss, guess: PyTree = None) -> "_AtWeights":
        return _AtWeights(self, loss, guess)


class _AtWeights:
    """Evaluates a loss along tangents of its parameters.

    Attributes:
      leaves: the parameters that have tangents.
      exact: the others, which have their exact gradient, by name.
      pushforward: of the loss, along tangents of `theta`.
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
        self._groups = [list(range(len(self.leaves)))]
        if self._layers is not None and space.layerwise:
            noisy = [i for i, is_exact in enumerate(self._is_exact) if not is_exact]
            groups = [[noisy.index(i) for i in x if i in noisy] for x in self._layers.groups]
            self._groups = [group for group in groups if group]
        self._guess: list[Array] | None = None
        if guess is not None:
            check_guess(guess, self.first_guess())
            self._guess = jax.tree.leaves(guess)

    def _merged(self, leaves: Iterable[Any], exact: Iterable[Any]) -> list[Any]:
        """One value for each leaf of the parameters, from those of both kinds."""
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

    def estimate(self, tangents: Tangents, weigh: Weigh) -> Estimate:
        if not tangents:
            value, _, aux = self._push({})
            return Estimate(value, aux, self._with_exact([]), jnp.zeros(()), [])
        grad: dict[int, Array] = {}
        guess_grad: dict[int, Array] = {}
        clipped = []
        for group in self._groups:
            of_group = self._estimate(group, {i: tangents[i] for i in group}, weigh)
            grad.update(zip(group, of_group.grad, strict=True))
            guess_grad.update(zip(group, of_group.guess_grad, strict=False))
            clipped.append(of_group.clip_rate)
        return Estimate(
            of_group.value,
            of_group.aux,
            self._with_exact([grad[i] for i in range(len(grad))]),
            jnp.stack(clipped).mean(),
            [guess_grad[i] for i in range(len(guess_grad))],
        )

    def _push(self, tangents: dict[int, Any]) -> tuple[Array, Array, PyTree]:
        """The pushforward along tangents of some of the leaves."""
        of_all = [tangents.get(i) for i in range(len(self.leaves))]
        number = max(map(count_tangents, tangents.values()), default=1)
        return self.pushforward(of_all, num_tangents=number)

    def _estimate(self, group: list[int], tangents: dict[int, Any], weigh: Weigh) -> Estimate:
        """That of the leaves in a group, along tangents of these alone."""
        value, derivatives, aux = self._push(tangents)
        dtype = accumulation_dtype(value.dtype)
        dtypes = [accumulation_dtype(self.leaves[i].dtype) for i in group]
        size = sum(self.leaves[i].size for i in group)
        along_each = list(tangents.values())

        def weighed(derivatives: Array, matrix: Callable[[], Array]) -> tuple[Array, list, Array]:
            weights, clip_rate = weigh(derivatives, matrix, size)
            grad = [weighted_sum(v, weights, t) for v, t in zip(along_each, dtypes, strict=True)]
            return weights, grad, clip_rate

        if self._guess is None:
            _, grad, clip_rate = weighed(derivatives, lambda: gram(along_each, dtype))
            return Estimate(value, aux, grad, clip_rate, [])
        guess = [self._guess[i] for i in group]
        direction = unit(guess)
        # Rounded in half precision û is not quite of length 1, so its square goes along.
        length = square(direction).astype(dtype)
        length = jnp.where(length > 0, length, 1)
        _, (slope,), _ = self._push({i: u[None] for i, u in zip(group, direction, strict=True)})
        slope = slope.astype(dtype) / length
        products = along(along_each, direction).astype(dtype)  # ⟨û, v_k⟩
        weights, grad, clip_rate = weighed(
            derivatives.astype(dtype) - slope * products,
            lambda: gram(along_each, dtype) - jnp.outer(products, products) / length,
        )
        length = slope - jnp.dot(weights, products) / length
        grad = [
            g + length.astype(g.dtype) * u.astype(g.dtype)
            for g, u in zip(grad, direction, strict=True)
        ]
        guess_grad = [u.astype(g.dtype) - g for u, g in zip(guess, grad, strict=True)]
        return Estimate(value, aux, grad, clip_rate, guess_grad)

    def _with_exact(self, grad: list[Array]) -> list[Array]:
        """The gradients by all leaves: those by `theta`, and the exact ones."""
        if self._layers is None or not any(self._is_exact):
            return grad
        if (record := current_record()) is not None:
            record.exact.update(dict.fromkeys(self.exact))
        exact = [g.astype(accumulation_dtype(g.dtype)) for g in self._layers.gradient_of_last()]
        return self._merged(grad, exact)
