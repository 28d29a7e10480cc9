"""A user's loss at its parameters: exact gradient, and each estimator's quality and step."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.diagnostics.abstract_call import Call, compile_step
from fwdgrad.diagnostics.comparison import EstimatorRow
from fwdgrad.diagnostics.estimate_quality import Precision, measure_quality
from fwdgrad.diagnostics.independence import Comparison, compare_examples
from fwdgrad.estimators.backprop import backprop_value_and_grad
from fwdgrad.perturbation.activities import Activities
from fwdgrad.perturbation.loss import Loss, check_unguided
from fwdgrad.propagation.record import Record, recording
from fwdgrad.util import backend
from fwdgrad.util.costs import compile_and_count
from fwdgrad.util.trees import Array, PyTree, extract_leaves, is_differentiable, require_parameters


class ComparedLoss:
    """A loss at its parameters and arguments, all of them on the device.

    Args:
      fun, params, args: the loss, and where it is evaluated.
      compiler_options: XLA's, for all programs.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        params: PyTree,
        args: tuple[Any, ...],
        compiler_options: Mapping[str, Any] | None = None,
    ):
        leaves = jax.tree.leaves((params, args))
        if any(isinstance(x, (jax.ShapeDtypeStruct, jax.core.Tracer)) for x in leaves):
            raise TypeError(
                "params and args must be arrays with values, since compare evaluates the loss; "
                "found a jax.ShapeDtypeStruct, or a tracer of jax.jit or another transformation. "
                "Call compare outside of it; fwdgrad.explain takes shapes."
            )
        check_unguided(params)
        require_parameters(params)
        self._fun, self._options = fun, backend.compiler_options(compiler_options)
        self._params, self._args = jax.tree.map(
            lambda x: jax.device_put(x) if isinstance(x, (np.ndarray, np.generic)) else x,
            (params, args),
        )
        self._call = Call(self._params, self._args)
        # Copies, since each step that is timed updates these in place, by η = 0.
        self._updated = self._copies(self._call)

    @staticmethod
    def _copies(call: Call) -> list[Array]:
        return [jnp.copy(x) for x in call.params]

    def loss_alone(self) -> Callable[[], Any]:
        """Return the compiled loss as a function of nothing."""
        call = self._call

        def value(theta: Sequence[Array], arrays: Sequence[Array]) -> Array:
            params, *args = call.rebuild(theta, arrays)
            loss = Loss(self._fun, params, tuple(args), {}, None)
            return loss.at(loss.theta)[0]

        compiled = jax.jit(value).lower(call.params, call.arrays).compile(self._options)
        return lambda: compiled(call.params, call.arrays)

    def exact_gradient(self) -> tuple[list[Array] | None, str]:
        """Return the leaves of ∇f, or None and the reason."""
        gradient = _leaves_of(backprop_value_and_grad(self._fun), self._call)
        estimate = jax.jit(gradient, compiler_options=self._options)
        try:
            found = jax.block_until_ready(estimate(None, (self._call.params, self._call.arrays)))
        except Exception as error:  # of reverse mode: the loss alone was compiled before
            return None, _reason(error)
        squared = sum(float(np.square(np.asarray(x, float)).sum()) for x in found)
        if squared > 0 and math.isfinite(squared):
            return found, ""
        return None, f"the gradient is {'zero' if squared == 0 else 'not finite'} at these params"

    def measured(
        self,
        name: str,
        value_and_grad: Any,
        key: Array,
        target: Sequence[Array] | None,
        precision: Precision,
    ) -> tuple[EstimatorRow, Callable[[], Any] | None]:
        """Return the row of an estimator without its times, and its step to be timed, if any."""
        try:
            notes = [self._note_on_examples(value_and_grad)]
            state, updated = self._params, self._updated
            if hasattr(value_and_grad, "init"):
                state = value_and_grad.init(self._params, *self._args)
            call = Call(state, self._args)
            if state is not self._params:  # with a guess
                updated = self._copies(call)
            start = time.perf_counter()
            with recording() as record:
                step, count = compile_and_count(
                    lambda: compile_step(value_and_grad, call, key, self._options)
                )
            compile_seconds = time.perf_counter() - start
            notes.append(_note_on_sites(value_and_grad, record))
            estimate = _leaves_of(value_and_grad, call)
            given = (call.params, call.arrays)
            quality = measure_quality(estimate, given, key, target, precision, self._options)
            jax.block_until_ready(step(self._copies(call), key, 0.0, call.arrays))
        except Exception as error:  # of this estimator alone
            return EstimatorRow(name, note=_reason(error)), None
        cost = count()
        row = EstimatorRow(
            name,
            *quality,
            operations=cost.operations,
            total_bytes=cost.total_bytes - sum(x.nbytes for x in call.arrays),
            temporary_bytes=cost.temporary_bytes,
            compile_seconds=compile_seconds,
            note="; ".join(filter(None, notes)),
        )
        if not math.isfinite(quality.variance.value):
            return replace(row, note="an estimate is not finite, so the step was not timed"), None

        def timed_step() -> list[Array]:
            updated[:] = step(updated, key, 0.0, call.arrays)
            return updated

        return row, timed_step

    def _note_on_examples(self, value_and_grad: Any) -> str:
        """Return a note on a loss that is a sum, if the space is `Activities`.

        Raises:
          ValueError: the space does not allow this loss.
        """
        if not isinstance(getattr(value_and_grad, "space", None), Activities):
            return ""
        if self._examples.is_mean:
            return ""
        if self._examples.is_sum:
            return "fun is a sum over the examples, and space=Activities() estimates their mean"
        raise ValueError(self._examples.error_message)

    @cached_property
    def _examples(self) -> Comparison:
        return compare_examples(Loss(self._fun, self._params, self._args, {}, None))


def _note_on_sites(value_and_grad: Any, record: Record) -> str:
    """Return the reasons for which activity perturbation may cost much or find little."""
    noisy = [kind for *_, kind in record.sites or () if kind.startswith("noise")]
    note = f"noisy sites: {len(noisy)}"
    if is_split := bool(noisy) and value_and_grad.space.layerwise:
        note += (
            f", each with {value_and_grad.num_tangents} tangents of its own, pushed forward from "
            "there"
        )
    if shared := noisy.count("noise, one for all"):
        note += (
            f"; {shared} of them parameters themselves (in a scan, in a penalty), whose noise all "
            "examples share"
        )
    return note if is_split or shared else ""


def _leaves_of(value_and_grad: Any, call: Call) -> Callable[..., list[Array]]:
    """Return a function key, (leaves of the state, arrays) -> the leaves of the estimate."""
    params_of = getattr(value_and_grad, "params_of", lambda grad: grad)

    def leaves(key: Array, given: tuple[Sequence[Array], Sequence[Array]]) -> list[Array]:
        grad = value_and_grad(key, *call.rebuild(*given))[1]
        return extract_leaves(params_of(grad), is_differentiable)[0]

    return leaves


def _reason(error: Exception) -> str:
    """Return the type and the first line of an error, and the notes of this library on it."""
    lines = str(error).splitlines()[:1]
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("fwdgrad: ")]
    return " ".join([f"{type(error).__name__}:", *lines, *notes])
