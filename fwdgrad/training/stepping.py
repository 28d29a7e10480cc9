"""Many training steps in one compiled call.

A call makes up to `steps_per_call` steps in one `lax.while_loop`, which removes the cost of
dispatching them one by one. The number of steps is an argument of the compiled program, so
one program serves calls of every length, and where the calls begin and end (at an
evaluation, at a checkpoint, at the end) changes no bit of the result.

With `steps_per_call=1` there is no loop. That is for the programs that XLA compiles badly
inside one: on a CPU, convolutions, in forward and in reverse mode. `compiler_options` are for
such cases too. `experiments.cost.step_cost` measures the fastest form.

The tangents of all steps of a call are drawn at once, before its loop, if they are small: in a step
of microseconds the few operations of a draw would count.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fwdgrad.training.programs import Programs
from fwdgrad.training.protocols import Estimator, ValueAndGrad
from fwdgrad.util import backend
from fwdgrad.util.trees import Array, PyTree

_MOST_BYTES = 2**24  # drawn ahead: less than a few minibatches
_AUGMENTATION = 2**32 - 1  # with the key of the steps it gives another; no step has this number

# (key, minibatch) -> the minibatch that a step of training sees, of the same shapes and types
Augment = Callable[[Array, PyTree], PyTree]


class State(NamedTuple):
    """The state that a run carries from one step to the next.

    Attributes:
      params, opt_state: the estimator's state (the parameters, and a guess if it has one) and the
        optimizer's.
      step: the number of updates made, int32.
      loss: the last minibatch loss; once it is not finite, no further step is made.
      loss_sum, loss_count: sum and number of the minibatch losses since the last reset.
      report_sum: the sum over all steps of the estimator's report.
    """

    params: PyTree
    opt_state: PyTree
    step: Array
    loss: Array
    loss_sum: Array
    loss_count: Array
    report_sum: dict[str, Array]


class _CompiledStep(NamedTuple):
    """The parts of a `Stepper` that are the same for every seed."""

    value_and_grad: ValueAndGrad
    initial_state: Callable[[PyTree], State]
    program: Callable[..., Any]
    compile_seconds: float


class Stepper(NamedTuple):
    """A compiled training step and its first state.

    Attributes:
      value_and_grad: the estimator.
      state: the state before the first step.
      program: (state, examples, key, indices, count) -> state after `count` steps, or fewer if a
        loss is not finite. `indices`, int32 (steps_per_call, batch_size), are the examples of
        each step. The given state is donated. With `lanes`, state, key and indices are tuples of
        those of each run, and so is the result.
      key: of the steps.
      compile_seconds: the time of compiling.
    """

    value_and_grad: ValueAndGrad
    state: State
    program: Callable[..., Any]
    key: Array
    compile_seconds: float

    def advance(self, state: State, examples: PyTree, indices: np.ndarray, count: int) -> State:
        """Return the state of a run after more steps."""
        return self.program(state, examples, self.key, indices, np.int32(count))


def make_stepper(
    loss: Callable[[PyTree, PyTree], Array],
    init: Callable[[Array], PyTree],
    examples: PyTree,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    batch_size: int,
    steps_per_call: int,
    augment: Augment | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    programs: Programs | None = None,
    lanes: int | None = None,
) -> Stepper:
    """Initialise the state from `seed` and compile the step, with XLA's options if given.

    The seed is an argument of the compiled step, which may so be one of `programs`. With `augment`
    a step sees what that returns for its minibatch, and for a key of the seed and the step. With
    `lanes` the program makes the steps of so many runs of other seeds, each on its own minibatches.
    """
    programs = programs or Programs()
    batch = jax.tree.map(lambda x: x[:batch_size], examples)
    params, steps_key = first_params(init, seed), _keys(seed)[1]

    def compiled() -> _CompiledStep:
        value_and_grad = estimator(loss, has_report=True)
        state_of = jax.jit(partial(_initial_state, value_and_grad, optimizer, steps_key, batch))
        state = jax.eval_shape(state_of, jax.eval_shape(value_and_grad.init, params, batch))
        # Some optimizers (optax.contrib.reduce_on_plateau) want to know the loss as well.
        update = optax.with_extra_args_support(optimizer).update
        function: Any = partial(_advance, value_and_grad, update, augment, steps_per_call)
        indices = jax.ShapeDtypeStruct((steps_per_call, batch_size), jnp.int32)
        of_run: Any = state, steps_key, indices
        if lanes is not None:
            function, of_run = partial(_advance_all, function), [(x,) * lanes for x in of_run]
        state, key, indices = of_run
        count = jax.ShapeDtypeStruct((), jnp.int32)
        start = time.perf_counter()
        program = (
            jax.jit(function, donate_argnums=0)
            .lower(state, examples, key, indices, count)
            .compile(backend.compiler_options(compiler_options))
        )
        return _CompiledStep(value_and_grad, state_of, program, time.perf_counter() - start)

    name = "step" if lanes is None else f"step of {lanes} runs"
    is_new = name not in programs
    step = programs.once(name, compiled)
    # Compiled, so these are copies: the state is donated, and the parameters may be somebody's.
    state = step.initial_state(step.value_and_grad.init(params, batch))
    return Stepper(
        step.value_and_grad,
        state,
        step.program,
        steps_key,
        step.compile_seconds if is_new else 0.0,
    )


def _initial_state(
    value_and_grad: ValueAndGrad,
    optimizer: optax.GradientTransformation,
    key: Array,
    batch: PyTree,
    params: PyTree,
) -> State:
    """Return the state before the first step; of key and batch only the shapes matter."""
    value, _, report = jax.eval_shape(value_and_grad, key, params, batch)
    zero = jnp.zeros((), value.dtype)
    return State(
        params=params,
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        loss=zero,
        loss_sum=zero,
        loss_count=jnp.zeros((), jnp.int32),
        report_sum=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), report),
    )


def _advance(
    value_and_grad: ValueAndGrad,
    update: Callable[..., Any],
    augment: Augment | None,
    steps_per_call: int,
    state: State,
    examples: PyTree,
    steps_key: Array,
    indices: Array,
    count: Array,
) -> State:
    """Make `count` steps, of which each has a key by its number."""

    def step_once(
        state: State, indices: Array, estimate: Callable[..., Any], source: PyTree
    ) -> State:
        batch = minibatch(augment, steps_key, state.step, examples, indices)
        value, grad, report = estimate(source, state.params, batch)
        updates, opt_state = update(grad, state.opt_state, state.params, value=value, grad=grad)
        return State(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            step=state.step + 1,
            loss=value,
            loss_sum=state.loss_sum + value,
            loss_count=state.loss_count + 1,
            report_sum=jax.tree.map(jnp.add, state.report_sum, report),
        )

    steps = state.step + jnp.arange(steps_per_call)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(steps_key, steps)
    if steps_per_call == 1:
        return step_once(state, indices[0], value_and_grad, keys[0])
    batch = minibatch(augment, steps_key, state.step, examples, indices[0])
    estimate, sources = draw_ahead(value_and_grad, keys, state.params, batch)

    def unfinished(carry: tuple[Array, State]) -> Array:
        return (carry[0] < count) & jnp.isfinite(carry[1].loss)

    def body(carry: tuple[Array, State]) -> tuple[Array, State]:
        i, state = carry
        source = jax.tree.map(lambda x: x[i], sources)
        return i + 1, step_once(state, indices[i], estimate, source)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]


def minibatch(
    augment: Augment | None, steps_key: Array, step: Any, examples: PyTree, indices: Array
) -> PyTree:
    """Return the examples that a step sees: those with the indices, augmented if there is a way."""
    batch = jax.tree.map(lambda x: x[indices], examples)
    if augment is None:
        return batch
    key = jax.random.fold_in(steps_key, _AUGMENTATION)
    return augment(jax.random.fold_in(key, step), batch)


def _advance_all(
    of_run: Callable[..., State],
    states: Sequence[State],
    examples: PyTree,
    keys: Sequence[Array],
    indices: Sequence[Array],
    count: Array,
) -> tuple[State, ...]:
    """Make the steps of several runs, `of_run` for one of them, in one program by `jax.vmap`."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *zip(states, keys, indices, strict=True))
    found = jax.vmap(of_run, in_axes=(0, None, 0, 0, None))(
        stacked[0], examples, *stacked[1:], count
    )
    return tuple(jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(states)))


def first_params(init: Callable[[Array], PyTree], seed: int) -> PyTree:
    """Return the parameters that a training with this seed starts from."""
    return init(_keys(seed)[0])


def _keys(seed: int) -> Array:
    """Return the keys of the start and of the steps."""
    return jax.random.split(jax.random.key(seed))


def draw_ahead(value_and_grad: Any, keys: Array, *args: PyTree) -> tuple[Callable[..., Any], Any]:
    """Return the function that the steps of a loop call, and its first argument in each, stacked.

    These are the estimator's `along` and the tangents of all steps if they are small, or else the
    estimator and `keys`. It pushes all tangents at once: see `fwdgrad.util.backend.CPU`.

    Args:
      value_and_grad: the estimator, a `ValueAndGrad`.
      keys: one for each step.
      args: state and minibatch of a step; of the minibatch only the shapes matter.
    """
    at_once = backend.all_tangents_at_once()
    if not value_and_grad.draws_ahead:
        return at_once(value_and_grad), keys
    draw = value_and_grad.draw
    drawn = jax.eval_shape(draw, keys[0], *args)
    if len(keys) * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(drawn)) > _MOST_BYTES:
        return at_once(value_and_grad), keys
    return at_once(value_and_grad.along), jax.vmap(lambda key: draw(key, *args))(keys)
