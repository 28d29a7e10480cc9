"""The cost of a training step of several `train` configs: time, memory, operations, compilation.

Programs are timed in several fresh processes (`fwdgrad.measurement.processes`). A record holds the
seconds of each turn, and intervals are computed from those.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from omegaconf import DictConfig

from experiments.common import from_config, timings
from experiments.common.budget import measured_once, present
from experiments.common.unrecorded import Training
from fwdgrad.measurement import (
    Interval,
    Program,
    Sample,
    Step,
    StepProgram,
    loss_step,
    ratio_over_processes,
    seconds_over_processes,
    sgd_step,
    time_in_processes,
)
from fwdgrad.records import read_json
from fwdgrad.training import first_examples

STEP_COST = "step_cost"  # the experiment that measures R, and the first name of its files
LOSS = "loss"  # the line of the loss alone
_NUM_BATCHES = 4  # at hand, which the steps take in turns


def step_costs(
    configs: Mapping[str, DictConfig],
    folder: Path,
    *,
    processes: int,
    rounds: int,
    steps_per_call: int | None = None,
    max_seconds: float | None = None,
) -> dict[str, Any]:
    """Time a step of each line and the loss alone, or read the times back.

    The derivative and an update by SGD are timed, on minibatches in memory. Read the result by
    `samples_of`, `seconds`, `relative_cost` and `over_reference`.

    Args:
      configs: line -> `train` config, with the line `backprop` among them. A line `loss` has the
        config of the loss alone; without it, that is backprop's.
      folder: where the measurement is kept.
      processes: fresh processes, of which each times all lines in turns.
      rounds: turns in a process.
      steps_per_call: steps in a compiled call; None: those of each config.
      max_seconds: of timing in a process, after which no further turn begins.

    Returns:
      A record of `measured_once` whose result is that of `time_in_processes`. The facts of a line
      are `compile_seconds`, `operations` of a step, `temp_bytes`, and `total_bytes`: parameters,
      gradients and temporaries.
    """
    lines = {LOSS: configs["backprop"], **configs}
    make = partial(step_programs, lines, steps_per_call)
    form = {"rounds": rounds, "steps_per_call": steps_per_call}
    return _timed("cost", make, lines, folder, processes, form, max_seconds)


def training_costs(
    configs: Mapping[str, DictConfig],
    folder: Path,
    *,
    processes: int,
    rounds: int,
    max_seconds: float | None = None,
) -> dict[str, Any]:
    """Time a step of each line's training, with optimizer and reading of minibatches.

    All lines are in the memory of a process at once, with one copy of the data set.

    Args:
      configs: line -> `train` config; their problems may differ.
      folder, processes, rounds, max_seconds: as in `step_costs`.

    Returns:
      A record of `measured_once` whose result is that of `time_in_processes`, with the fact
      `compile_seconds` alone.
    """
    make = partial(training_programs, dict(configs))
    return _timed("training", make, configs, folder, processes, {"rounds": rounds}, max_seconds)


def _timed(
    label: str,
    make: Any,
    configs: Mapping[str, DictConfig],
    folder: Path,
    processes: int,
    form: Mapping[str, Any],
    max_seconds: float | None,
) -> dict[str, Any]:
    lines = {line: from_config.identity_config(config) for line, config in configs.items()}
    limits = {"processes": processes, "max_seconds": max_seconds}

    def measure() -> dict[str, Any]:
        return time_in_processes(
            make, list(configs), processes=processes, rounds=form["rounds"],
            max_seconds=max_seconds, go_on=present().go_on,
        )  # fmt: skip

    return measured_once(folder, label, {**form, **limits, "lines": lines}, measure)


def step_programs(
    configs: Mapping[str, DictConfig], steps_per_call: int | None, order: Sequence[str]
) -> dict[str, Program]:
    """Return the program of each line's step, compiled in this order."""
    return {
        line: _program(
            _loss_alone(configs[line]) if line == LOSS else _step(configs[line]),
            configs[line],
            _NUM_BATCHES,
            steps_per_call or configs[line].steps_per_call,
        ).timed()
        for line in order
    }


def training_programs(
    configs: Mapping[str, DictConfig], order: Sequence[str]
) -> dict[str, Program]:
    """Return the program of each line's training, compiled in this order."""
    trainings = {line: Training(configs[line]) for line in order}
    return {
        line: Program(
            partial(training.advance, configs[line].steps_per_call),
            configs[line].steps_per_call,
            {"compile_seconds": training.compile_seconds},
        )
        for line, training in trainings.items()
    }


def operations_of_a_step(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Return a record of the floating-point operations of a step, by XLA's account on a CPU.

    On a GPU the account lacks the products and convolutions that libraries compute.
    """
    identity = {"operations_of": from_config.identity_config(config)}
    with jax.default_device(jax.devices("cpu")[0]):
        return measured_once(
            folder, "operations", identity, lambda: _program(_step(config), config, 1, 1).operations
        )


def _loss_alone(config: DictConfig) -> Step:
    return loss_step(from_config.problem(config).loss)


def _step(config: DictConfig) -> Step:
    return sgd_step(from_config.estimator(config)(from_config.problem(config).loss))


def _program(step: Step, config: DictConfig, num_batches: int, steps_per_call: int) -> StepProgram:
    problem, size = from_config.problem(config), config.batch_size
    examples = first_examples(problem.train, num_batches * size)
    number = len(jax.tree.leaves(examples)[0])
    if number < size:
        raise ValueError(
            f"batch_size must be at most the number of training examples, {number}; found {size}."
        )
    whole = number // size  # of a small set fewer minibatches, in turn
    return StepProgram(
        step,
        problem.init(jax.random.key(0)),
        jax.tree.map(lambda x: x[: whole * size].reshape(whole, size, *x.shape[1:]), examples),
        steps_per_call=steps_per_call,
        compiler_options=config.compiler_options,
    )


def samples_of(record: Mapping[str, Any]) -> list[Sample]:
    """Return the seconds of each line, process and turn of a record."""
    return [Sample(*row) for row in record["result"]["samples"]]


def seconds(samples: Sequence[Sample]) -> dict[str, Interval]:
    """Return line -> the seconds of a step, over processes."""
    return {line: seconds_over_processes(samples, line) for line in _lines(samples)}


def relative_cost(samples: Sequence[Sample]) -> dict[str, Interval]:
    """Return line -> the paper's R, the time of a step over that of the loss alone."""
    return over_reference(samples, LOSS)


def over_reference(samples: Sequence[Sample], reference: str = "backprop") -> dict[str, Interval]:
    """Return line -> the ratio of its seconds to those of the line `reference`, over processes."""
    return {line: ratio_over_processes(samples, line, reference) for line in _lines(samples)}


def _lines(samples: Sequence[Sample]) -> list[str]:
    return list(dict.fromkeys(sample.program for sample in samples))


def step_of(config: DictConfig) -> dict[str, Any]:
    """Return the part of a `train` config that decides the cost of the loss of a step."""
    identity = from_config.identity_config(config)
    keys = ("problem", "model", "dataset", "batch_size")
    return {key: identity[key] for key in keys if key in identity}


def read_costs(
    folder: Path, steps: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Return panel -> line (or `loss`) -> quantity -> interval, from the tables of `step_cost`.

    The quantities are `seconds`, `relative_cost` and `over_reference`. Panels of a step that was
    not measured in this folder are left out.

    Args:
      folder: the folder of the tables.
      steps: panel -> `step_of` its config.
    """
    if not (folder / f"{STEP_COST}.json").exists():
        return {}
    measured = read_json(folder / f"{STEP_COST}.json")["panels"]
    samples = timings.read_timings(folder / f"{STEP_COST}_timings.csv", {"panel": str})
    found = {}
    for panel, step in steps.items():
        for name, about in measured.items():
            if about["step"] == step:
                found[panel] = costs_of(samples[name,])
    return found


def costs_of(samples: Sequence[Sample]) -> dict[str, dict[str, Interval]]:
    """Return line -> quantity -> interval of samples that have the lines `loss` and `backprop`."""
    quantities = {
        "seconds": seconds(samples),
        "relative_cost": relative_cost(samples),
        "over_reference": over_reference(samples),
    }
    return {line: {q: x[line] for q, x in quantities.items()} for line in quantities["seconds"]}


def repaid_after(
    seconds: float, compile_seconds: float, of_backprop: float, compile_of_backprop: float
) -> float:
    """Return the steps after which a faster step has made up for its longer compilation.

    They are inf if the step is not faster than backprop's, and nan if a number is not known.

    >>> repaid_after(0.002, 1.5, 0.003, 0.5), repaid_after(0.004, 1.5, 0.003, 0.5)
    (1000, inf)
    """
    more, saved = compile_seconds - compile_of_backprop, of_backprop - seconds
    if math.isnan(more) or not saved > 0:
        return more if math.isnan(more) else math.inf
    return math.ceil(max(0.0, more) / saved)
