"""The training loop of every estimator, model and optimizer.

The loop knows an estimator by a protocol, `fwdgrad.training.ValueAndGrad`, and a problem
as parameters, loss and examples. It can be killed at any moment: started again, it goes on from the
last checkpoint (`run_in_progress`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from fwdgrad.records import Hold, RunRecord, hold, read_run
from fwdgrad.training.minibatches import is_loader, minibatches
from fwdgrad.training.programs import Programs
from fwdgrad.training.protocols import Estimator, TrainableProblem
from fwdgrad.training.resuming import DivergedError, check_checkpoint, finished_run
from fwdgrad.training.run_in_progress import RunInProgress
from fwdgrad.training.run_settings import Identity, Settings, check_arguments
from fwdgrad.training.stepping import make_stepper


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
    found = train_together(
        problem, estimator, optimizer, learning_rate, settings, {seed: (folder, config)},
        checkpoint_seconds=checkpoint_seconds, show_progress=show_progress, sources=sources,
        accept_other_code=accept_other_code, read_test_set=read_test_set, programs=programs,
    )[seed]  # fmt: skip
    if isinstance(found, DivergedError):
        raise found
    return found


def train_together(
    problem: TrainableProblem,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[int], Any],
    settings: Settings,
    runs: Mapping[int, tuple[Path, str]],
    *,
    checkpoint_seconds: float = 30.0,
    show_progress: bool | None = None,
    sources: Sequence[Path] = (),
    accept_other_code: bool = False,
    read_test_set: bool = True,
    programs: Programs | None = None,
) -> dict[int, RunRecord | DivergedError]:
    """Train with several seeds, and return the record of each, or its `DivergedError`.

    Runs that begin now make their steps in one program, by `jax.vmap`. It is meant for small runs
    on a GPU, which leave most of it idle. Their numbers are those of `train` to rounding, but for
    the training seconds, which are those of all; `run.json` says how many were trained `together`.
    Runs that go on from a checkpoint, and those of a loader, are trained one by one.

    Args:
      runs: seed -> its folder, and the text of its `config.yaml`.
      problem, estimator, optimizer, learning_rate, settings, checkpoint_seconds, show_progress,
        sources, accept_other_code, read_test_set, programs: as of `train`.

    Raises:
      CheckpointError, RecordError, FolderInUseError, TypeError, ValueError: as of `train`.
    """
    for seed in runs:
        check_arguments(seed, checkpoint_seconds, show_progress, learning_rate, settings.num_steps)
    programs = programs or Programs()
    programs.check(settings, problem, estimator, optimizer)
    found: dict[int, RunRecord | DivergedError] = {}
    due: list[_Due] = []
    with ExitStack() as holds:
        for seed, (folder, config) in runs.items():
            identity = Identity(seed, settings, config, tuple(sources))
            if (record := _finished(identity, folder)) is None:
                held = holds.enter_context(hold(folder))
                record = _finished(identity, folder)  # just now
            if record is not None:
                found[seed] = record
                continue
            plain = identity.plain(), identity.sources, accept_other_code
            due.append(_Due(identity, folder, held, check_checkpoint(folder, *plain)))
        examples = problem.train
        if not is_loader(examples):
            examples = jax.tree.map(jnp.asarray, examples)  # on the device, once for all runs
        fresh = [run for run in due if run.about is None and not is_loader(examples)]
        groups = [fresh] if fresh else []
        for group in [*groups, *([run] for run in due if run not in fresh)]:
            in_progress = _in_progress(
                problem, examples, estimator, optimizer, learning_rate, group, programs,
                float(checkpoint_seconds),
            )  # fmt: skip
            found |= _advance_to_end(in_progress, settings, show_progress, read_test_set)
            del in_progress  # its arrays, before the next group's are made
    return {seed: found[seed] for seed in runs}


class _Due(NamedTuple):
    """A run that has not finished; `about` is of its checkpoint, None if there is none."""

    identity: Identity
    folder: Path
    held: Hold
    about: dict[str, Any] | None


def _finished(identity: Identity, folder: Path) -> RunRecord | DivergedError | None:
    known: dict[str, Any] = {"settings": identity.settings, "sources": identity.sources}
    try:
        return finished_run(folder, seed=identity.seed, **known)
    except DivergedError as error:
        return error.with_traceback(None)


def _in_progress(
    problem: TrainableProblem,
    examples: Any,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[int], Any],
    group: Sequence[_Due],
    programs: Programs,
    checkpoint_seconds: float,
) -> dict[int, RunInProgress]:
    """Return the runs of a group by seed; of several the program makes the steps of all."""
    together = len(group) if len(group) > 1 else None
    runs = {}
    for identity, folder, held, about in group:
        settings, seed = identity.settings, identity.seed
        sizes = {"batch_size": settings.batch_size, "steps_per_call": settings.steps_per_call}
        of_steps = minibatches(examples, seed=seed, **sizes)
        stepper = make_stepper(
            problem.loss, problem.init, of_steps.block(0, 1)[0], estimator, optimizer, seed=seed,
            augment=getattr(problem, "augment", None), programs=programs, lanes=together,
            compiler_options=settings.compiler_options, **sizes,
        )  # fmt: skip
        runs[seed] = RunInProgress(
            problem, of_steps, stepper, programs, learning_rate, identity=identity, folder=folder,
            held=held, about=about, checkpoint_seconds=checkpoint_seconds, together=together,
        )  # fmt: skip
    return runs


def _advance_to_end(
    runs: Mapping[int, RunInProgress],
    settings: Settings,
    show_progress: bool | None,
    read_test_set: bool,
) -> dict[int, RunRecord | DivergedError]:
    """Make the steps of runs that are at the same step; where one diverges the others go on."""
    found: dict[int, RunRecord | DivergedError] = {}

    def each(action: Callable[[RunInProgress], None]) -> None:
        for seed, run in runs.items():
            if seed not in found:
                try:
                    action(run)
                except DivergedError as error:
                    run.write_info("diverged", message=str(error))
                    # Its traceback holds this frame, and so the states of all runs.
                    found[seed] = error.with_traceback(None)

    each(RunInProgress.begin)
    first = next(iter(runs.values()))
    name = first.folder.parent.name + (f", {len(runs)} seeds" if len(runs) > 1 else "")
    with tqdm(
        total=settings.num_steps,
        initial=first.step,
        desc=name,
        unit="step",
        disable=None if show_progress is None else not show_progress,
        leave=False,
    ) as bar:
        while going := [run for seed, run in runs.items() if seed not in found]:
            if not (count := going[0].next_count()):
                break
            if len(runs) > 1:
                _advance_together([*runs.values()], count)
                each(RunInProgress.check)
            else:
                each(lambda run: run.advance(count))
            each(RunInProgress.record)
            bar.set_postfix(loss=f"{float(going[0].state.loss):.4f}", refresh=False)
            bar.update(count)
    for seed, run in runs.items():
        if seed not in found:
            run.finish(read_test_set)
            record = read_run(run.folder)
            assert record is not None  # finish wrote it
            found[seed] = record
    return found


def _advance_together(runs: Sequence[RunInProgress], count: int) -> None:
    """Make steps of all runs, also of those that have diverged, whose numbers nobody reads."""
    start = time.perf_counter()
    blocks = [run.block(count) for run in runs]
    states = runs[0].stepper.program(
        tuple(run.state for run in runs),
        blocks[0][0],
        tuple(run.stepper.key for run in runs),
        tuple(indices for _, indices in blocks),
        np.int32(count),
    )
    jax.block_until_ready(states)
    seconds = time.perf_counter() - start
    for run, state in zip(runs, states, strict=True):
        run.accept(state, seconds)
