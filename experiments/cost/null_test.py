"""The null test of the times: python -m experiments.cost.null_test

One program under two names: the interval of the ratio of their times must hold 1. And the library
beside the same step written by hand with `jax.jvp`, which XLA compiles to the same operations. All
three are timed in turns in several fresh processes; the whole is repeated. Leaves `timings.csv` (a
row for each repeat, program, process and turn), `null_test.json` (in how many repeats the interval
holds 1, and the machine's state at the start of each process) and README.md.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax import Array
from omegaconf import DictConfig

import fwdgrad
from experiments.common import commands, costs, from_config, jobs, settings, tables, timings
from fwdgrad.measurement import (
    Interval,
    Program,
    StepProgram,
    measured_once,
    sgd_step,
    time_in_processes,
)
from fwdgrad.records import atomic_write, hold, read_json
from fwdgrad.training import first_examples
from fwdgrad.util.trees import PyTree

NAME = "null_test"
LIBRARY, AGAIN, BY_HAND = "library", "library-again", "by_hand"
_NUM_BATCHES = 2


class ByHand:
    """The forward gradient with a normal tangent, spelled out, with the protocol of an estimator.

    Args:
      loss: params, batch -> a scalar.
    """

    draws_ahead = True

    def __init__(self, loss: Callable[..., Array]):
        self._loss = loss

    def init(self, params: PyTree, batch: PyTree) -> PyTree:
        return params

    def draw(self, key: Array, params: PyTree, batch: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        draws = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, draws)

    def along(self, tangent: PyTree, params: PyTree, batch: PyTree) -> tuple[Array, PyTree]:
        value, derivative = jax.jvp(lambda p: self._loss(p, batch), (params,), (tangent,))
        return value, jax.tree.map(lambda v: derivative * v, tangent)

    def __call__(self, key: Array, params: PyTree, batch: PyTree) -> tuple[Array, PyTree]:
        return self.along(self.draw(key, params, batch), params, batch)


def programs(cfg: DictConfig, order: Sequence[str]) -> dict[str, Program]:
    """Return the three programs, compiled in this order."""
    problem, size = from_config.problem(cfg), cfg.batch_size
    batches = jax.tree.map(
        lambda x: x.reshape(_NUM_BATCHES, size, *x.shape[1:]),
        first_examples(problem.train, _NUM_BATCHES * size),
    )
    library = fwdgrad.forward_value_and_grad
    makers: dict[str, Callable[..., Any]] = {LIBRARY: library, AGAIN: library, BY_HAND: ByHand}
    params = problem.init(jax.random.key(0))
    return {
        name: StepProgram(
            sgd_step(makers[name](problem.loss)),
            params,
            batches,
            steps_per_call=cfg.steps_per_call,
            compiler_options=cfg.model.get("compiler_options"),
        ).timed()
        for name in order
    }


def run(cfg: DictConfig, folder: Path) -> None:
    """Make every repeat, or read it back, and write the tables."""
    form = {key: cfg[key] for key in ("batch_size", "steps_per_call", "processes", "rounds")}
    model, dataset = jobs.to_plain(cfg.model.make), jobs.to_plain(cfg.dataset)
    records = {}
    for repeat in range(cfg.repeats):
        measure = partial(
            time_in_processes,
            partial(programs, cfg),
            (LIBRARY, AGAIN, BY_HAND),
            processes=cfg.processes,
            rounds=cfg.rounds,
            seed=1000 * repeat,
        )
        identity = {**form, "model": model, "dataset": dataset, "repeat": repeat}
        records[repeat,] = measured_once(folder / "runs", NAME, identity, measure)
        ratio = costs.over_reference(costs.samples_of(records[repeat,]), LIBRARY)
        print(f"repeat {repeat + 1}: again {ratio[AGAIN]}, by hand {ratio[BY_HAND]}")
    timings.write_timings(folder / "timings.csv", records, ["repeat"])
    ratios = _ratios(folder)
    jobs.write_information(
        folder,
        NAME,
        ["timings"],
        {
            "model": cfg.model.name,
            **form,
            "holds_1": sum(holds_1(repeat[AGAIN]) for repeat in ratios),
            "repeats": len(ratios),
            "processes_of_repeats": timings.processes_of(records),
            **jobs.provenance_of(records.values()),
        },
    )


def _ratios(folder: Path) -> list[dict[str, Interval]]:
    """Return for each repeat the ratios to the library, computed from the raw times."""
    samples = timings.read_timings(folder / "timings.csv", {"repeat": int})
    return [costs.over_reference(of_repeat, LIBRARY) for of_repeat in samples.values()]


def holds_1(ratio: Interval) -> bool:
    """Return whether there is an interval and it holds 1."""
    return ratio.low <= 1 <= ratio.high


def describe(folder: Path) -> str:
    """Return the verdict and the ratios of each repeat in Markdown."""
    information, ratios = read_json(folder / f"{NAME}.json"), _ratios(folder)
    rows = [(i + 1, ratio[AGAIN], ratio[BY_HAND]) for i, ratio in enumerate(ratios)]
    lines = [
        "## The null test of the times",
        "",
        f"One training step of the model {information['model']} (minibatch "
        f"{information['batch_size']}, dense normal tangents), compiled twice: the interval of the "
        f"ratio of the two times holds 1 in {information['holds_1']} of {len(ratios)} repeats. "
        "Beside it the same step written by hand with `jax.jvp`, over the library's. Geometric "
        f"means over n = {information['processes']} fresh processes with 95 % intervals "
        f"(Student's t of the logarithms); a process gives the median over {information['rounds']} "
        "turns ([raw times](timings.csv)).",
        "",
        *tables.markdown(("repeat", "the same program again", "written by hand"), rows),
    ]
    return "\n".join(lines)


@commands.with_config(NAME)
def command(cfg: DictConfig) -> None:
    folder = settings.root(cfg)
    with hold(folder):
        run(cfg, folder)
        with atomic_write(folder / "README.md") as file:
            file.write(f"{describe(folder)}\n")


if __name__ == "__main__":
    commands.start("experiments.cost.null_test")
