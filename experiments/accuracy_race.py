"""How accurate a network each family of estimators trains, in equal time and equal operations.

Every line trains the paper's MLP on MNIST for the same seconds, at the rate that was best for it on
the validation set after the same seconds of tuning; some also for fewer, which says how soon a
method gets how far. Two controls show what is not learning in the hidden layers: the last layer
alone, and all but the first. Part of `reproduce`; alone:

    python -m experiments.accuracy_race preset=quick

The seconds of a run are its steps times the time of a step, which is measured for all lines in
turns, so that a slow hour of the machine is nobody's handicap; that time also decides how many
steps a line has.

Leaves `accuracy_race.csv` (a row an evaluation; `test_accuracy` on the last of each run; other
models than the MLP have their own, `accuracy_race_cnn.csv`),
`accuracy_race_tuning.csv` (a row a rate tried), `accuracy_race.json` and the figure
`accuracy_race`.
"""

import sys
from pathlib import Path
from typing import Any

import hydra
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from omegaconf import DictConfig, OmegaConf

from experiments import jobs, style
from experiments.costs import operations_of_a_step, training_seconds
from experiments.paper import Finding
from experiments.race_results import Line, percent, read, verdicts
from experiments.tuning import Tuned, read_rates, tune_and_train
from fwdgrad.work import Interval, mean_interval
from fwdgrad.work.records import read_json, read_table, write_json, write_table

NAME = "accuracy_race"
COLUMNS = (
    "family", "estimator", "seed", "step", "seconds", "flops", "valid_accuracy", "test_accuracy"
)  # fmt: skip
_ABOUT = ("like", "model", "seconds", "tuning_seconds", "derivatives")  # of a line, for the record
FAMILIES = {"backprop": "Greys", "weight": "Oranges", "activity": "Blues", "local": "Greens"}


def run(cfg: DictConfig, folder: Path) -> None:
    """Tunes and trains what has not been, and writes the tables."""
    experiment = cfg.experiments[NAME]
    lines = {name: _line(experiment, name) for name in experiment.shown or experiment.lines}
    runs_folder = folder / "runs" / NAME
    configs = {
        name: _config(cfg, line, rate=line["rates"][0], num_steps=1, seed=0)
        for name, line in lines.items()
        if name == line["like"]
    }
    timed = training_seconds(configs, runs_folder, rounds=experiment.rounds)
    counted = {name: operations_of_a_step(config, runs_folder) for name, config in configs.items()}
    sources = [timed, *counted.values()]
    trained: dict[str, Tuned] = {}
    bar = jobs.progress(list(lines), cfg, NAME)
    for name in bar:
        bar.set_postfix_str(name)
        trained[name] = _tune_and_train(cfg, name, timed["result"][lines[name]["like"]], bar)
        sources += [*trained[name].others, *(run.info for run in trained[name].runs.values())]
    seconds = {name: timed["result"][line["like"]]["value"] for name, line in lines.items()}
    operations = {name: counted[line["like"]]["result"] for name, line in lines.items()}
    for model in dict.fromkeys(line["model"] for line in lines.values()):
        rows = [
            (lines[name]["family"], name, seed, row.step, row.step * seconds[name],
             row.step * operations[name], row.valid_accuracy,
             run.info["final"]["test_accuracy"] if row is run.metrics[-1] else "")
            for name, tuned in trained.items() if lines[name]["model"] == model
            for seed, run in tuned.runs.items()
            for row in run.metrics
        ]  # fmt: skip
        write_table(_table(folder, model), COLUMNS, rows)
    write_table(
        folder / f"{NAME}_tuning.csv",
        ("estimator", "learning_rate", "valid_error", "failed_seeds"),
        [(name, *columns) for name, tuned in trained.items() for columns in tuned.columns()],
    )
    information = {
        "lines": {name: {k: line[k] for k in _ABOUT} for name, line in lines.items()},
        "seconds_per_step": timed["result"],
        "operations_per_step": operations,
        # By the clock of the runs themselves, which other work on the machine may have slowed.
        "clock_seconds": {
            name: [run.info["final"]["seconds"] for run in tuned.runs.values()]
            for name, tuned in trained.items()
        },
        **jobs.sources(sources),
    }  # fmt: skip
    write_json(folder / f"{NAME}.json", information)


def _table(folder: Path, model: str) -> Path:
    return folder / (f"{NAME}.csv" if model == "mlp" else f"{NAME}_{model}.csv")


def _line(experiment: DictConfig, name: str) -> dict[str, Any]:
    """What a line is: of what it does not say itself, that of the one it is `like`."""
    own: Any = OmegaConf.to_container(experiment.lines[name], resolve=True)
    like = own.get("like", name)
    of_like: Any = OmegaConf.to_container(experiment.lines[like], resolve=True)
    of_all = {key: experiment[key] for key in ("seconds", "tuning_seconds", "seeds")}
    line = {"like": like, "model": "mlp", **of_all, **of_like, **own}
    line["tuning_seconds"] = min(line["tuning_seconds"], line["seconds"])
    return line


def _config(
    cfg: DictConfig, line: dict[str, Any], *, rate: float, num_steps: int, seed: int
) -> DictConfig:
    experiment = cfg.experiments[NAME]
    overrides = [*experiment.overrides, *line["overrides"], *experiment.model]
    eval_every = max(1, num_steps // experiment.num_rows)
    length = {"num_steps": num_steps, "eval_every": eval_every}
    return jobs.compose_train(cfg, overrides, learning_rate=rate, **length, seed=seed)


def _tune_and_train(
    cfg: DictConfig, name: str, seconds_per_step: dict[str, float], bar: Any
) -> Tuned:
    experiment = cfg.experiments[NAME]
    line = _line(experiment, name)

    def make_config(rate: float, seed: int, tuning: bool) -> DictConfig:
        budget = line["tuning_seconds" if tuning else "seconds"]
        num_steps = max(1, round(budget / seconds_per_step["value"]))
        return _config(cfg, line, rate=rate, num_steps=num_steps, seed=seed)

    return tune_and_train(
        make_config,
        line["rates"],
        line["seeds"],
        lambda text: bar.write(f"{NAME}: {name}: {text}"),
        minimised=lambda final: 1 - final["valid_accuracy"],
    )


def draw(folder: Path) -> None:
    """Draws the figure from the tables in `folder`."""
    lines, about = read(_table(folder, "mlp")), read_json(folder / f"{NAME}.json")["lines"]
    figure, panels = plt.subplots(1, 3, figsize=(11, 4), sharey=True)
    colours = _colours(lines, about)
    for estimator, line in lines.items():
        if about[estimator]["like"] == estimator:
            for panel, column, unit in zip(panels, ("seconds", "flops"), (1, 1e12), strict=False):
                _draw_run(panel, line, column, unit, colours[estimator], estimator)
    for estimator in lines:
        lengths = [name for name in lines if about[name]["like"] == estimator]
        if lengths:
            _draw_lengths(panels[2], [lines[name] for name in lengths], colours[estimator])
    panels[0].set(xlabel="training time (s)", ylabel="error (%)", yscale="log")
    panels[1].set(xlabel="operations (10¹²)")
    panels[2].set(xlabel="training time of the whole run (s)")
    titles = ("validation, along a run", "validation, along a run", "test, at a run's end")
    for panel, title in zip(panels, titles, strict=True):
        panel.set(xscale="log")
        panel.set_title(title, loc="left", fontweight="bold")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter("{x:g}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    style.save(figure, folder, NAME)


def _colours(lines: dict[str, Line], about: dict[str, Any]) -> dict[str, Any]:
    """For every estimator a shade of its family's colour."""
    shades = {}
    for family, colour_map in FAMILIES.items():
        names = [n for n in lines if lines[n].family == family and about[n]["like"] == n]
        for i, estimator in enumerate(names):
            shades[estimator] = plt.get_cmap(colour_map)(0.95 - 0.6 * i / max(1, len(names)))
    return shades


def _draw_run(
    panel: Axes, line: Line, column: str, unit: float, colour: Any, estimator: str
) -> None:
    error = 100 * (1 - line.columns["valid_accuracy"])
    logarithms = [mean_interval(np.log(np.maximum(e, 1e-2))) for e in error.T]
    mean, low, high = (np.exp([x[k] for x in logarithms])[1:] for k in range(3))
    x = line.columns[column].mean(0)[1:] / unit
    dashes = "--" if estimator.startswith("control") else "-"
    panel.plot(x, mean, dashes, color=colour, label=style.name(estimator))
    panel.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


def _draw_lengths(panel: Axes, lines: list[Line], colour: Any) -> None:
    lines = sorted(lines, key=lambda line: line.seconds)
    errors = [mean_interval(100 * (1 - line.test_accuracy)) for line in lines]
    ends = [[e.value - e.low for e in errors], [e.high - e.value for e in errors]]
    panel.errorbar(
        [line.seconds for line in lines], [e.value for e in errors],
        np.maximum(np.nan_to_num(ends), 0), color=colour, marker="o", ms=3, elinewidth=0.8,
    )  # fmt: skip


def describe(folder: Path) -> str:
    """The report's section: the figure, a table for each model, and what follows, in Markdown."""
    information = read_json(folder / f"{NAME}.json")
    text = [
        "## Accuracy in equal time (not in the paper)",
        "",
        f"![Error against time and operations]({NAME}.png)",
        "",
        "Every run trains for the seconds in the table at the rate with the least validation error "
        "after the seconds of tuning, one run a rate with another seed, as many rates for each. "
        "Seconds are steps times the time of a step, measured for all in turns; directional "
        "derivatives are those of an example in a step; accuracies are means over the seeds with "
        "95 % intervals. A rate chosen at an end of its grid is marked.",
    ]
    for model in dict.fromkeys(line["model"] for line in information["lines"].values()):
        lines = read(_table(folder, model))
        text += ["", f"The {model.upper()}:", "", *_rows(folder, lines, information), ""]
        text += verdicts(lines)
    return "\n".join(text)


def _rows(folder: Path, lines: dict[str, Line], information: dict[str, Any]) -> list[str]:
    rates = read_rates(read_table(folder / f"{NAME}_tuning.csv"), "valid_error")
    rows = [
        "| family | estimator | training (s) | tuning (s) | derivatives | rates | best rate "
        "| seeds | steps | ms a step | 10⁹ operations a step | validation accuracy (%) "
        "| test accuracy (%) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, line in lines.items():
        about, steps = information["lines"][name], line.columns["step"]
        per_step = map(float, information["seconds_per_step"][about["like"]].values())
        tried = rates[name].tried
        rows.append(
            f"| {line.family} | {style.name(name)} | {line.seconds:.3g} "
            f"| {about['tuning_seconds']:g} | {about['derivatives']} "
            f"| {len(tried)} from {min(tried):g} to {max(tried):g} | {rates[name]} | {len(steps)} "
            f"| {steps[0, -1]:.0f} | {_milliseconds(*per_step)} "
            f"| {information['operations_per_step'][name] / 1e9:.3g} "
            f"| {percent(line.columns['valid_accuracy'][:, -1])} "
            f"| {percent(line.test_accuracy)} |"
        )
    return rows


def _milliseconds(seconds: float, low: float, high: float, n: float) -> Interval:
    return Interval(1e3 * seconds, 1e3 * low, 1e3 * high, int(n))


def findings(folder: Path) -> list[Finding]:
    """The paper has no such numbers."""
    return []


@hydra.main(version_base="1.3", config_path="../configs", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    jobs.alone(cfg, sys.modules[__name__])


if __name__ == "__main__":
    main()
