"""How many training steps pay off in one compiled call: python -m experiments.steps_per_call

For each model and estimator, the time of a step in calls of several lengths, in turns. A long
call saves the dispatch of its steps, but XLA compiles some programs badly inside a loop. The
`steps_per_call` of configs/model/*.yaml are the winners on two CPU cores; measure anew for
another machine. Leaves `steps_per_call.csv`, a row for each model, estimator and length.
"""

from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments import train
from fwdgrad.work import Interval, interleaved_seconds, median_interval
from fwdgrad.work.records import write_table
from fwdgrad.work.stepping import Batches, make_stepper

COLUMNS = ("model", "estimator", "steps_per_call", "ms_per_step", "low", "high", "turns")


def run(cfg: DictConfig) -> list[tuple[Any, ...]]:
    """Times every combination, and writes and returns the rows of the table."""
    rows = []
    for model, lengths in cfg.candidates.items():
        timed = {
            (line, length): _Calls(
                hydra.compose(
                    "train",
                    overrides=[
                        f"model={model}",
                        f"dataset={cfg.dataset.name}",
                        *overrides,
                        f"steps_per_call={length}",
                    ],
                )
            )
            for line, overrides in cfg.lines.items()
            for length in lengths
        }
        seconds = interleaved_seconds(timed, rounds=cfg.rounds)
        for (line, length), samples in seconds.items():
            interval: Interval = median_interval(1e3 * samples / length)
            rows.append((model, line, length, *interval))
            print(f"{model:10} {line:20} {length:4} steps a call: {interval} ms a step")
    write_table(Path(cfg.output.root) / "steps_per_call.csv", COLUMNS, rows)
    return rows


class _Calls:
    """One compiled call after the other, as training makes them."""

    def __init__(self, cfg: DictConfig):
        problem = train.problem(cfg)
        self._examples, self._length = problem.train, cfg.steps_per_call
        self._indices = Batches(len(problem.train[1]), cfg.batch_size, 0).indices(
            0, self._length, capacity=self._length
        )
        self._stepper = make_stepper(
            problem.loss,
            problem.init,
            problem.train,
            instantiate(cfg.estimator.value_and_grad, _convert_="all"),
            instantiate(cfg.optimizer, _convert_="all"),
            seed=0,
            batch_size=cfg.batch_size,
            steps_per_call=self._length,
        )
        self._state = self._stepper.state

    def __call__(self) -> Any:
        self._state = self._stepper.advance(
            self._state, self._examples, self._indices, self._length
        )
        return self._state


@hydra.main(version_base="1.3", config_path="../configs", config_name="steps_per_call")
def main(cfg: DictConfig) -> None:
    run(cfg)


if __name__ == "__main__":
    main()
