"""Check that each example has a loss of its own, as activity perturbation requires.

space=Activities() evaluates the loss of each example by itself. If examples change each other's
loss (batch normalisation, one dropout key for all), that is another loss function with another
gradient. Tracing cannot find such a loss; comparing values can: the loss of some examples in one
minibatch with the mean of their losses in minibatches of one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.perturbation.loss import Loss
from fwdgrad.perturbation.minibatch import noting_minibatches_of_one, number_of_examples
from fwdgrad.util import validation
from fwdgrad.util.jax_internals import inner_jaxprs
from fwdgrad.util.trees import Array, PyTree

NUM_EXAMPLES = 8  # that are compared
# The relative difference that counts as rounding, by the fewest bits of a float in the loss.
_ROUNDING = {16: 3e-2, 32: 1e-3, 64: 1e-6}


class Comparison(NamedTuple):
    """The loss of some examples in one minibatch, and in minibatches of one.

    Attributes:
      num_examples: the number of examples.
      joint: the loss of a minibatch of all of them.
      mean, total: the mean and the sum of the losses in minibatches of one.
      rounding: the absolute difference that counts as rounding.
    """

    num_examples: int
    joint: float
    mean: float
    total: float
    rounding: float

    @property
    def is_mean(self) -> bool:
        """True if the loss is the mean of the losses of the examples."""
        return self._same(self.mean)

    @property
    def is_sum(self) -> bool:
        """True if the loss is the sum of the losses of the examples."""
        return self._same(self.total)

    def _same(self, value: float) -> bool:
        """Return True if a value is the joint loss but for rounding, or both are NaN."""
        if not math.isfinite(self.joint) or not math.isfinite(value):
            return math.isnan(self.joint) == math.isnan(value)
        return abs(self.joint - value) <= self.rounding

    def __str__(self) -> str:
        values = f"{self.joint:.6g} of {self.num_examples} examples together"
        if self.is_mean:
            return f"each example has a loss of its own: {values}, {self.mean:.6g} alone"
        if self.is_sum:
            return (
                f"each example has a loss of its own, and fun is their sum: {values}, "
                f"{self.mean:.6g} alone; space=Activities() gives the mean's value and gradient"
            )
        return self.error_message

    @property
    def error_message(self) -> str:
        """The message of the error: both losses, usual reasons, and remedies."""
        return (
            "fun mixes the examples of a minibatch, and space=Activities() evaluates each by "
            f"itself: the loss of {self.num_examples} examples together is {self.joint:.6g}, but "
            f"the mean of their losses alone is {self.mean:.6g} (the sum {self.total:.6g}). Usual "
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
    compares the loss of up to 8 examples together with the mean of their losses in minibatches of
    one. Call it once before training, outside of `jit`; it evaluates the loss twice.

    A loss that is the sum over the examples passes, too: value and gradient of `Activities` are
    then those of the mean, 1/N of those of `fun`. A sum with a penalty that is added once does not
    pass. Nor does a loss whose random numbers depend on the shape of the minibatch, because in
    minibatches of one all examples get the same numbers. A minibatch of one always passes.

    Relative differences up to 1e-3 (3e-2 in half precision) count as rounding.

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
    count = min(size, NUM_EXAMPLES)
    chosen = np.arange(count) * size // count  # spread, because examples may be sorted by class
    examples = [jnp.asarray(x)[chosen] for x in leaves]

    def values(theta: list[Array], examples: list[Array]) -> tuple[Array, Array]:
        joint = loss.of(theta, jax.tree.unflatten(structure, examples))[0]
        return joint, losses_alone(loss, theta, examples, structure)

    with noting_minibatches_of_one(), jax.default_matmul_precision("highest"):
        traced = jax.jit(values).trace(loss.theta, examples)
        joint, alone = traced.lower().compile()(loss.theta, examples)
    found = np.asarray(alone, np.float64)
    share = _ROUNDING[min(_bits(traced.jaxpr.jaxpr), 64)]
    with np.errstate(invalid="ignore"):  # of losses that are not finite
        scale = max(abs(float(joint)), float(np.abs(found).mean()))
    rounding = share * scale if math.isfinite(scale) else 0.0
    return Comparison(count, float(joint), float(found.mean()), float(found.sum()), rounding)


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
