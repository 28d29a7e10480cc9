"""The training loop of every estimator, model and optimizer.

The loop knows an estimator by a protocol, `fwdgrad.training.ValueAndGrad`, and a problem
as parameters, loss and examples. It can be killed at any moment: started again, it goes on from the
last checkpoint, and ends with the same parameters and metrics to the bit, because everything random
is a function of the seed and the number of the step. It resumes from the checkpoint alone, rows
included: the other files are written, and not read, until the run has finished.
"""

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from fwdgrad.records import (
    Hold,
    Metrics,
    RunRecord,
    atomic_write,
    file_sums,
    hold,
    load_checkpoint,
    provenance,
    read_info,
    read_run,
    save_checkpoint,
    write_json,
    write_metrics,
)
from fwdgrad.training.evaluation import make_evaluate, pack_flags
from fwdgrad.training.minibatches import Minibatches, minibatches
from fwdgrad.training.protocols import Estimator, TrainableProblem
from fwdgrad.training.resuming import DivergedError, check_checkpoint, finished_run
from fwdgrad.training.run_settings import Identity, Settings, check_arguments, finite_rate
from fwdgrad.training.stepping import Programs, Stepper, make_stepper


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
    sources: Sequence[Path] = (),
    accept_other_code: bool = False,
    read_test_set: bool = True,
    programs: Programs | None = None,
) -> RunRecord:
    """Train, or resume training, and return the record of the finished run.

    Args:
      problem: parameters, loss and examples, which are arrays on the device or loaders; with
        `augment`, where it has one, for the minibatches of training.
      estimator: loss function, has_report=True -> value and gradient, for example
        `fwdgrad.forward_value_and_grad` or a `functools.partial` of it.
      optimizer: any optax optimizer; its update is given the loss as `value` too, but not the
        loss function, so line searches and L-BFGS do not work.
      learning_rate: step -> rate, only for the record; the optimizer has its own.
      settings: the length and the pieces of the training.
      seed: the seed of the initial parameters, the order of the examples and the tangents.
      folder: the folder of the run's record. A finished run in it is returned; an unfinished one is
        resumed from its last checkpoint. One process holds the folder at a time.
      config: the text of `config.yaml`, for the record.
      checkpoint_seconds: the least time between two checkpoints.
      show_progress: draw a progress bar; None: if the output is a terminal.
      sources: Python files besides those of fwdgrad whose code makes the numbers.
      accept_other_code: resume a run that was begun with other code or other versions of the
        packages that compute. The record names both.
      read_test_set: record the means of the test set's scores, and, if they have an accuracy, the
        examples that the trained parameters classify rightly (`test_correct`, a text of base 64, a
        bit an example). Runs that choose a learning rate leave the test set alone.
      programs: compiled programs to share with runs of other seeds; None: they are compiled.

    Raises:
      DivergedError: a loss is not finite. The record so far stays in `folder`.
      CheckpointError: the checkpoint in `folder` is damaged.
      RecordError: another file in `folder` is damaged, and cannot be made again.
      FolderInUseError: another process holds `folder`.
      TypeError, ValueError: an argument is wrong, or `folder` holds a run of another seed,
        other settings or settings of JAX, or an unfinished one of other code.

    Warns:
      OtherCodeWarning: the finished run was made with other code or other versions.
    """
    check_arguments(seed, checkpoint_seconds, show_progress, learning_rate, settings.num_steps)
    programs = programs or Programs()
    programs.check(settings, problem, estimator, optimizer)
    identity = Identity(seed, settings, config, tuple(sources))
    known: dict[str, Any] = {"seed": seed, "settings": settings, "sources": sources}
    if (record := finished_run(folder, **known)) is not None:
        return record
    with hold(folder) as held:
        if (record := finished_run(folder, **known)) is not None:  # just now
            return record
        about = check_checkpoint(folder, identity.plain(), identity.sources, accept_other_code)
        sizes = {"batch_size": settings.batch_size, "steps_per_call": settings.steps_per_call}
        of_steps = minibatches(problem.train, seed=seed, **sizes)
        stepper = make_stepper(
            problem.loss, problem.init, of_steps.block(0, 1)[0], estimator, optimizer, seed=seed,
            augment=getattr(problem, "augment", None), programs=programs,
            compiler_options=settings.compiler_options, **sizes,
        )  # fmt: skip
        of_run = identity, folder, held, about
        run = _Run(problem, of_steps, stepper, programs, learning_rate, *of_run)
        run.write_files()
        try:
            run.advance_to_end(float(checkpoint_seconds), show_progress, read_test_set)
        except DivergedError as error:
            run.write_info("diverged", message=str(error))
            raise
    record = read_run(folder)
    assert record is not None  # advance_to_end wrote it
    return record


class _Run:
    """A run in progress: the state, the rows so far, and the clock."""

    def __init__(
        self,
        problem: TrainableProblem,
        of_steps: Minibatches,
        stepper: Stepper,
        programs: Programs,
        learning_rate: Callable[[int], Any],
        identity: Identity,
        folder: Path,
        held: Hold,
        about: dict[str, Any] | None,  # of the checkpoint
    ):
        self._problem, self._minibatches = problem, of_steps
        self._stepper, self._learning_rate = stepper, learning_rate
        self._identity, self._folder, self._held = identity, folder, held
        self._settings = identity.settings
        self._params_of = stepper.value_and_grad.params_of
        options = self._settings.compiler_options
        self._evaluate = programs.once("evaluate", lambda: make_evaluate(problem.scores, options))
        self._loss = programs.once("loss", lambda: jax.jit(problem.loss))
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._opened = time.monotonic() - stepper.compile_seconds
        loaded = load_checkpoint(folder, stepper.state)
        self._state = stepper.state if loaded is None else loaded
        saved = about or {"seconds": 0.0, "rows": [], "sources": []}
        self._seconds = saved["seconds"]
        self._rows = [Metrics(*row) for row in saved["rows"]]
        # run.json is of a later time than the checkpoint, if it is there.
        before = read_info(folder) or about
        self._resumed_at = [*before["resumed_at"], self._step] if before else []
        self._wall_before = before["wall_seconds"] if before else 0.0
        now = provenance(identity.sources)
        self._sources = [*(x for x in saved["sources"] if x != now), now]

    @property
    def _step(self) -> int:
        return int(self._state.step)

    def advance_to_end(
        self, checkpoint_seconds: float, show_progress: bool | None, read_test_set: bool
    ) -> None:
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
        self.write_info("finished", **self._at_the_end(read_test_set))

    def _advance(self, count: int) -> None:
        step = self._step
        start = time.perf_counter()
        examples, indices = self._minibatches.block(step, count)
        self._state = jax.block_until_ready(
            self._stepper.advance(self._state, examples, indices, count)
        )
        self._seconds += time.perf_counter() - start
        self._check_finite("training", float(self._state.loss), self._step - 1)

    def _first_loss(self) -> float:
        examples, indices = self._minibatches.block(0, 1)
        batch = jax.tree.map(lambda x: x[indices[0]], examples)
        return float(self._loss(self._params_of(self._state.params), batch))

    def _reset_losses(self) -> None:
        zero = jax.tree.map(np.zeros_like, (self._state.loss_sum, self._state.loss_count))
        loss_sum, loss_count = jax.device_put(zero)
        self._state = self._state._replace(loss_sum=loss_sum, loss_count=loss_count)

    def _record_row(self, train_loss: float) -> None:
        scores, _ = self._evaluate(self._params_of(self._state.params), self._problem.valid)
        row = Metrics(
            step=self._step,
            seconds=self._seconds,
            learning_rate=finite_rate(self._learning_rate, self._step),
            train_loss=train_loss,
            valid_loss=scores["loss"],
            valid_accuracy=scores.get("accuracy", math.nan),
        )
        self._rows.append(row)
        self._held.check()
        write_metrics(self._folder, self._rows)
        self._check_finite("validation", row.valid_loss, row.step)

    def _check_finite(self, which: str, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the {which} loss is {loss} at step {step} (learning rate "
                f"{float(self._learning_rate(step)):.3g}). What was recorded before is kept in "
                f"{self._folder}. Repeat the command of the run with optimizer=sgd_clipped (SGD "
                "after fwdgrad.training.clip_by_running_quantile), or with a lower learning_rate=; "
                "either is a run of its own. Delete the folder to run it once more as it was."
            )

    def _save(self) -> None:
        self._held.check()
        about = {**self._about(), "rows": self._rows, "sources": self._sources}
        save_checkpoint(self._folder, self._state, about)

    def _about(self) -> dict[str, Any]:
        """Return the entries that `run.json` and the checkpoint share."""
        return {
            **self._identity.plain(),
            "resumed_at": self._resumed_at,
            "seconds": self._seconds,
            "wall_seconds": self._wall_before + time.monotonic() - self._opened,
            "jax": self._sources[-1]["jax"],
        }

    def _at_the_end(self, read_test_set: bool) -> dict[str, Any]:
        reports = {k: float(v) / self._step for k, v in self._state.report_sum.items()}
        final = {**self._rows[-1]._asdict(), **reports}
        if not read_test_set:
            return {"final": final}
        # The only place that looks at the test set.
        means, of_each = self._evaluate(self._params_of(self._state.params), self._problem.test)
        final |= {f"test_{name}": mean for name, mean in means.items()}
        if "accuracy" not in means:
            return {"final": final}
        return {"final": final, "test_correct": pack_flags(of_each["accuracy"] > 0.5)}

    def write_files(self) -> None:
        """Write `config.yaml`, `metrics.csv` and `run.json` anew, before the next step."""
        with atomic_write(self._folder / "config.yaml") as file:
            file.write(self._identity.config)
        write_metrics(self._folder, self._rows)
        self.write_info("running")

    def write_info(self, status: str, **more: Any) -> None:
        """Write `run.json`."""
        self._held.check()
        if status != "running":
            more["sums"] = file_sums(self._rows, self._identity.config)
        *earlier, now = self._sources
        info = {
            "status": status,
            "steps_made": self._step,
            "compile_seconds": self._stepper.compile_seconds,
            "started": self._started,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "earlier": earlier,
            **self._about(),
            **more,
            **now,
        }
        write_json(self._folder / "run.json", info)
