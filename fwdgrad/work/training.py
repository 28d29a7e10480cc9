"""The training loop: one for every estimator, every model and every optimizer.

The loop knows an estimator by its call, (key, params, batch) -> (value, grad, report), and a
problem as parameters, loss and examples. It can be killed at any moment: started again, it
goes on from the last checkpoint, and ends with the same parameters and metrics to the bit,
because everything random is a function of the seed and the number of the step.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from tqdm import tqdm

from fwdgrad.core.checks import check_positive_integer
from fwdgrad.core.trees import Array, PyTree
from fwdgrad.work.checkpoints import load_checkpoint, save_checkpoint
from fwdgrad.work.evaluation import make_evaluate
from fwdgrad.work.files import atomic_write, remove_leftovers
from fwdgrad.work.provenance import provenance
from fwdgrad.work.records import (
    Metrics,
    RunRecord,
    read_metrics,
    read_run,
    write_json,
    write_metrics,
)
from fwdgrad.work.stepping import Batches, Estimator, State, Stepper, make_stepper


class DivergedError(FloatingPointError):
    """A loss was no longer finite."""


class TrainableProblem(Protocol):
    """What the loop needs of a problem; `fwdgrad.problems.Problem` is one."""

    @property
    def train(self) -> PyTree: ...

    @property
    def valid(self) -> PyTree: ...

    @property
    def test(self) -> PyTree: ...

    def init(self, key: Array) -> PyTree: ...

    def scores(self, params: PyTree, batch: PyTree) -> dict[str, Array]: ...

    def loss(self, params: PyTree, batch: PyTree) -> Array: ...


@dataclass(frozen=True)
class Settings:
    """How long and in what pieces to train.

    Attributes:
      num_steps: the number of updates.
      batch_size: examples in a minibatch.
      eval_every: steps between two rows of `metrics.csv`.
      steps_per_call: the most steps in one compiled call (see `fwdgrad.work.stepping`).
      compiler_options: XLA's, by name, for compiling the step.
    """

    num_steps: int
    batch_size: int
    eval_every: int
    steps_per_call: int
    compiler_options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "eval_every", "steps_per_call"):
            check_positive_integer(name, getattr(self, name))


class _Progress(NamedTuple):
    """What a checkpoint holds."""

    state: State
    seconds: np.ndarray  # of training so far, float64


def train(
    problem: TrainableProblem,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[int], Any],
    settings: Settings,
    *,
    seed: int,
    folder: Path,
    config: str = "",
    checkpoint_seconds: float = 30.0,
    show_progress: bool | None = None,
) -> RunRecord:
    """Trains, or goes on training, and returns the record of the finished run.

    Args:
      problem: parameters, loss and examples.
      estimator: loss function, has_report=True -> value and gradient, for example
        `fwdgrad.forward_value_and_grad` or a `functools.partial` of it.
      optimizer: any optax optimizer; its update is given the loss as `value` too, but not the
        loss function, so line searches and L-BFGS do not work.
      learning_rate: step -> rate, only for the record; the optimizer has its own.
      settings: how long and in what pieces.
      seed: for the initial parameters, the order of the examples and the tangents.
      folder: where the run is recorded. If it holds a finished run, that is returned as it is;
        if it holds an unfinished one, training goes on from its last checkpoint.
      config: the text of `config.yaml`, for the record.
      checkpoint_seconds: the least time between two checkpoints.
      show_progress: whether to draw a progress bar; None: if the output is a terminal.

    Raises:
      DivergedError: a loss is not finite. What was recorded before stays in `folder`.
      CheckpointError: the checkpoint in `folder` is damaged.
      ValueError: `seed` is negative, or `folder` holds a run of another seed or settings.
    """
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0; found {seed!r}.")
    if (record := read_run(folder)) is not None:
        _check_same_run(record, settings, seed)
    if (record := finished_run(folder)) is not None:
        return record
    remove_leftovers(folder)
    stepper = make_stepper(
        problem.loss,
        problem.init,
        problem.train,
        estimator,
        optimizer,
        seed=seed,
        batch_size=settings.batch_size,
        steps_per_call=settings.steps_per_call,
        compiler_options=settings.compiler_options,
    )
    run = _Run(problem, stepper, learning_rate, settings, seed, folder)
    with atomic_write(folder / "config.yaml") as file:
        file.write(config)
    run.write_info("running")
    try:
        run.advance_to_end(checkpoint_seconds, show_progress)
    except DivergedError as error:
        run.write_info("diverged", message=str(error))
        raise
    record = finished_run(folder)
    assert record is not None  # advance_to_end wrote it
    return record


def _check_same_run(record: RunRecord, settings: Settings, seed: int) -> None:
    found = {"seed": record.info["seed"], **record.info["settings"]}
    wanted = {"seed": seed, **asdict(settings)}
    if different := [f"{k} {found.get(k)}" for k in wanted if found.get(k) != wanted[k]]:
        raise ValueError(
            f"folder {record.folder} holds another run, with {', '.join(different)}. Name another "
            "folder, or delete this one."
        )


def finished_run(folder: Path) -> RunRecord | None:
    """The record of the run in `folder` if it has finished, None if it has not.

    Raises:
      DivergedError: it has diverged, with the message of that time.
    """
    record = read_run(folder)
    if record is not None and record.info["status"] == "diverged":
        raise DivergedError(record.info["message"])
    return record if record is not None and record.info["status"] == "finished" else None


class _Run:
    """A run under way: the state, the rows so far, and the clock."""

    def __init__(
        self,
        problem: TrainableProblem,
        stepper: Stepper,
        learning_rate: Callable[[int], Any],
        settings: Settings,
        seed: int,
        folder: Path,
    ):
        self._problem, self._stepper, self._learning_rate = problem, stepper, learning_rate
        self._settings, self._seed, self._folder = settings, seed, folder
        num_examples = jax.tree.leaves(problem.train)[0].shape[0]
        self._batches = Batches(num_examples, settings.batch_size, seed)
        self._evaluate = make_evaluate(problem.scores, settings.compiler_options)
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._opened = time.monotonic() - stepper.compile_seconds
        progress = _Progress(stepper.state, np.zeros(()))
        progress = load_checkpoint(folder, progress) or progress
        self._state, self._seconds = progress.state, float(progress.seconds)
        before = read_run(folder)
        self._resumed_at = [*before.info["resumed_at"], self._step] if before else []
        self._wall_before = before.info["wall_seconds"] if before else 0.0
        # A row is written before the checkpoint that follows it, so there may be rows of steps
        # that this run has yet to repeat, but none is missing.
        self._rows = [row for row in read_metrics(folder) if row.step <= self._step]

    @property
    def _step(self) -> int:
        return int(self._state.step)

    def advance_to_end(self, checkpoint_seconds: float, show_progress: bool | None) -> None:
        settings = self._settings
        if not self._rows:
            self._record_row(self._first_loss())
        saved = time.monotonic()
        with tqdm(
            total=settings.num_steps,
            initial=self._step,
            desc=self._folder.parent.name,
            unit="step",
            disable=None if show_progress is None else not show_progress,
            leave=False,
        ) as bar:
            while (step := self._step) < settings.num_steps:
                next_row = (step // settings.eval_every + 1) * settings.eval_every
                row_due = min(next_row, settings.num_steps)
                self._advance(min(settings.steps_per_call, row_due - step))
                if self._step == row_due:
                    self._record_row(float(self._state.loss_sum) / int(self._state.loss_count))
                    self._reset_losses()
                if time.monotonic() - saved >= checkpoint_seconds:
                    self._save()
                    self.write_info("running")
                    saved = time.monotonic()
                bar.set_postfix(loss=f"{float(self._state.loss):.4f}", refresh=False)
                bar.update(self._step - step)
        self._save()
        self.write_info("finished", final=self._final_metrics())

    def _advance(self, count: int) -> None:
        step = self._step
        start = time.perf_counter()
        indices = self._batches.indices(step, count, capacity=self._settings.steps_per_call)
        self._state = jax.block_until_ready(
            self._stepper.advance(self._state, self._problem.train, indices, count)
        )
        self._seconds += time.perf_counter() - start
        self._check_finite("training", float(self._state.loss), self._step - 1)

    def _first_loss(self) -> float:
        indices = self._batches.indices(0, 1, capacity=1)[0]
        batch = jax.tree.map(lambda x: x[indices], self._problem.train)
        return float(jax.jit(self._problem.loss)(self._state.params, batch))

    def _reset_losses(self) -> None:
        zero = jax.tree.map(np.zeros_like, (self._state.loss_sum, self._state.loss_count))
        loss_sum, loss_count = jax.device_put(zero)
        self._state = self._state._replace(loss_sum=loss_sum, loss_count=loss_count)

    def _record_row(self, train_loss: float) -> None:
        scores = self._evaluate(self._state.params, self._problem.valid)
        row = Metrics(
            step=self._step,
            seconds=self._seconds,
            learning_rate=float(self._learning_rate(self._step)),
            train_loss=train_loss,
            valid_loss=scores["loss"],
            valid_accuracy=scores["accuracy"],
        )
        self._rows.append(row)
        write_metrics(self._folder, self._rows)
        self._check_finite("validation", row.valid_loss, row.step)

    def _check_finite(self, which: str, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the {which} loss is {loss} at step {step} (learning rate "
                f"{float(self._learning_rate(step)):.3g}). What was recorded before is kept in "
                f"{self._folder}. Lower the learning rate, or clip the directional derivative "
                "(clip of forward_value_and_grad); delete the folder to run it once more."
            )

    def _save(self) -> None:
        save_checkpoint(self._folder, _Progress(self._state, np.asarray(self._seconds)))

    def _final_metrics(self) -> dict[str, float]:
        # The only place that looks at the test set.
        test = self._evaluate(self._state.params, self._problem.test)
        reports = {k: float(v) / self._step for k, v in self._state.report_sum.items()}
        return {
            **self._rows[-1]._asdict(),
            "test_loss": test["loss"],
            "test_accuracy": test["accuracy"],
            **reports,
        }

    def write_info(self, status: str, **more: Any) -> None:
        """Writes `run.json`."""
        write_json(
            self._folder / "run.json",
            {
                "status": status,
                "seed": self._seed,
                "settings": asdict(self._settings),
                "steps_made": self._step,
                "resumed_at": self._resumed_at,
                "seconds": self._seconds,
                "compile_seconds": self._stepper.compile_seconds,
                "wall_seconds": self._wall_before + time.monotonic() - self._opened,
                "started": self._started,
                "written": datetime.now(UTC).isoformat(timespec="seconds"),
                **more,
                **provenance(),
            },
        )
