"""A training step as a compiled program, to be called repeatedly, timed and measured.

The program makes steps as training does (`fwdgrad.training.stepping`: draws ahead of the loop,
parameters donated), on minibatches in memory and with plain SGD, so that derivative and update are
measured.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.measurement.processes import Program
from fwdgrad.training import draw_ahead
from fwdgrad.util import backend
from fwdgrad.util.costs import compile_and_count
from fwdgrad.util.trees import Array, PyTree

_RATE = 1e-6  # so small that parameters hardly change, however often the step is made


class Step(NamedTuple):
    """The operations of a step.

    Attributes:
      value_and_grad: an estimator, or an object with its protocol, that returns a scalar and a
        gradient; its tangents are drawn ahead of a loop as in training.
      update: (its state, the gradient) -> the next state.
    """

    value_and_grad: Any
    update: Callable[[PyTree, PyTree], PyTree]


def sgd_step(value_and_grad: Any) -> Step:
    """Return a training step with an estimator."""
    return Step(value_and_grad, partial(jax.tree.map, lambda p, g: p - _RATE * g))


def loss_step(loss: Callable[[PyTree, PyTree], Array]) -> Step:
    """Return a step that evaluates the loss alone, the unit of relative costs."""
    return Step(Scalar(loss), lambda params, _: params)


class Scalar:
    """A scalar function of params and batch, with the protocol of an estimator but no gradient."""

    draws_ahead = False

    def __init__(self, function: Callable[[PyTree, PyTree], Array]):
        self._function = function

    def init(self, params: PyTree, batch: PyTree) -> PyTree:
        return params

    def __call__(self, key: Array, params: PyTree, batch: PyTree) -> tuple[Array, None]:
        return self._function(params, batch), None


class StepProgram:
    """A compiled call of one or more steps.

    Attributes:
      compile_seconds: the time of compiling.
      temp_bytes: memory besides parameters and arguments, by XLA's account.
      total_bytes: the same with parameters, gradients and state; minibatches are left out.
      operations: floating-point operations of a call, by XLA's account, which counts a loop's body
        once: the operations of a step, for any `steps_per_call`.
    """

    def __init__(
        self,
        step: Step,
        params: PyTree,
        batches: PyTree,
        *,
        steps_per_call: int = 1,
        compiler_options: Mapping[str, Any] | None = None,
    ):
        """Compile the program.

        Args:
          step: the step.
          params: parameters; a copy is kept and updated.
          batches: minibatches, stacked, which the steps take in turns; two at least if there is
            a loop, or XLA moves operations that no update changes out of it.
          steps_per_call: with 1 there is no loop.
          compiler_options: XLA's options, by name.
        """
        self._steps_per_call = steps_per_call
        num_batches = len(jax.tree.leaves(batches)[0])

        def run(params: PyTree, batches: PyTree, keys: Array) -> tuple[PyTree, Array]:
            def batch(i: Any) -> PyTree:
                return jax.tree.map(lambda x: x[i % num_batches], batches)

            if steps_per_call == 1:
                value, grad = step.value_and_grad(keys[0], params, batch(0))
                return step.update(params, grad), value
            estimate, sources = draw_ahead(step.value_and_grad, keys, params, batch(0))

            def body(carry: tuple[PyTree, Array], i: Array) -> tuple[tuple[PyTree, Array], None]:
                params, total = carry
                source = jax.tree.map(lambda x: x[i], sources)
                value, grad = estimate(source, params, batch(i))
                return (step.update(params, grad), total + value), None

            return jax.lax.scan(body, (params, jnp.float32(0)), jnp.arange(steps_per_call))[0]

        keys = jax.random.split(jax.random.key(1), steps_per_call)
        first = jax.tree.map(lambda x: x[0], batches)
        self._params = jax.tree.map(jnp.copy, step.value_and_grad.init(params, first))
        self._arguments = (batches, keys)
        start = time.perf_counter()

        def compile_program() -> Any:
            # keep_unused, or memory leaves some out; and a function of its own, to trace anew.
            program = jax.jit(lambda *args: run(*args), donate_argnums=0, keep_unused=True)
            lowered = program.lower(self._params, *self._arguments)
            return lowered.compile(backend.compiler_options(compiler_options))

        self._compiled, count = compile_and_count(compile_program)
        self.compile_seconds = time.perf_counter() - start
        cost = count()
        self.temp_bytes, self.operations = cost.temporary_bytes, cost.operations
        self.total_bytes = cost.total_bytes - sum(x.nbytes for x in jax.tree.leaves(batches))

    def __call__(self) -> Array:
        self._params, total = self._compiled(self._params, *self._arguments)
        return total

    def timed(self) -> Program:
        """Return the program as `time_in_processes` takes it, with all its attributes as facts."""
        names = ("compile_seconds", "temp_bytes", "total_bytes", "operations")
        return Program(self, self._steps_per_call, {name: getattr(self, name) for name in names})
