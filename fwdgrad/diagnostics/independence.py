"""Check that each example has a loss of its own, as activity perturbation requires.

space=Activities() evaluates the loss of each example by itself. If examples change each other's
loss (batch normalisation, one dropout key for all), that is another loss function with another
gradient. Tracing cannot find such a loss; comparing numbers can: the loss of some examples in one
minibatch with the mean of their losses in minibatches of one, and the derivatives of both along one
direction. Values alone may agree where gradients do not: before a last layer of zeros, or where a
loss is divided by its own stopped mean.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.perturbation.loss import Loss
from fwdgrad.perturbation.minibatch import noting_minibatches_of_one, number_of_examples
from fwdgrad.propagation.pushforward import Pushforward
from fwdgrad.util import validation
from fwdgrad.util.jax_internals import inner_jaxprs
from fwdgrad.util.trees import Array, PyTree

NUM_EXAMPLES = 64  # that are compared, at most
# The relative differences of losses and of derivatives that count as rounding, by the fewest bits
# of a float in the loss. (Rounding moves a few units over the kink of a ReLU, which changes a
# derivative by more than a loss.)
_ROUNDING = {16: (3e-2, 0.3), 32: (1e-3, 1e-2), 64: (1e-6, 1e-5)}


class Sums(NamedTuple):
    """A number of some examples in one minibatch, and in minibatches of one.

    Attributes:
      joint: that of a minibatch of all of them.
      mean, total: the mean and the sum of those of minibatches of one.
      rounding: the absolute difference that counts as rounding.
    """

    joint: float
    mean: float
    total: float
    rounding: float

    @property
    def is_mean(self) -> bool:
        """True if the joint number is the mean of the others."""
        return self._is_joint(self.mean)

    @property
    def is_sum(self) -> bool:
        """True if the joint number is the sum of the others."""
        return self._is_joint(self.total)

    def _is_joint(self, value: float) -> bool:
        """Return True if a value is the joint number but for rounding, or both are NaN."""
        if not math.isfinite(self.joint) or not math.isfinite(value):
            return self.joint == value or (math.isnan(self.joint) and math.isnan(value))
        return abs(self.joint - value) <= self.rounding

    def __str__(self) -> str:
        return (
            f"{self.joint:.6g}, but the mean of those alone is {self.mean:.6g} (the sum "
            f"{self.total:.6g})"
        )


class Comparison(NamedTuple):
    """The loss of some examples in one minibatch, and in minibatches of one.

    Attributes:
      num_examples: the number of examples.
      loss: the losses.
      slope: their derivatives along one random direction of the parameters.
    """

    num_examples: int
    loss: Sums
    slope: Sums

    @property
    def is_mean(self) -> bool:
        """True if the loss is the mean of the losses of the examples."""
        return self.loss.is_mean and self.slope.is_mean

    @property
    def is_sum(self) -> bool:
        """True if the loss is the sum of the losses of the examples."""
        return self.loss.is_sum and self.slope.is_sum

    def __str__(self) -> str:
        values = f"{self.loss.joint:.6g} of {self.num_examples} examples together"
        if self.is_mean:
            return f"each example has a loss of its own: {values}, {self.loss.mean:.6g} alone"
        if self.is_sum:
            return (
                f"each example has a loss of its own, and fun is their sum: {values}, "
                f"{self.loss.mean:.6g} alone; space=Activities() gives the mean's value and "
                "gradient"
            )
        return self.error_message

    @property
    def error_message(self) -> str:
        """The message of the error: the numbers that differ, usual reasons, and remedies."""
        found = f"the loss of {self.num_examples} examples together is {self.loss}"
        if self.loss.is_mean:
            found = (
                f"the derivative of the loss of {self.num_examples} examples together, along a "
                f"random direction, is {self.slope}, though the losses agree"
            )
        return (
            "fun mixes the examples of a minibatch, and space=Activities() evaluates each by "
            f"itself: {found}. Usual "
            "reasons: batch normalisation in training mode (use its running averages, or layer or "
            "group norm); one key of dropout or noise for all examples (pass one for each, by "
            "position: jax.random.split(key, N)); losses that rank, pair, weigh or normalise over "
            "the minibatch; a prior or penalty that is added to a sum over examples (take the "
            "mean, and divide the penalty by the size of the data set); graphs that are batched "
            "into one. space=Weights() works for any loss."
        )


def check_examples_independent(
    fun: Callable[..., Any],
    params: PyTree,
    *args: Any,
    has_aux: bool = False,
    **kwargs: Any,
) -> None:
    """Raise ValueError if the examples of a minibatch change each other's loss.

    `space=Activities()` requires independent examples and cannot find a violation itself. The check
    compares the loss of up to 64 examples together with the mean of their losses in minibatches of
    one, and the derivatives of both along one random direction of the parameters. Call it once
    before training, outside of `jit`; it evaluates the loss and a derivative twice.

    A loss that is the sum over the examples passes, too: value and gradient of `Activities` are
    then those of the mean, 1/N of those of `fun`. A sum with a penalty that is added once does not
    pass. Nor does a loss whose random numbers depend on the shape of the minibatch, because in
    minibatches of one all examples get the same numbers. A minibatch of one always passes. Give a
    minibatch as in training: examples that are all the same, or sequences without padding, do not
    show how they would change each other's loss.

    Relative differences of losses up to 1e-3 (3e-2 in half precision) count as rounding, and of
    derivatives up to 1e-2 (0.3).

    Args:
      fun, params, args, has_aux, kwargs: as in `forward_value_and_grad(fun)(key, params, *args)`.

    Raises:
      TypeError: an argument has no value, as inside of `jax.jit`.
      ValueError: the examples are not independent, or `args` have no common minibatch axis.

    >>> x = jnp.arange(6.0).reshape(3, 2)
    >>> check_examples_independent(lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones(2), x)
    >>> check_examples_independent(lambda w, x: jnp.var(x @ w), jnp.ones(2), x)
    Traceback (most recent call last):
    ...
    ValueError: fun mixes the examples of a minibatch, ...
    """
    validation.check_callable(fun)
    comparison = compare_examples(Loss(fun, params, args, kwargs, has_aux))
    if not comparison.is_mean and not comparison.is_sum:
        raise ValueError(comparison.error_message)


def compare_examples(loss: Loss) -> Comparison:
    """Return the comparison of the joint loss of some examples with their single losses."""
    size = number_of_examples(loss.args, loss.kwargs)
    leaves, structure = jax.tree.flatten(loss.args)
    if any(isinstance(x, jax.core.Tracer) for x in (*loss.theta, *leaves)):
        raise TypeError(
            "check_examples_independent compares values, and inside of jax.jit or another "
            "transformation arguments have none; call it before, outside of the transformation."
        )
    if size == 0:
        raise ValueError("the arguments after params have no examples, so none can be compared.")
    count = min(size, NUM_EXAMPLES)
    chosen = np.arange(count) * size // count  # spread, because examples may be sorted by class
    examples = [jnp.asarray(x)[chosen] for x in leaves]

    def duals(theta: list[Array], examples: list[Array]) -> list[tuple[Array, Array]]:
        def joint(theta: Sequence[Array]) -> tuple[Array, PyTree]:
            return loss.of(theta, jax.tree.unflatten(structure, examples))

        def alone(theta: Sequence[Array]) -> tuple[Array, None]:
            return losses_alone(loss, theta, examples, structure), None

        return [_dual(loss, fun, theta) for fun in (joint, alone)]

    with noting_minibatches_of_one(), jax.default_matmul_precision("highest"):
        traced = jax.jit(duals).trace(loss.theta, examples)
        joint, alone = traced.lower().compile()(loss.theta, examples)
    rounding = _ROUNDING[min(_bits(traced.jaxpr.jaxpr), 64)]
    return Comparison(count, *map(_sums, joint, alone, rounding))


def _dual(loss: Loss, fun: Callable[..., Any], theta: Sequence[Array]) -> tuple[Array, Array]:
    """Return the values of a function, which evaluates a loss, and their derivatives.

    The derivatives are along signs, the same for each function.
    """
    keys = jax.random.split(jax.random.key(0), len(theta))
    signs = [
        jax.random.rademacher(key, (1, *x.shape), x.dtype)
        for key, x in zip(keys, theta, strict=True)
    ]
    values, slopes, _ = Pushforward(loss.trace(fun, theta), theta, loss.names)(signs)
    return values, slopes[0]


def _sums(joint: Array, alone: Array, share: float) -> Sums:
    """Return the comparison of a number, with a share of rounding."""
    found = np.asarray(alone, np.float64)
    with np.errstate(invalid="ignore"):  # of numbers that are not finite
        scale = max(abs(float(joint)), float(np.abs(found).mean()))
    rounding = share * scale if math.isfinite(scale) else 0.0
    return Sums(float(joint), float(found.mean()), float(found.sum()), rounding)


def losses_alone(
    loss: Loss, theta: Sequence[Array], examples: Sequence[Array], structure: Any
) -> Array:
    """Return the losses (n,) of n examples, each in a minibatch of one.

    Args:
      loss: the loss; its own arguments are not used.
      theta: the leaves of the parameters.
      examples: the leaves of the arguments, with the minibatch axis in front.
      structure: the treedef of the arguments.
    """

    def alone(one: list[Array]) -> Array:
        return loss.of(theta, jax.tree.unflatten(structure, [x[None] for x in one]))[0]

    return jax.vmap(alone)([jnp.asarray(x) for x in examples])


def _bits(jaxpr: Any) -> int:
    """Return the fewest bits of a floating-point value in a jaxpr, from 16 to 64."""
    bits = [64]
    for equation in jaxpr.eqns:
        for v in equation.outvars:
            dtype = getattr(v.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                bits.append(max(jnp.finfo(dtype).bits, 16))
        bits.extend(map(_bits, inner_jaxprs(equation)))
    return min(bits)
