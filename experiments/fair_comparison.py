"""What the paper lacks: each method at the learning rate that is best for it.

For every model and method the rate is tuned on the validation set, all methods with the same grid
and the same number of steps; then each trains at its own rate with several seeds. Loss against
iterations, against training time and against floating-point operations. Part of `reproduce`; alone:

    python -m experiments.fair_comparison preset=quick

Leaves `fair_comparison.csv` (a row an evaluation), `fair_comparison_tuning.csv` (a row a rate
tried), `fair_comparison.json` and the figure `fair_comparison`.
"""

import itertools
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig

from experiments import jobs, style, train
from experiments.costs import operations_of_a_step
from experiments.curves import Curve, final, plot, read_curves, write_curves
from experiments.paper import Finding, compare
from fwdgrad.work import DivergedError, Interval, RunRecord, mean_interval, read_run
from fwdgrad.work.records import read_json, read_table, write_json, write_table

NAME = "fair_comparison"
_TUNING_SEED = 1000  # of none of the runs that follow


def run(cfg: DictConfig, folder: Path) -> None:
    """Tunes and trains what has not been, and writes the tables."""
    experiment = cfg.experiments[NAME]
    lines: dict[tuple[str, str], _Line] = {}
    operations: dict[str, dict[str, float]] = {}
    accuracies: dict[str, dict[str, list[float]]] = {}
    sources: list[Any] = []
    bar = jobs.progress(list(itertools.product(experiment.shown, experiment.lines)), cfg, NAME)
    for panel, name in bar:
        bar.set_postfix_str(f"{panel} {name}")
        lines[panel, name] = line = _tune_and_train(cfg, panel, name, bar)
        counted = operations_of_a_step(line.config, folder / "runs" / NAME)
        operations.setdefault(panel, {})[name] = counted["result"]
        accuracies.setdefault(panel, {})[name] = [
            run.info["final"]["test_accuracy"] for run in line.runs.values()
        ]
        sources += [*line.tuning, *(run.info for run in line.runs.values()), counted]
    write_curves(
        folder / f"{NAME}.csv",
        ((*names, seed, run) for names, line in lines.items() for seed, run in line.runs.items()),
    )
    write_table(
        folder / f"{NAME}_tuning.csv",
        ("panel", "estimator", "learning_rate", "num_steps", "valid_loss"),
        [
            (panel, name, rate, experiment.panels[panel].tuning_steps, loss)
            for (panel, name), line in lines.items()
            for rate, loss in line.tried.items()
        ],
    )
    information = {
        "titles": {panel: experiment.panels[panel].title for panel in experiment.shown},
        "operations": operations,
        "test_accuracy": accuracies,
        **jobs.sources(sources),
    }
    write_json(folder / f"{NAME}.json", information)


class _Line(NamedTuple):
    """One method on one model.

    Attributes:
      tried: rate -> the validation loss after tuning, inf if a run failed, then or later.
      tuning: the information of the tuning runs.
      runs: seed -> the run at the best rate.
      config: of one of these runs.
    """

    tried: dict[float, float]
    tuning: list[dict[str, Any]]
    runs: dict[int, RunRecord]
    config: DictConfig


def _tune_and_train(cfg: DictConfig, panel: str, name: str, bar: Any) -> _Line:
    """Tries every rate, then trains every seed at the best at which no run fails."""
    experiment = cfg.experiments[NAME]
    settings = experiment.panels[panel]
    tried: dict[float, float] = {}
    tuning = []
    for rate in settings.rates:
        config = _train_config(cfg, panel, name, rate, settings.tuning_steps, _TUNING_SEED)
        tried[rate], information = _valid_loss(config)
        tuning.append(information)
    while math.isfinite(tried[best := _best_rate(tried)]):
        configs = {
            seed: _train_config(cfg, panel, name, best, settings.num_steps, seed)
            for seed in experiment.seeds
        }
        runs = {}
        try:
            for seed, config in configs.items():
                runs[seed] = train.run(config)
                bar.write(f"{NAME}: {train.summary(runs[seed])}")
        except DivergedError:
            tried[best] = math.inf
        if any(_has_failed(run) for run in runs.values()):
            tried[best] = math.inf
        if math.isfinite(tried[best]):
            return _Line(tried, tuning, runs, config)
    raise DivergedError(
        f"{name} on {panel} diverges at every rate of {list(settings.rates)}; add smaller ones to "
        f"experiments.{NAME}.panels.{panel}.rates."
    )


def _has_failed(run: RunRecord) -> bool:
    """Whether a run ends above where it began: it has diverged, if not to the end."""
    return run.metrics[-1].valid_loss > run.metrics[0].valid_loss


def _train_config(
    cfg: DictConfig, panel: str, name: str, rate: float, num_steps: int, seed: int
) -> DictConfig:
    eval_every = max(1, num_steps // cfg.experiments[NAME].panels[panel].num_rows)
    length = {"num_steps": num_steps, "eval_every": eval_every}
    return jobs.train_config(cfg, NAME, panel, name, learning_rate=rate, **length, seed=seed)


def _valid_loss(config: DictConfig) -> tuple[float, dict[str, Any]]:
    """The last validation loss of a run, inf if it fails, and the run's information."""
    try:
        record = train.run(config)
    except DivergedError:
        diverged = read_run(train.folder(config))
        assert diverged is not None
        return math.inf, diverged.info
    loss = record.info["final"]["valid_loss"]
    return math.inf if _has_failed(record) else loss, record.info


def draw(folder: Path) -> None:
    """Draws the figure from the tables in `folder`."""
    panels, information = read_curves(folder / f"{NAME}.csv"), read_json(folder / f"{NAME}.json")
    figure, axes = plt.subplots(len(panels), 4, figsize=(11, 2.5 * len(panels)), squeeze=False)
    for row, (panel, lines) in zip(axes, panels.items(), strict=True):
        row[0].set_title(information["titles"][panel], loc="left", fontweight="bold")
        _draw_tuning(row[0], folder, panel)
        for axis in row[1:]:
            axis.set_yscale("log")
        for estimator, line in lines.items():
            steps = line["step"][0]
            gigaoperations = steps * information["operations"][panel][estimator] / 1e9
            abscissas = (steps, line["seconds"].mean(0), gigaoperations)
            for axis, x in zip(row[1:], abscissas, strict=True):
                plot(axis, x, line["valid_loss"], estimator)
        for axis in row[1:]:
            style.fit_lines(axis)
        labels = ("iteration", "training time (s)", "operations (10⁹)")
        for axis, label in zip(row[1:], labels, strict=True):
            axis.set(xlabel=label, ylabel="validation loss (nats)")
            axis.xaxis.set_major_locator(MaxNLocator(4))
    handles, names = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    style.save(figure, folder, NAME)


def _tuning(folder: Path, panel: str) -> dict[str, dict[float, float]]:
    """From estimator and learning rate to the validation loss, inf where it diverged."""
    tried: dict[str, dict[float, float]] = {}
    for row in read_table(folder / f"{NAME}_tuning.csv"):
        if row["panel"] == panel:
            of_estimator = tried.setdefault(row["estimator"], {})
            of_estimator[float(row["learning_rate"])] = float(row["valid_loss"])
    return tried


def _best_rate(tried: dict[float, float]) -> float:
    return min(tried, key=lambda rate: tried[rate])


def _draw_tuning(axis: Axes, folder: Path, panel: str) -> None:
    """The loss at each rate tried; a cross above where it diverged, the chosen one filled."""
    tuning = _tuning(folder, panel)
    finite = [x for tried in tuning.values() for x in tried.values() if math.isfinite(x)]
    for i, (estimator, tried) in enumerate(tuning.items()):
        colour, best = style.colour(estimator), _best_rate(tried)
        kept = {rate: x for rate, x in tried.items() if math.isfinite(x)}
        axis.plot([*kept], [*kept.values()], "o-", color=colour, ms=3, mfc="white")
        axis.plot(best, tried[best], "o", color=colour, ms=5)
        diverged = [rate for rate in tried if rate not in kept]
        height = max(finite) * (1.1 + 0.12 * i)
        axis.plot(diverged, [height] * len(diverged), "x", color=colour, ms=4)
    axis.set(xscale="log", xlabel="learning rate (× failed)", ylabel="loss after tuning (nats)")
    axis.set(yscale="log")


def describe(folder: Path) -> str:
    """The report's section: who wins, the figure, and a table, in Markdown."""
    panels, information = read_curves(folder / f"{NAME}.csv"), read_json(folder / f"{NAME}.json")
    tuning = read_table(folder / f"{NAME}_tuning.csv")
    lines = [
        "## At the best rate of each (not in the paper)",
        "",
        f"![Each method at its best rate]({NAME}.png)",
        "",
        "The paper compares at equal rates. Here each method's rate is the one with the lowest "
        "validation loss after the tuning steps, one seed, of the same grid for all; a rate at "
        "which a run diverges, or ends above where it began, is left out. Then, with that rate and "
        "other seeds (the figure has geometric means, with 95 % intervals of the logarithms; the "
        "table and the winners are by arithmetic means):",
        "",
        "| model | estimator | rates tried, steps each | best rate | seeds | steps "
        "| validation loss | test accuracy | training time (s) | 10⁹ operations |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    verdicts = []
    for panel, by_estimator in panels.items():
        title = information["titles"][panel]
        for estimator, line in by_estimator.items():
            tried = _tuning(folder, panel)[estimator]
            of_line = [r for r in tuning if (r["panel"], r["estimator"]) == (panel, estimator)]
            grid = f"{len(tried)} from {min(tried):g} to {max(tried):g}, {of_line[0]['num_steps']}"
            best, steps = _best_rate(tried), int(line["step"][0, -1])
            edge = " (end of the grid)" if best in (min(tried), max(tried)) else ""
            accuracy = mean_interval(information["test_accuracy"][panel][estimator])
            operations = steps * information["operations"][panel][estimator] / 1e9
            lines.append(
                f"| {title} | {style.name(estimator)} | {grid} | {best:g}{edge} "
                f"| {len(line['step'])} | {steps} | {final(line, 'valid_loss')} | {accuracy} "
                f"| {final(line, 'seconds')} | {operations:.4g} |"
            )
        verdicts.append(f"{title}: {_winners(by_estimator, information['operations'][panel])}")
    return "\n".join([*lines, "", *verdicts])


def _winners(lines: dict[str, Curve], operations: dict[str, float]) -> str:
    """Who has the lowest mean loss at equal iterations, training time and operations."""
    means = {name: {k: x.mean(0) for k, x in line.items()} for name, line in lines.items()}
    budgets = {
        "iterations": {name: mean["step"] for name, mean in means.items()},
        "training time": {name: mean["seconds"] for name, mean in means.items()},
        "operations": {name: mean["step"] * operations[name] for name, mean in means.items()},
    }
    won: dict[str, list[str]] = {}
    for budget, spent in budgets.items():
        limit = min(x[-1] for x in spent.values())
        losses = {n: float(np.interp(limit, spent[n], means[n]["valid_loss"])) for n in means}
        best = min(losses, key=lambda name: losses[name])
        won.setdefault(best, []).append(f"equal {budget}")
    return "; ".join(f"{style.name(n)} wins at {', '.join(b)}" for n, b in won.items()) + "."


def findings(folder: Path) -> list[Finding]:
    """What the tables say of what replications found, for the MLP."""
    panels = read_curves(folder / f"{NAME}.csv")
    if "mlp" not in panels:
        return []
    names = ("backprop", "forward-normal", "forward-low_rank")
    losses = [panels["mlp"][name]["valid_loss"][:, -1] for name in names]
    rates = [_best_rate(_tuning(folder, "mlp")[name]) for name in names]
    wins = [mean_interval(losses[0] / x) for x in losses[1:]]
    times_larger = [Interval(rates[0] / x, math.nan, math.nan, 1) for x in rates[1:]]
    accuracies = read_json(folder / f"{NAME}.json")["test_accuracy"]["mlp"]
    best = [mean_interval(accuracies[name]) for name in names[1:]]
    found = [
        compare("replications.backprop_wins", wins[0], wins[1]),
        compare("replications.rates", times_larger[0], times_larger[1]),
        compare("replications.accuracy", best[0], best[1]),
    ]
    return [f for f in found if f is not None]


@hydra.main(version_base="1.3", config_path="../configs", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    jobs.alone(cfg, sys.modules[__name__])


if __name__ == "__main__":
    main()
