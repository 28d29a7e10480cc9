"""Races: the accuracy of each family of estimators, in equal time and in equal operations.

Every line trains a model for the same seconds, at its best rate on the validation set after a
quarter of them. Some lines also train for fewer seconds, which shows the accuracy against time, and
some for the same floating-point operations. Controls train the last layer alone, or all layers but
the first ones: accuracy that needs no learning in the hidden layers.

The seconds of a run are its steps times the time of a step. All lines are timed in turns, in
several fresh processes, so that a slow hour of the machine is no line's handicap. The seconds
decide the number of steps.

A race NAME leaves `NAME.csv` (a row an evaluation; `test_accuracy` on the last of each run),
`NAME_tuning.csv` (a row a rate tried), `NAME_timings.csv` (a row a turn), `NAME.json` and the
figure `NAME`.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.common import jobs, tables
from experiments.common.costs import (
    operations_of_a_step,
    over_reference,
    samples_of,
    seconds,
    training_costs,
)
from experiments.common.timings import processes_of, write_timings
from experiments.common.tuning import Tuned, read_rates, tune_and_train
from experiments.races.figure import draw_race
from experiments.races.results import COLUMNS, comparisons, markdown_table, read
from fwdgrad.measurement import exact
from fwdgrad.records import read_json, write_table

_TUNING_COLUMNS: tables.Columns = {
    "estimator": str, "learning_rate": float, "valid_error": float, "failed_seeds": tables.gaps,
}  # fmt: skip
# Of a line, for the record.
_ABOUT = (
    "like", "operations", "derivatives", "overrides", "wanted", "behind", "times", "ablates",
    "remark",
)  # fmt: skip
# Before the table of the report.
_NAMES = (
    "Names: *activity* lines perturb pre-activations, layer by layer, with the last layer's exact "
    "gradient; *weight* lines perturb the weights; *blocks*: each of K tangents perturbs one of K "
    "groups of units; *guided*: with a control variate, a guess of the gradient that is linear in "
    "the last layer's and learned on the way; *local*: a linear classifier and a loss for each "
    "layer; *control*: exact gradients, but the other layers stay at their random start; "
    "*-equal*: equal operations in the place of equal time. Derivatives are directional "
    "derivatives (JVPs) of an example in a step; local heads that are trained by backprop take "
    "reverse mode through one layer and its head."
)
_HOW = (
    "Every run has the seconds, or the operations, in the table, at the learning rate with the "
    "least validation error after {tuning:g} of its steps, one run a rate with another seed. Every "
    "line tries as many rates, by plain SGD with a cosine schedule unless its name says momentum. "
    "The other settings were chosen by hand in a few single runs before: for backprop and the "
    "controls the minibatch, for the others also the number of tangents, clipping and the rate of "
    "the guess. Seconds are steps times the time of a step, measured in turns in fresh processes, "
    "on an idle machine (in brackets: the runs by the clock, on "
    "a machine that they shared). Accuracies and differences are means with 95 % intervals over "
    "the seeds, for this one test set. The mean on 10,000 other images has a standard deviation of "
    "up to 0.13 points at 98.3 %; that of a difference is not known. A control may have another "
    "optimizer; then the best control with the line's own optimizer is named, too. Backprop's time "
    "to a mean is interpolated, accuracies over the logarithm of the time; the interval is of "
    "means resampled by Student's law."
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
        lines = {name: race.line(name) for name in race.experiment.shown or race.experiment.lines}
        runs = folder / "runs" / self._name
        likes = list({line["like"]: None for line in lines.values()})
        timed = training_costs(
            {name: race.of_any_length(name) for name in dict.fromkeys(["backprop", *likes])},
            runs,
            processes=race.experiment.processes,
            rounds=race.experiment.rounds,
        )
        costs = {name: _Cost(race, name, timed, runs) for name in likes}
        trained: dict[str, Tuned] = {}
        bar = jobs.progress(list(lines), cfg, self._name)
        for name in bar:
            bar.set_postfix_str(name)
            trained[name] = _tune_and_train(race, name, costs[lines[name]["like"]], bar)
        of_line = {name: costs[line["like"]] for name, line in lines.items()}
        write_table(
            folder / f"{self._name}.csv",
            COLUMNS,
            [
                (lines[name]["family"], name, seed, row.step, row.step * of_line[name].seconds,
                 row.step * of_line[name].operations, row.valid_accuracy,
                 run.info["final"]["test_accuracy"] if row is run.metrics[-1] else "")
                for name, tuned in trained.items()
                for seed, run in tuned.runs.items()
                for row in run.metrics
            ],
        )  # fmt: skip
        write_table(
            folder / f"{self._name}_tuning.csv",
            _TUNING_COLUMNS,
            [(name, *columns) for name, tuned in trained.items() for columns in tuned.columns()],
        )
        write_timings(folder / f"{self._name}_timings.csv", {(): timed})
        sources = [timed, *(cost.counted for cost in costs.values())]
        for tuned in trained.values():
            sources += [*tuned.others, *(run.info for run in tuned.runs.values())]
        information = {
            "lines": {
                name: {
                    **{key: line.get(key) for key in _ABOUT},
                    "batch_size": race.of_any_length(name).batch_size,
                    "over_backprop": of_line[name].over_backprop,
                    "operations_per_step": of_line[name].operations,
                    # By the clock of the runs themselves, which other work may have slowed.
                    "clock_seconds": [
                        run.info["final"]["seconds"] for run in trained[name].runs.values()
                    ],
                }
                for name, line in lines.items()
            },
            "tuning": race.experiment.tuning,
            "history": race.experiment.history,
            "processes": processes_of({(): timed}),
            **jobs.provenance_of(sources),
        }
        jobs.write_information(
            folder,
            self._name,
            [f"{self._name}{end}" for end in ("", "_tuning", "_timings")],
            information,
        )

    def draw(self, folder: Path) -> None:
        """Draw the figure from the tables in `folder`."""
        about = read_json(folder / f"{self._name}.json")["lines"]
        lines = read(folder / f"{self._name}.csv")
        # Lines of other lengths are in the table alone.
        own = {name: line for name, line in lines.items() if about[name].get("like", name) == name}
        draw_race(own, folder, self._name)

    def describe(self, folder: Path) -> str:
        """Return the section of the report in Markdown: the figure, a table, and conclusions."""
        information = read_json(folder / f"{self._name}.json")
        lines, about = read(folder / f"{self._name}.csv"), information["lines"]
        rates = read_rates(
            tables.read(folder / f"{self._name}_tuning.csv", _TUNING_COLUMNS), "valid_error"
        )
        text = [
            f"## {self._title} (not in the paper)",
            "",
            f"![Error against time and operations]({self._name}.png)",
            "",
            _NAMES,
            "",
            _HOW.format(tuning=information["tuning"]),
            "",
            *([information["history"], ""] if information["history"] else []),
            *markdown_table(lines, about, rates),
            "",
            *comparisons(lines, about),
        ]
        return "\n".join(text)


class _Configs:
    """The configs of a race's runs."""

    def __init__(self, cfg: DictConfig, name: str):
        self._cfg, self.name, self.experiment = cfg, name, cfg.experiments[name]

    def line(self, name: str) -> dict[str, Any]:
        """Return the options of a line; those it lacks are of the line that it is `like`."""
        own = jobs.to_plain(self.experiment.lines[name])
        like = own.get("like", name)
        of_like = jobs.to_plain(self.experiment.lines[like])
        of_all = {key: self.experiment[key] for key in ("seconds", "seeds")}
        return {"like": like, **of_all, **of_like, **own}

    def of_any_length(self, name: str) -> DictConfig:
        """Return a line's config for measurements that length and rate do not change."""
        return self.run(self.line(name), rate=1e-4, num_steps=1, seed=0)

    def run(self, line: dict[str, Any], *, rate: float, num_steps: int, seed: int) -> DictConfig:
        experiment = self.experiment
        overrides = [*experiment.overrides, *line["overrides"], *experiment.model]
        eval_every = max(1, num_steps // experiment.num_rows)
        length = {"num_steps": num_steps, "eval_every": eval_every}
        return jobs.compose_train(self._cfg, overrides, learning_rate=rate, **length, seed=seed)


class _Cost:
    """The cost of a step of a line.

    Attributes:
      seconds, operations: time and floating-point operations of a step.
      over_backprop: the ratio to backprop's time on the same model, an interval.
      counted: the record of the operations.
    """

    def __init__(self, race: _Configs, name: str, timed: dict[str, Any], runs: Path):
        samples = samples_of(timed)
        over_backprop = exact(1.0) if name == "backprop" else over_reference(samples)[name]
        self.over_backprop = over_backprop._asdict()
        self.seconds = over_backprop.value * seconds(samples)["backprop"].value
        self.counted = operations_of_a_step(race.of_any_length(name), runs)
        self.operations = self.counted["result"]


def _tune_and_train(race: _Configs, name: str, cost: _Cost, bar: Any) -> Tuned:
    line = race.line(name)
    steps = line["seconds"] / cost.seconds
    if "operations" in line:
        steps = line["operations"] / cost.operations

    def make_config(rate: float, seed: int, tuning: bool) -> DictConfig:
        num_steps = max(1, round(steps * (race.experiment.tuning if tuning else 1)))
        return race.run(line, rate=rate, num_steps=num_steps, seed=seed)

    return tune_and_train(
        make_config,
        line["rates"],
        line["seeds"],
        lambda text: bar.write(f"{race.name}: {name}: {text}"),
        minimised=lambda final: 1 - final["valid_accuracy"],
    )
