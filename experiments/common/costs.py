"""The cost of a training step of several `train` configs."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from omegaconf import DictConfig

from experiments.common import from_config, tables
from fwdgrad.measurement import (
    Interval,
    Step,
    StepProgram,
    interleaved_seconds,
    loss_step,
    measured_once,
    median_interval,
    relative_costs,
    sgd_step,
)
from fwdgrad.records import write_table

_COLUMNS: tables.Columns = {"panel": str, "estimator": str, "quantity": str}
_NUM_BATCHES = 4  # at hand, which the steps take in turns


def step_costs(
    configs: Mapping[str, DictConfig], folder: Path, *, rounds: int, steps_per_call: int
) -> dict[str, Any]:
    """Time a step of each line beside the loss alone, all in turns, or read the times back.

    Args:
      configs: line -> `train` config, with the line `backprop` among them.
      folder: where the measurement is kept.
      rounds: how often each is timed.
      steps_per_call: steps in a compiled call.

    Returns:
      A record of `measured_once` whose result is line -> quantity -> interval, for the lines and
      `loss`; the quantities are those of `relative_costs`.
    """
    form = {"rounds": rounds, "steps_per_call": steps_per_call}
    lines = {line: from_config.identity_config(config) for line, config in configs.items()}

    def measure() -> dict[str, Any]:
        some = configs["backprop"]
        steps = {"loss": (loss_step(from_config.problem(some).loss), some)}
        steps.update({line: (_step(config), config) for line, config in configs.items()})
        programs = {
            name: _program(*step, _NUM_BATCHES, steps_per_call) for name, step in steps.items()
        }
        costs = relative_costs(programs, rounds=rounds, unit="loss", reference="backprop")
        return {name: {q: i._asdict() for q, i in c.items()} for name, c in costs.items()}

    return measured_once(folder, "cost", {**form, "lines": lines}, measure)


def training_costs(
    config: DictConfig, reference: DictConfig, folder: Path, *, rounds: int
) -> dict[str, Any]:
    """Time a step of two trainings in turns, with optimizer and reading of minibatches.

    Args:
      config, reference: `train` configs; their problems may differ.
      folder, rounds: as in `step_costs`.

    Returns:
      A record of `measured_once` whose result is quantity -> interval: `seconds` of a step, and
      `over_reference`, the ratio.
    """
    configs = {"line": config, "reference": reference}
    identity = {name: from_config.identity_config(c) for name, c in configs.items()}

    def measure() -> dict[str, Any]:
        training = from_config.Training(config)
        other = training if reference == config else from_config.Training(reference)
        calls = {
            "line": partial(training.advance, config.steps_per_call),
            "reference": partial(other.advance, reference.steps_per_call),
        }
        timed = interleaved_seconds(calls, rounds=rounds)
        seconds, others = (timed[name] / c.steps_per_call for name, c in configs.items())
        found = {"seconds": seconds, "over_reference": seconds / others}
        return {quantity: median_interval(x)._asdict() for quantity, x in found.items()}

    return measured_once(folder, "training", {"rounds": rounds, **identity}, measure)


def operations_of_a_step(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Return a record of the floating-point operations of a step, by XLA's account."""
    identity = {"operations_of": from_config.identity_config(config)}
    return measured_once(
        folder, "operations", identity, lambda: _program(_step(config), config, 1, 1).operations
    )


def _step(config: DictConfig) -> Step:
    return sgd_step(from_config.estimator(config)(from_config.problem(config).loss))


def _program(step: Step, config: DictConfig, num_batches: int, steps_per_call: int) -> StepProgram:
    problem, size = from_config.problem(config), config.batch_size
    batches = jax.tree.map(
        lambda x: x[: num_batches * size].reshape(num_batches, size, *x.shape[1:]), problem.train
    )
    return StepProgram(
        step,
        problem.init(jax.random.key(0)),
        batches,
        steps_per_call=steps_per_call,
        compiler_options=config.compiler_options,
    )


def write_costs(path: Path, costs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write panel -> record of `step_costs` as a tidy table."""
    rows = [
        (panel, estimator, quantity, *(interval[field] for field in Interval._fields))
        for panel, record in costs.items()
        for estimator, quantities in record["result"].items()
        for quantity, interval in quantities.items()
    ]
    write_table(path, [*_COLUMNS, *tables.INTERVAL], rows)


def read_costs(path: Path) -> dict[str, dict[str, dict[str, Interval]]]:
    """Return panel -> estimator (or `loss`) -> quantity -> interval."""
    return tables.read_intervals(path, _COLUMNS)
