"""A run in progress: its state, its rows, its files.

Started again, a run goes on from its last checkpoint, and ends with the same parameters and metrics
to the bit, because everything random is a function of the seed and the number of the step. (To
rounding, if it began in one program with other runs: it goes on alone.) It resumes from the
checkpoint alone, rows included: of the other files, `run.json` is read for its clock, until the run
has finished.
"""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fwdgrad.records import (
    Hold,
    Metrics,
    atomic_write,
    file_sums,
    load_checkpoint,
    provenance,
    read_info,
    save_checkpoint,
    write_json,
    write_metrics,
)
from fwdgrad.training.evaluation import make_evaluate, pack_flags
from fwdgrad.training.minibatches import Minibatches
from fwdgrad.training.programs import Programs
from fwdgrad.training.protocols import TrainableProblem
from fwdgrad.training.resuming import DivergedError
from fwdgrad.training.run_settings import Identity, finite_rate
from fwdgrad.training.stepping import State, Stepper, minibatch
from fwdgrad.util.trees import PyTree


class RunInProgress:
    """A run in progress: the state, the rows so far, and the clock."""

    def __init__(
        self,
        problem: TrainableProblem,
        of_steps: Minibatches,
        stepper: Stepper,
        programs: Programs,
        learning_rate: Callable[[int], Any],
        *,
        identity: Identity,
        folder: Path,
        held: Hold,
        about: dict[str, Any] | None,  # of the checkpoint
        checkpoint_seconds: float,
        together: int | None,  # the number of runs in one program
    ):
        self._problem, self._minibatches = problem, of_steps
        self.stepper, self._learning_rate = stepper, learning_rate
        self._checkpoint_seconds, self._saved = checkpoint_seconds, time.monotonic()
        self._identity, self.folder, self._held = identity, folder, held
        self._settings = identity.settings
        self._params_of = stepper.value_and_grad.params_of
        options = self._settings.compiler_options
        self._evaluate = programs.once("evaluate", lambda: make_evaluate(problem.scores, options))
        self._loss = programs.once("loss", lambda: jax.jit(problem.loss))
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._opened = time.monotonic()
        loaded = load_checkpoint(folder, stepper.state)
        self.state = stepper.state if loaded is None else loaded
        saved = about or {"seconds": 0.0, "rows": [], "sources": []}
        self._seconds = saved["seconds"]
        self._rows = [Metrics(*row) for row in saved["rows"]]
        # run.json is of a later time than the checkpoint, if it is there.
        before = read_info(folder) or about
        self._resumed_at = [*before["resumed_at"], self.step] if before else []
        self._wall_before = (before["wall_seconds"] if before else 0.0) + stepper.compile_seconds
        # Of the wall time each run of a group has its share, so that records can be added up.
        self._share = 1 / (together or 1)
        together = together or saved.get("together")
        self._together = {} if together is None else {"together": together}
        now = provenance(identity.sources)
        self._sources = [*(x for x in saved["sources"] if x != now), now]

    @property
    def step(self) -> int:
        """The number of updates made."""
        return int(self.state.step)

    def next_count(self) -> int:
        """Return the number of steps of the next call, up to a row of the table; 0 at the end."""
        settings, step = self._settings, self.step
        if step >= settings.num_steps:
            return 0
        next_row = (step // settings.eval_every + 1) * settings.eval_every
        return min(settings.steps_per_call, min(next_row, settings.num_steps) - step)

    def block(self, count: int) -> tuple[PyTree, np.ndarray]:
        """Return the examples of the next steps, and their indices."""
        return self._minibatches.block(self.step, count)

    def advance(self, count: int) -> None:
        """Make steps."""
        start = time.perf_counter()
        state = jax.block_until_ready(self.stepper.advance(self.state, *self.block(count), count))
        self.accept(state, time.perf_counter() - start)
        self.check()

    def accept(self, state: State, seconds: float) -> None:
        """Take the state after more steps, which took so long."""
        self.state = state
        self._seconds += seconds

    def check(self) -> None:
        """Raise DivergedError if the last loss is not finite."""
        self._check_finite("training", float(self.state.loss), self.step - 1)

    def begin(self) -> None:
        """Write the files of the run anew, and the first row if there is none.

        Raises:
          DivergedError: the validation loss is not finite.
        """
        self._write_files()
        if not self._rows:
            self._record_row(self._first_loss())

    def record(self) -> None:
        """Write a row and a checkpoint after steps, where they are due.

        Raises:
          DivergedError: the validation loss is not finite.
        """
        step, settings = self.step, self._settings
        if step % settings.eval_every == 0 or step == settings.num_steps:
            self._record_row(float(self.state.loss_sum) / int(self.state.loss_count))
            self._reset_losses()
        if time.monotonic() - self._saved >= self._checkpoint_seconds:
            self._save()
            self.write_info("running")

    def finish(self, read_test_set: bool) -> None:
        """Save the last state, and write that the run has finished."""
        self._save()
        self.write_info("finished", **self._at_the_end(read_test_set))

    def _first_loss(self) -> float:
        examples, indices = self._minibatches.block(0, 1)
        augment = getattr(self._problem, "augment", None)
        batch = minibatch(augment, self.stepper.key, 0, examples, indices[0])
        return float(self._loss(self._params_of(self.state.params), batch))

    def _reset_losses(self) -> None:
        zero = jax.tree.map(np.zeros_like, (self.state.loss_sum, self.state.loss_count))
        loss_sum, loss_count = jax.device_put(zero)
        self.state = self.state._replace(loss_sum=loss_sum, loss_count=loss_count)

    def _record_row(self, train_loss: float) -> None:
        scores, _ = self._evaluate(self._params_of(self.state.params), self._problem.valid)
        row = Metrics(
            step=self.step,
            seconds=self._seconds,
            learning_rate=finite_rate(self._learning_rate, self.step),
            train_loss=train_loss,
            valid_loss=scores["loss"],
            valid_accuracy=scores.get("accuracy", math.nan),
        )
        self._rows.append(row)
        self._held.check()
        write_metrics(self.folder, self._rows)
        self._check_finite("validation", row.valid_loss, row.step)

    def _check_finite(self, which: str, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the {which} loss is {loss} at step {step} (learning rate "
                f"{float(self._learning_rate(step)):.3g}). What was recorded before is kept in "
                f"{self.folder}. Repeat the command of the run with optimizer=sgd_clipped (SGD "
                "after fwdgrad.training.clip_by_running_quantile), or with a lower learning_rate=; "
                "either is a run of its own. Delete the folder to run it once more as it was."
            )

    def _save(self) -> None:
        self._held.check()
        about = {**self._about(), "rows": self._rows, "sources": self._sources}
        save_checkpoint(self.folder, self.state, about)
        self._saved = time.monotonic()

    def _about(self) -> dict[str, Any]:
        """Return the entries that `run.json` and the checkpoint share."""
        return {
            **self._identity.plain(),
            "resumed_at": self._resumed_at,
            "seconds": self._seconds,
            "wall_seconds": self._wall_before + self._share * (time.monotonic() - self._opened),
            "jax": self._sources[-1]["jax"],
            **self._together,
        }

    def _at_the_end(self, read_test_set: bool) -> dict[str, Any]:
        reports = {k: float(v) / self.step for k, v in self.state.report_sum.items()}
        final = {**self._rows[-1]._asdict(), **reports}
        if not read_test_set:
            return {"final": final}
        # The only place that looks at the test set.
        means, of_each = self._evaluate(self._params_of(self.state.params), self._problem.test)
        final |= {f"test_{name}": mean for name, mean in means.items()}
        if "accuracy" not in means:
            return {"final": final}
        return {"final": final, "test_correct": pack_flags(of_each["accuracy"] > 0.5)}

    def _write_files(self) -> None:
        """Write `config.yaml`, `metrics.csv` and `run.json` anew, before the next step."""
        with atomic_write(self.folder / "config.yaml") as file:
            file.write(self._identity.config)
        write_metrics(self.folder, self._rows)
        self.write_info("running")

    def write_info(self, status: str, **more: Any) -> None:
        """Write `run.json`."""
        self._held.check()
        if status != "running":
            more["sums"] = file_sums(self._rows, self._identity.config)
        *earlier, now = self._sources
        info = {
            "status": status,
            "steps_made": self.step,
            "compile_seconds": self.stepper.compile_seconds,
            "started": self._started,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "earlier": earlier,
            **self._about(),
            **more,
            **now,
        }
        write_json(self.folder / "run.json", info)
