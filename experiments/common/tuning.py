"""Tuning: a learning rate chosen on the validation set, in the same way for every method.

The recorded protocol tries a grid, each rate once, so that all methods have the same rates and the
same number of runs; a search (`+search=optuna` of `experiments.train`) would give each its own.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import DictConfig

from experiments.common import from_config
from fwdgrad.measurement import Interval
from fwdgrad.records import RunRecord
from fwdgrad.training import DivergedError

SEED = 1000  # of none of the runs that follow
# (learning rate, seed, whether it is a run for tuning) -> the run's config
MakeConfig = Callable[[float, int, bool], DictConfig]


class Tuned(NamedTuple):
    """A method at its best learning rate.

    Attributes:
      tried: rate -> the minimised metric after tuning; inf if the run failed.
      failed: rate -> the number of seeds with which a run failed, of the rates that were trained:
        0 of the chosen rate, more of better rates that were given up.
      others: the information of the tuning runs, and of runs at rates that were given up.
      runs: seed -> the run at the chosen rate.
      config: the config of one of these runs.
    """

    tried: dict[float, float]
    failed: dict[float, int]
    others: list[dict[str, Any]]
    runs: dict[int, RunRecord]
    config: DictConfig

    def columns(self) -> list[tuple[float, float, int | str]]:
        """Return (rate, minimised metric, number of failed seeds where known), for each rate."""
        return [(rate, loss, self.failed.get(rate, "")) for rate, loss in self.tried.items()]


def tune_and_train(
    make_config: MakeConfig,
    rates: Iterable[float],
    seeds: Iterable[int],
    note: Callable[[str], None],
    minimised: Callable[[Mapping[str, Any]], float] = lambda final: final["valid_loss"],
) -> Tuned:
    """Try every rate with one seed; train every seed at the best rate at which no run fails.

    Args:
      make_config: makes the `train` config of a run.
      rates: the learning rates to try.
      seeds: the seeds to train.
      note: a function that is called with a line on each run.
      minimised: a function from a run's final metrics to the minimised one.

    Raises:
      DivergedError: at every rate a run fails.
    """
    seeds = list(seeds)
    tried: dict[float, float] = {}
    failed: dict[float, int] = {}
    others = []
    for rate in rates:
        tried[rate], information = _try(make_config(rate, SEED, True), minimised)
        others.append(information)
    for rate in sorted((r for r in tried if math.isfinite(tried[r])), key=lambda r: tried[r]):
        runs = {}
        for seed in seeds:
            config = make_config(rate, seed, False)
            try:
                runs[seed] = from_config.run(config)
            except DivergedError as error:
                note(f"seed {seed}: {error}")
            else:
                note(from_config.summary(runs[seed]))
        failed[rate] = sum(seed not in runs or _has_failed(runs[seed]) for seed in seeds)
        if not failed[rate]:
            return Tuned(tried, failed, others, runs, config)
        others += [from_config.recorded_info(make_config(rate, seed, False)) for seed in seeds]
    raise DivergedError(f"runs fail at every rate of {list(tried)}; add smaller ones.")


def _has_failed(run: RunRecord) -> bool:
    """Return whether a run ends above its start: it has diverged, even if its loss is finite."""
    return run.metrics[-1].valid_loss > run.metrics[0].valid_loss


def _try(
    config: DictConfig, minimised: Callable[[Mapping[str, Any]], float]
) -> tuple[float, dict[str, Any]]:
    """Return the minimised metric of a run, inf if the run fails, and the run's information."""
    try:
        record = from_config.run(config)
    except DivergedError:
        return math.inf, from_config.recorded_info(config)
    return math.inf if _has_failed(record) else minimised(record.info["final"]), record.info


class Rates(NamedTuple):
    """The learning rates of a method, read back from a table of `Tuned.columns`.

    Attributes:
      tried: rate -> the minimised metric, inf where the run failed.
      chosen: the rate of the runs.
      given_up: rate -> the number of seeds with which a run failed, of better rates.
    """

    tried: dict[float, float]
    chosen: float
    given_up: dict[float, int]

    @property
    def is_at_the_end(self) -> bool:
        """Return whether the chosen rate is an end of the grid, so that the best may lie beyond."""
        return len(self.tried) > 1 and self.chosen in (min(self.tried), max(self.tried))

    def over(self, other: "Rates") -> Interval:
        """Return the ratio of the chosen rates, with the interval of one grid step for each."""
        (low, rate, high), (other_low, other_rate, other_high) = self._around(), other._around()
        return Interval(rate / other_rate, low / other_high, high / other_low, 1)

    def _around(self) -> tuple[float, float, float]:
        grid = sorted(self.tried)
        i = grid.index(self.chosen)
        return grid[max(i - 1, 0)], self.chosen, grid[min(i + 1, len(grid) - 1)]

    def __str__(self) -> str:
        edge = " (end of the grid)" if self.is_at_the_end else ""
        lost = (f"; given up {rate:g}: {n} failed" for rate, n in self.given_up.items())
        return f"{self.chosen:g}{edge}{''.join(lost)}"


def read_rates(rows: pd.DataFrame, minimised: str) -> dict[str, Rates]:
    """Return estimator -> `Rates`, from rows with the columns of `Tuned.columns`.

    Args:
      rows: with the columns estimator, learning_rate, failed_seeds, and
      minimised: the name of the other one.
    """
    found = {}
    for estimator, line in rows.set_index("learning_rate").groupby("estimator", sort=False):
        failed = line["failed_seeds"].dropna().astype(int)
        given_up = failed[failed > 0].to_dict()
        found[str(estimator)] = Rates(line[minimised].to_dict(), failed.idxmin(), given_up)
    return found
