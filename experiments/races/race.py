"""Races: the test error of each family of estimators, trained with equal operations or steps.

Every line trains for the same floating-point operations by XLA's count, so that lines of one
program make the same number of steps; or for the same number of steps, of which a line may have a
multiple. Each is at its best learning rate. Rates, seeds and comparisons are
those of `configs/protocol.yaml`. Controls train the last layer alone, or all layers but the first
ones: accuracy that needs no learning in the hidden layers. The training time of a line is its steps
times the time of a step, measured with all lines in turns on an idle machine.

A race NAME leaves `NAME.csv` (a row an evaluation), `NAME_test.csv` (a row a run, with the test
images that it classifies rightly), `NAME_tuning.csv` (a row a run and rate),
`NAME_comparisons.csv` (a row a paired comparison), `NAME_timings.csv` (a row a timed turn),
`NAME.json` and the figure `NAME`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from omegaconf import DictConfig

from experiments.common import (
    comparisons,
    costs,
    from_config,
    jobs,
    machines,
    style,
    tables,
    timings,
    tuning,
)
from experiments.common.tuning import Tuned, read_rates, tune_and_train
from experiments.races.figure import draw_race
from experiments.races.results import (
    COLUMNS,
    TEST_COLUMNS,
    comparison_table,
    line_table,
    read,
)
from fwdgrad.records import read_json, write_table
from fwdgrad.training import DivergedError

_TABLES = ("", "_test", "_tuning", "_comparisons", "_timings")
_NAMES = (
    "*Activities*: activity perturbation of the hidden layers, layer by layer, with the exact "
    "gradient of the last layer. *Weights*: tangents of the weights. *Blocks*: each of K tangents "
    "perturbs one of K groups of units. *Local losses*: each layer learns from a linear classifier "
    "of its own. *Controls*: exact gradients, but the other layers stay as they were initialised; "
    "an accuracy that needs no learning in hidden layers."
)
_RIVALS = (
    " *Feedback*: hidden layers learn by a matrix times the exact error of the last layer; it is "
    "random (direct feedback alignment), or learned from noise that does not enter the update "
    "(learned feedback alone). *Losses alone*: no derivatives, but differences of losses or, by "
    "evolution strategies, their ranks."
)


class Race:
    """A race, with the functions of an experiment's module: run, draw, describe.

    Args:
      name: the name of the experiment, of its config and its files.
      title: the title of the section of the report.
    """

    def __init__(self, name: str, title: str):
        self._name, self._title = name, title

    def run(self, cfg: DictConfig, folder: Path) -> None:
        """Tune and train, or read runs back, and write the tables."""
        race = _Configs(cfg, self._name)
        runs = folder / "runs" / self._name
        trained: dict[str, Tuned] = {}
        counted, failed = {}, []
        bar = jobs.progress(race.lines(), cfg, self._name)
        for name in bar:
            bar.set_postfix_str(name)
            counted[name] = costs.operations_of_a_step(race.any_run(name), runs)
            try:
                trained[name] = _tune_and_train(race, name, counted[name]["result"], bar)
            except DivergedError as error:
                failed.append(name)
                bar.write(f"{self._name}: {name}: {error}")
        if not trained:
            raise DivergedError(f"every line fails at every rate of experiments.{self._name}.")
        timed = costs.training_costs(
            {name: race.any_run(name) for name in trained}, runs, **race.experiment.timing
        )
        self._write_tables(race, trained, counted, timed, folder)
        trials = [trial.info for tuned in trained.values() for trial in tuned.trials]
        information = {
            "lines": {
                name: {
                    "family": race.experiment.lines[name].family,
                    "derivatives": race.experiment.lines[name].derivatives,
                    "batch_size": tuned.config.batch_size,
                    "operations_per_step": counted[name]["result"],
                    "times": race.experiment.lines[name].get("times", 1),
                }
                for name, tuned in trained.items()
            },
            "failed": failed,
            "operations": race.experiment.operations,
            "num_steps": race.experiment.get("num_steps"),
            "target_accuracy": race.experiment.get("target_accuracy"),
            "tuning": jobs.to_plain(race.experiment.tuning),
            "compared": jobs.to_plain(race.experiment.compared),
            "processes": timings.processes_of({(): timed}),
            "trained_on": machines.names(trials),
            "timed_on": machines.names([timed]),
            **jobs.provenance_of([timed, *counted.values(), *trials]),
        }
        written = [f"{self._name}{table}" for table in _TABLES]
        jobs.write_information(folder, self._name, written, information)

    def train_line(self, cfg: DictConfig, folder: Path) -> None:
        """Tune and train the line `cfg.line`; `run` reads the runs back."""
        race = _Configs(cfg, self._name)
        # Not in the folder of `run`, which one process holds.
        counts = folder / "runs" / self._name / cfg.line
        operations = (
            race.experiment.operations
            and costs.operations_of_a_step(race.any_run(cfg.line), counts)["result"]
        )
        for name in (bar := jobs.progress([cfg.line], cfg, self._name)):
            _tune_and_train(race, name, operations, bar)

    def _write_tables(
        self,
        race: "_Configs",
        trained: Mapping[str, Tuned],
        counted: Mapping[str, Any],
        timed: Mapping[str, Any],
        folder: Path,
    ) -> None:
        every = [
            (race.experiment.lines[name].family, name, seed, run)
            for name, tuned in trained.items()
            for seed, run in tuned.runs.items()
        ]
        test_set = from_config.problem(next(iter(trained.values())).config).test
        num_examples = len(jax.tree.leaves(test_set)[0])
        write_table(
            folder / f"{self._name}.csv",
            COLUMNS,
            [
                (family, name, seed, row.step, row.step * counted[name]["result"],
                 row.valid_accuracy)
                for family, name, seed, run in every
                for row in run.metrics
            ],
        )  # fmt: skip
        write_table(
            folder / f"{self._name}_test.csv",
            TEST_COLUMNS,
            [
                (name, seed, run.info["final"]["test_accuracy"], num_examples,
                 run.info["test_correct"])
                for _, name, seed, run in every
            ],
        )  # fmt: skip
        write_table(
            folder / f"{self._name}_tuning.csv",
            tuning.COLUMNS,
            [(name, *trial.row) for name, tuned in trained.items() for trial in tuned.trials],
        )
        timings.write_timings(folder / f"{self._name}_timings.csv", {(): timed})
        lines = read(folder, self._name)
        pairs = [(a, b) for a, b in race.experiment.comparisons if {a, b} <= set(lines)]
        compared = comparisons.compare(
            pairs,
            # Points of error: the second's right answers less the first's.
            [100 * (lines[b].correct - lines[a].correct) for a, b in pairs],
            confidence=race.experiment.compared.confidence,
        )
        columns = comparisons.Comparison._fields
        write_table(folder / f"{self._name}_comparisons.csv", columns, compared)

    def draw(self, folder: Path) -> None:
        """Draw the figure from the tables in `folder`."""
        draw_race(read(folder, self._name), folder, self._name)

    def describe(self, folder: Path) -> str:
        """Return the section of the report in Markdown: the figure and the tables."""
        information = read_json(folder / f"{self._name}.json")
        lines, about = read(folder, self._name), information["lines"]
        rates = read_rates(tables.read(folder / f"{self._name}_tuning.csv", tuning.COLUMNS))
        compared = [c for _, c in comparisons.read(folder / f"{self._name}_comparisons.csv")]
        rivals = {line.family for line in lines.values()} & {"feedback", "values"}
        rule, margin = information["tuning"], information["compared"]["margin_points"]
        number = len(rule["seeds"])
        of_seeds = "one seed" if number == 1 else f"{number} seeds"
        text = [
            f"## {self._title} (not in the paper)",
            "",
            f"![Test error of each line]({self._name}.png)",
            "",
            f"{_length(information)} Each line tries "
            f"{rule['num_rates']} rates at full length with {of_seeds} and takes "
            "the one of the least validation error ([protocol](../../configs/protocol.yaml)); then "
            "other seeds train at it, and read the test images once."
            f"{machines.sentence(information)} {_NAMES}{_RIVALS if rivals else ''}",
            "",
            *line_table(lines, about, rates, information.get("target_accuracy")),
            *(["", f"No rate works for {', '.join(map(style.label, information['failed']))}."]
              if information["failed"] else []),
            "",
            "The comparisons that the protocol names, in points of test error, paired by seed and "
            "image (both are random effects); p-values are corrected for their number by Holm's "
            f"method. Equivalent: the 90 % interval is within {margin:g} points.",
            "",
            *comparison_table(compared, margin),
        ]  # fmt: skip
        return "\n".join(text)


def _length(information: Mapping[str, Any]) -> str:
    """Say how long the runs are, and how the time to a target is found."""
    if (operations := information["operations"]) is not None:
        said = f"Each run has {operations:.3g} operations."
    else:
        steps = information["num_steps"]
        said = f"Each run makes {steps:,} steps, or the multiple that its name says."
    if (target := information.get("target_accuracy")) is None:
        return said
    return (
        f"{said} The time to {100 * target:g} % is that of a step times the step at which the "
        "validation accuracy first reaches it, interpolated between evaluations, over that of "
        "backprop with the same seed."
    )


class _Configs:
    """The configs of a race's runs.

    Raises:
      ValueError: the race has both lengths, operations and steps, or neither.
    """

    def __init__(self, cfg: DictConfig, name: str):
        self._cfg, self.name, self.experiment = cfg, name, cfg.experiments[name]
        lengths = {key: self.experiment.get(key) for key in ("operations", "num_steps")}
        if list(lengths.values()).count(None) != 1:
            found = ", ".join(f"{key}={value}" for key, value in lengths.items())
            raise ValueError(
                f"experiments.{name}: a race is by operations or by num_steps, and the other is "
                f"null; found {found}."
            )

    def lines(self) -> list[str]:
        """Return the names of the lines that run."""
        return list(self.experiment.shown or self.experiment.lines)

    def num_steps(self, name: str, operations: float | None) -> int:
        """Return the steps of a line's run; `operations` are those of a step."""
        steps = self.experiment.get("num_steps") or self.experiment.operations / operations
        return max(1, round(steps * self.experiment.lines[name].get("times", 1)))

    def any_run(self, name: str) -> DictConfig:
        """Return a line's config for measurements that length and rate do not change."""
        return self.run(name, rate=1e-4, num_steps=1, rows=1, seed=0)

    def run(self, name: str, *, rate: float, num_steps: int, rows: int, seed: int) -> DictConfig:
        experiment = self.experiment
        overrides = [
            *experiment.overrides, *experiment.lines[name].overrides, *experiment.model,
        ]  # fmt: skip
        length = {"num_steps": num_steps, "eval_every": max(1, num_steps // rows)}
        return jobs.compose_train(self._cfg, overrides, learning_rate=rate, **length, seed=seed)


def _tune_and_train(race: _Configs, name: str, operations: float | None, bar: Any) -> Tuned:
    """Tune and train a line, with as many steps as the race's length pays for.

    Args:
      race: the configs.
      name: the line.
      operations: of a step; of a race by steps they may be None.
      bar: the progress bar that notes are written above.
    """
    experiment = race.experiment
    num_steps = race.num_steps(name, operations)

    def make_config(rate: float, seed: int, tuning: bool) -> DictConfig:
        rows = 1 if tuning else experiment.num_rows
        return race.run(name, rate=rate, num_steps=num_steps, rows=rows, seed=seed)

    return tune_and_train(
        make_config,
        experiment.lines[name].first_rate,
        jobs.to_plain(experiment.tuning),
        jobs.to_plain(experiment.seeds),
        lambda text: bar.write(f"{race.name}: {name}: {text}"),
        minimised=lambda final: 1 - final["valid_accuracy"],
    )
