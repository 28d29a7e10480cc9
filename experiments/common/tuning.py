"""Tuning: a learning rate chosen on the validation set, by the same budget for every line.

The rule is that of `configs/protocol.yaml`: three rates a factor apart, then rates beyond the best
or between it and its neighbours, each at full length with every tuning seed. Not a search of a
library (`+search=optuna` of `experiments.train`): every line is to have the same number of rates
and a grid that anyone can follow.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from experiments.common import from_config, tables
from fwdgrad.measurement import Interval, mean_interval
from fwdgrad.records import RunRecord
from fwdgrad.training import DivergedError

# (learning rate, seed, whether it is a run for tuning) -> the run's config
MakeConfig = Callable[[float, int, bool], DictConfig]
TUNING, COMPARED = "tuning", "compared"  # the roles of runs
# Of a table of rates, a row a run; the minimised metric is inf if the run failed.
COLUMNS: tables.Columns = {
    "estimator": str, "role": str, "learning_rate": float, "seed": int, "minimised": float,
}  # fmt: skip


class Trial(NamedTuple):
    """A run at some rate: its role, its seed, its minimised metric and its information."""

    role: str
    rate: float
    seed: int
    minimised: float
    info: dict[str, Any]

    @property
    def row(self) -> tuple[str, float, int, float]:
        return self.role, self.rate, self.seed, self.minimised


class Tuned(NamedTuple):
    """A line at its best learning rate.

    Attributes:
      trials: all runs, for tuning and for the comparison.
      runs: seed -> the run at the chosen rate.
      config: the config of one of these runs.
    """

    trials: list[Trial]
    runs: dict[int, RunRecord]
    config: DictConfig


def next_rate(tried: Mapping[float, float], first: float, factor: float) -> float:
    """Return the rate to try next.

    The first three are `first`, `first`/`factor` and `first`·`factor`. Then, if the best is the
    lowest or the highest, the rate a factor beyond it; else the geometric middle of the wider gap
    beside the best, of two equal gaps the upper one. Rates are rounded to three digits.

    Args:
      tried: rate -> the metric that is minimised, inf if a run failed.
      first: the first rate of the line.
      factor: the ratio of the first rates.

    >>> next_rate({}, 0.1, 10.0), next_rate({0.1: 3.0}, 0.1, 10.0)
    (0.1, 0.01)
    >>> next_rate({0.01: 3.0, 0.1: 2.0, 1.0: 1.0}, 0.1, 10.0)  # beyond the highest
    10.0
    >>> next_rate({0.01: 3.0, 0.1: 1.0, 1.0: math.inf}, 0.1, 10.0)  # towards the edge of stability
    0.316
    >>> next_rate({0.01: 3.0, 0.1: 1.0, 0.316: math.inf, 1.0: math.inf}, 0.1, 10.0)
    0.0316
    """
    for rate in (first, first / factor, first * factor):
        if (rounded := _rounded(rate)) not in tried:
            return rounded
    grid = sorted(tried)
    # If all failed the lowest is the best, and the next is below it.
    best = min(grid, key=lambda rate: (tried[rate], rate))
    if best == grid[0]:
        return _rounded(best / factor)
    if best == grid[-1]:
        return _rounded(best * factor)
    i = grid.index(best)
    below, above = best / grid[i - 1], grid[i + 1] / best
    upper = above >= below or math.isclose(above, below, rel_tol=0.01)
    return _rounded(best * math.sqrt(above) if upper else best / math.sqrt(below))


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def tune_and_train(
    make_config: MakeConfig,
    first_rate: float,
    tuning: Mapping[str, Any],
    seeds: Sequence[int],
    note: Callable[[str], None],
    minimised: Callable[[Mapping[str, Any]], float] = lambda final: final["valid_loss"],
) -> Tuned:
    """Try rates with the tuning seeds; train every seed at the best rate at which no run fails.

    Args:
      make_config: makes the `train` config of a run; `read_test_set` is set here, false in tuning.
      first_rate: the first rate to try.
      tuning: `seeds`, `num_rates` and `factor` of the protocol.
      seeds: the seeds to compare, none of the tuning seeds.
      note: a function that is called with a line on each run.
      minimised: a function from a run's final metrics to the minimised one.

    Raises:
      ValueError: a seed is in both lists.
      DivergedError: at every rate a run fails.
    """
    if shared := sorted(set(seeds) & set(tuning["seeds"])):
        raise ValueError(f"seeds {shared} are among the tuning seeds; name other ones.")
    trials: list[Trial] = []
    tried: dict[float, float] = {}
    for _ in range(tuning["num_rates"]):
        rate = next_rate(tried, first_rate, tuning["factor"])
        tried[rate] = 0.0
        configs = [make_config(rate, seed, True) for seed in tuning["seeds"]]
        for trial, _ in _tries(configs, TUNING, rate, minimised):
            trials.append(trial)
            tried[rate] += trial.minimised / len(tuning["seeds"])
            note(f"rate {rate:g}, tuning seed {trial.seed}: {trial.minimised:.4g}")
            if math.isinf(trial.minimised):
                break  # the rate is out, whatever other seeds do
    for rate in sorted((r for r in tried if math.isfinite(tried[r])), key=lambda r: (tried[r], r)):
        runs: dict[int, RunRecord] = {}
        configs = [make_config(rate, seed, False) for seed in seeds]
        for trial, run in _tries(configs, COMPARED, rate, minimised):
            trials.append(trial)
            if math.isinf(trial.minimised):
                note(f"rate {rate:g} is given up: seed {trial.seed} fails")
                break
            assert run is not None
            runs[trial.seed] = run
            note(from_config.summary(run))
        if len(runs) == len(seeds):
            return Tuned(trials, runs, configs[0])
    raise DivergedError(f"runs fail at every rate of {sorted(tried)}; lower the first rate.")


def _tries(
    configs: Sequence[DictConfig],
    role: str,
    rate: float,
    minimised: Callable[[Mapping[str, Any]], float],
) -> Iterator[tuple[Trial, RunRecord | None]]:
    """Train each config, of one rate and several seeds, on a CPU when its result is asked for.

    The minimised metric is inf if the run diverges or ends above its start.
    """
    for config in configs:
        config.read_test_set = role == COMPARED
    for config, run in zip(configs, from_config.run_seeds(configs), strict=True):
        if isinstance(run, DivergedError):
            info = from_config.recorded_info(config)
            yield Trial(role, rate, config.seed, math.inf, info), None
            continue
        failed = run.metrics[-1].valid_loss > run.metrics[0].valid_loss
        value = math.inf if failed else minimised(run.info["final"])
        yield Trial(role, rate, config.seed, value, run.info), run


class Rates(NamedTuple):
    """The learning rates of a line, read back from a table.

    Attributes:
      tried: rate -> the minimised metric of each tuning seed that ran, inf where a run failed.
      chosen: the rate of the compared runs.
      given_up: better rates, at which a compared run failed.
    """

    tried: dict[float, list[float]]
    chosen: float
    given_up: list[float]

    @property
    def means(self) -> dict[float, float]:
        """Return rate -> the mean of the minimised metric."""
        return {rate: float(np.mean(values)) for rate, values in self.tried.items()}

    @property
    def is_at_the_end(self) -> bool:
        """Return whether the chosen rate is an end of the grid, so that the best may lie beyond."""
        return len(self.tried) > 1 and self.chosen in (min(self.tried), max(self.tried))

    def best_of_each_seed(self) -> np.ndarray:
        """Return the best rate of each tuning seed, of the rates at which none failed."""
        kept = {rate: x for rate, x in self.tried.items() if np.isfinite(x).all()}
        rates = np.array(list(kept))
        return rates[np.argmin(np.array(list(kept.values())), axis=0)]

    def over(self, other: "Rates", confidence: float = 0.95) -> Interval:
        """Return the geometric mean over tuning seeds of the ratio of best rates."""
        logs = np.log(self.best_of_each_seed()) - np.log(other.best_of_each_seed())
        mean, low, high, n = mean_interval(logs, confidence)
        return Interval(math.exp(mean), math.exp(low), math.exp(high), n)

    def __str__(self) -> str:
        edge = " (end of the grid)" if self.is_at_the_end else ""
        lost = f"; given up: {', '.join(f'{r:g}' for r in self.given_up)}" if self.given_up else ""
        return f"{self.chosen:g}{edge}{lost}"


def read_rates(rows: pd.DataFrame) -> dict[str, Rates]:
    """Return estimator -> `Rates`, from a table with `COLUMNS`."""
    found = {}
    for estimator, line in rows.groupby("estimator", sort=False):
        tuning, compared = (line[line["role"] == role] for role in (TUNING, COMPARED))
        tried = {
            rate: of_rate["minimised"].tolist()
            for rate, of_rate in tuning.groupby("learning_rate", sort=False)
        }
        trained = list(dict.fromkeys(compared["learning_rate"]))
        found[str(estimator)] = Rates(tried, trained[-1], trained[:-1])
    return found
