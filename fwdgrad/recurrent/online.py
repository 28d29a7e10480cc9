"""Online gradients: one estimate a step, in memory that does not grow with the sequence.

A recurrent program s_t, ℓ_t = F(θ, s_{t−1}, x_t) has the gradient

    g_t = dℓ_t/dθ = ∂ℓ_t/∂θ + ∂ℓ_t/∂s_{t−1} J_{t−1},
    J_t = ds_t/dθ = ∂s_t/∂s_{t−1} J_{t−1} + ∂s_t/∂θ,    J_0 = 0.

The influence J is n × d, for n entries of the state and d parameters. Real-time recurrent learning
carries it whole. Here a cheap form of it is carried, whose mean is J.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from fwdgrad.recurrent.sketch import Sketch
from fwdgrad.recurrent.step import StepAt
from fwdgrad.util.trees import Array, PyTree
from fwdgrad.util.validation import check_has, check_key


@runtime_checkable
class Influence(Protocol):
    """A form in which the influence J of the parameters on the state is carried."""

    def first(self, key: Array, step: StepAt) -> PyTree:
        """Return the form of J = 0, a pytree of arrays."""

    def advance(
        self, key: Array, step: StepAt, carried: PyTree
    ) -> tuple[PyTree, PyTree, Array, list[Array]]:
        """Return the form after a step, the new state, ℓ, and the gradient of ℓ by θ's leaves."""


class OnlineCarry(NamedTuple):
    """The state and the estimator's own numbers, from one update to the next.

    Attributes:
      state: the state of the program, after the last step.
      key: of the random signs to come.
      influence: of the parameters on the state, in the form of the estimator.
    """

    state: PyTree
    key: Array
    influence: PyTree


@dataclass(frozen=True, eq=False)
class OnlineGradient:
    """An online estimator of a gradient; see `fwdgrad.online`."""

    step_fn: Callable[..., Any]
    influence: Influence

    def __post_init__(self) -> None:
        if not callable(self.step_fn):
            raise TypeError(
                "step_fn must be a function, step_fn(params, state, x) -> (state, value); found "
                f"{type(self.step_fn).__name__}."
            )
        needed = ["first", "advance"]
        check_has("influence", self.influence, needed, "fwdgrad.Sketch()")

    def init(self, key: Array, params: PyTree, state: PyTree, x: PyTree) -> OnlineCarry:
        """Return the carry before the first step.

        Args:
          key: a typed PRNG key, for all steps to come.
          params: any pytree; its floating leaves are θ.
          state: the state before the first step, which does not depend on θ: a pytree of arrays.
          x: an input like those to come. `Sketch` looks at it for the units that parameters move.

        Raises:
          TypeError, ValueError: `step_fn` does not return (state, value), with a state like the
            one it was given; `key` is not one typed key; no leaf is a floating-point array.
        """
        check_key(key)
        key, first = jax.random.split(key)
        step = StepAt(self.step_fn, params, state, x)
        step.check()
        return OnlineCarry(state, key, self.influence.first(first, step))

    def update(
        self, carry: OnlineCarry, params: PyTree, x: PyTree
    ) -> tuple[OnlineCarry, Array, PyTree]:
        """Make a step; return the new carry, ℓ, and the estimate of its gradient.

        Args:
          carry: of `init` or of the update before.
          params: θ, which may differ from those of the step before.
          x: the input of this step.

        Returns:
          (carry, value, grad), grad a pytree like `params`, as `forward_value_and_grad` returns it.
        """
        if not isinstance(carry, OnlineCarry):
            raise TypeError(
                "carry must be an OnlineCarry, as init(key, params, state, x) returns; found "
                f"{type(carry).__name__}."
            )
        key, now = jax.random.split(carry.key)
        step = StepAt(self.step_fn, params, carry.state, x)
        influence, state, value, of_leaves = self.influence.advance(now, step, carry.influence)
        return OnlineCarry(state, key, influence), value, step.gradient(of_leaves)


def online(step_fn: Callable[..., Any], influence: Influence = Sketch()) -> OnlineGradient:
    """Return an online estimator of the gradient of a recurrent program, step by step.

    E[grad_t] = dℓ_t/dθ, through all steps since `init`, if θ is the same at each of them (and if
    the form of the influence is not one that says it is biased). So the sum of the estimates has
    the gradient of the sum of the values as its mean, which is what backprop through time
    computes. Memory does not grow with the number of steps. If θ changes
    between steps, the influence of the older values is carried on, as in real-time recurrent
    learning.

    Args:
      step_fn: `step_fn(params, state, x)` returns (state, value): the new state, a pytree of the
        same structure, shapes and dtypes, and a real scalar. One sequence: map `update` over a
        minibatch, `jax.vmap(learner.update, in_axes=(0, None, 0))`, and average.
      influence: the form in which J = ds/dθ is carried:

        - `Sketch(rank, num_random)`: a cheap guess of J that is carried exactly, and a sketch of
          the rest. Pulls cotangents back through one step at a time.
        - `RankOne()`: unbiased online recurrent optimization (UORO).
        - `CarriedTangents()`: tangents of the parameters, and those of the state that follow from
          them. Forward mode alone, so the step may have loops that reverse mode cannot go through.

    Returns:
      An object with two methods, both pure, for `jit`, `scan` and `vmap`:
      `init(key, params, state, x)` returns a carry, and
      `update(carry, params, x)` returns (carry, value, grad). `carry.state` is the state.

    Raises:
      TypeError: `step_fn` is not a function; `influence` is not a form of the influence.

    >>> import jax.numpy as jnp
    >>> def step(params, state, x):
    ...     state = jnp.tanh(params["w"] @ state + x)
    ...     return state, jnp.sum(state**2)
    >>> learner = online(step, Sketch(rank=2, num_random=1))
    >>> params, xs = {"w": jnp.eye(3)}, jnp.ones((5, 3))
    >>> carry = learner.init(jax.random.key(0), params, jnp.zeros(3), xs[0])
    >>> def update(carry, x):
    ...     carry, value, grad = learner.update(carry, params, x)
    ...     return carry, (value, grad)
    >>> carry, (values, grads) = jax.lax.scan(update, carry, xs)
    >>> values.shape, grads["w"].shape
    ((5,), (5, 3, 3))

    Source: R. Williams and D. Zipser, A Learning Algorithm for Continually Running Fully Recurrent
    Neural Networks (1989), of the recursion for J.
    """
    return OnlineGradient(step_fn, influence)
