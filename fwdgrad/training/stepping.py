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
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

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


class Programs:
    """The compiled programs of runs that differ in their seeds alone, and so share them.

    The first `train` with such an object compiles; the others take its programs, and record a
    `compile_seconds` of 0.
    """

    def __init__(self) -> None:
        self._of: tuple[Any, ...] | None = None
        self._made: dict[str, Any] = {}

    def check(self, settings: Any, *objects: Any) -> None:
        """Raise ValueError unless settings and objects are those of the first call."""
        if self._of is None:
            self._of = settings, *objects
        first, *others = self._of
        if first != settings or any(x is not y for x, y in zip(others, objects, strict=True)):
            raise ValueError(
                "programs must be of one problem, estimator, optimizer and settings; found others "
                "than those that they were compiled for. Make a Programs() for each."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._made

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the program of this name; make it the first time."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


class _CompiledStep(NamedTuple):
    """The parts of a `Stepper` that are the same for every seed."""

    value_and_grad: ValueAndGrad
    initial_state: Callable[[PyTree], State]
    advance: Callable[[State, PyTree, Array, np.ndarray, np.int32], State]
    compile_seconds: float


class Stepper(NamedTuple):
    """A compiled training step and its first state.

    Attributes:
      value_and_grad: the estimator.
      state: the state before the first step.
      advance: (state, examples, indices, count) -> state after `count` steps, or fewer if a
        loss is not finite. `indices`, int32 (steps_per_call, batch_size), are the examples of
        each step. The given state is donated.
      compile_seconds: the time of compiling.
    """

    value_and_grad: ValueAndGrad
    state: State
    advance: Callable[[State, PyTree, np.ndarray, int], State]
    compile_seconds: float


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
) -> Stepper:
    """Initialise the state from `seed` and compile the step, with XLA's options if given.

    The seed is an argument of the compiled step, which may so be one of `programs`. With `augment`
    a step sees what that returns for its minibatch, and for a key of the seed and the step.
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
        start = time.perf_counter()
        program = (
            jax.jit(
                partial(_advance, value_and_grad, update, augment, steps_per_call),
                donate_argnums=0,
            )
            .lower(
                state,
                examples,
                steps_key,
                jax.ShapeDtypeStruct((steps_per_call, batch_size), jnp.int32),
                jax.ShapeDtypeStruct((), jnp.int32),
            )
            .compile(backend.compiler_options(compiler_options))
        )
        return _CompiledStep(value_and_grad, state_of, program, time.perf_counter() - start)

    is_new = "step" not in programs
    step = programs.once("step", compiled)
    # Compiled, so these are copies: the state is donated, and the parameters may be somebody's.
    state = step.initial_state(step.value_and_grad.init(params, batch))
    return Stepper(
        step.value_and_grad,
        state,
        lambda s, e, i, n: step.advance(s, e, steps_key, i, np.int32(n)),
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

    def minibatch(step: Array, indices: Array) -> PyTree:
        batch = jax.tree.map(lambda x: x[indices], examples)
        if augment is None:
            return batch
        key = jax.random.fold_in(steps_key, _AUGMENTATION)
        return augment(jax.random.fold_in(key, step), batch)

    def step_once(
        state: State, indices: Array, estimate: Callable[..., Any], source: PyTree
    ) -> State:
        batch = minibatch(state.step, indices)
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
    batch = minibatch(state.step, indices[0])
    estimate, sources = draw_ahead(value_and_grad, keys, state.params, batch)

    def unfinished(carry: tuple[Array, State]) -> Array:
        return (carry[0] < count) & jnp.isfinite(carry[1].loss)

    def body(carry: tuple[Array, State]) -> tuple[Array, State]:
        i, state = carry
        source = jax.tree.map(lambda x: x[i], sources)
        return i + 1, step_once(state, indices[i], estimate, source)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), state))[1]


def first_params(init: Callable[[Array], PyTree], seed: int) -> PyTree:
    """Return the parameters that a training with this seed starts from."""
    return init(_keys(seed)[0])


def _keys(seed: int) -> Array:
    """Return the keys of the start and of the steps."""
    return jax.random.split(jax.random.key(seed))


def draw_ahead(value_and_grad: Any, keys: Array, *args: PyTree) -> tuple[Callable[..., Any], Any]:
    """Return the function that the steps of a loop call, and its first argument in each, stacked.

    These are the estimator's `along` and the tangents of all steps if they are small, or else the
    estimator and `keys`.

    Args:
      value_and_grad: the estimator, a `ValueAndGrad`.
      keys: one for each step.
      args: state and minibatch of a step; of the minibatch only the shapes matter.
    """
    if not value_and_grad.draws_ahead:
        return value_and_grad, keys
    draw = value_and_grad.draw
    drawn = jax.eval_shape(draw, keys[0], *args)
    if len(keys) * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(drawn)) > _MOST_BYTES:
        return value_and_grad, keys
    return value_and_grad.along, jax.vmap(lambda key: draw(key, *args))(keys)
