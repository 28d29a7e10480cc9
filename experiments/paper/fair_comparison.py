"""A comparison that the paper lacks: each method at its best learning rate.

For every model and method the rate is tuned on the validation set, all methods with the same grid
and the same number of steps; then each trains at its own rate with several seeds. Loss against
iterations, against training time and against floating-point operations. Part of `reproduce`; alone:

    python -m experiments.paper.fair_comparison preset=quick

Leaves `fair_comparison.csv` (a row an evaluation), `fair_comparison_tuning.csv` (a row a rate
tried), `fair_comparison.json` and the figure `fair_comparison`.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments.common import commands, jobs, style, tables
from experiments.common.costs import operations_of_a_step
from experiments.common.curves import Curve, final_value, read_curves, write_curves
from experiments.common.paper_facts import Finding, compare
from experiments.common.tuning import Rates, Tuned, read_rates, tune_and_train
from experiments.common.verdicts import CONFIDENCE, SEEDS
from experiments.paper.fair_comparison_figure import draw_comparison
from fwdgrad.measurement import mean_interval
from fwdgrad.records import read_json, write_table
from fwdgrad.training import DivergedError

NAME = "fair_comparison"
_TUNING_COLUMNS: tables.Columns = {
    "panel": str, "estimator": str, "learning_rate": float, "num_steps": int, "valid_loss": float,
    "failed_seeds": tables.gaps,
}  # fmt: skip
# Of the report's table.
_SHOWN = (
    "model", "estimator", "rates tried, steps each", "best rate", "seeds", "steps",
    "validation loss", "test accuracy", "training time (s)", "10⁹ operations",
)  # fmt: skip


def run(cfg: DictConfig, folder: Path) -> None:
    """Tune and train, or read runs back, and write the tables."""
    experiment = cfg.experiments[NAME]
    lines: dict[tuple[str, str], Tuned] = {}
    operations: dict[str, dict[str, float]] = {}
    accuracies: dict[str, dict[str, list[float]]] = {}
    sources: list[Any] = []
    bar = jobs.progress(list(itertools.product(experiment.shown, experiment.lines)), cfg, NAME)
    failed: list[tuple[str, str]] = []
    for panel, name in bar:
        bar.set_postfix_str(f"{panel} {name}")
        try:
            line = _tune_and_train(cfg, panel, name, bar)
        except DivergedError as error:
            failed.append((panel, name))
            bar.write(f"{NAME}: {panel} {name}: {error}")
            continue
        lines[panel, name] = line
        counted = operations_of_a_step(line.config, folder / "runs" / NAME)
        operations.setdefault(panel, {})[name] = counted["result"]
        accuracies.setdefault(panel, {})[name] = [
            run.info["final"]["test_accuracy"] for run in line.runs.values()
        ]
        sources += [*line.others, *(run.info for run in line.runs.values()), counted]
    if not lines:
        raise DivergedError(f"every line fails at every rate of experiments.{NAME}.")
    write_curves(
        folder / f"{NAME}.csv",
        ((*names, seed, run) for names, line in lines.items() for seed, run in line.runs.items()),
    )
    write_table(
        folder / f"{NAME}_tuning.csv",
        _TUNING_COLUMNS,
        [
            (panel, name, rate, experiment.panels[panel].tuning_steps, *rest)
            for (panel, name), line in lines.items()
            for rate, *rest in line.columns()
        ],
    )
    information = {
        "titles": {panel: experiment.panels[panel].title for panel in experiment.shown},
        "operations": operations,
        "test_accuracy": accuracies,
        "differs": {
            panel: jobs.differences(experiment.panels[panel]) for panel in experiment.shown
        },
        "failed": failed,
        **jobs.provenance_of(sources),
    }
    jobs.write_information(folder, NAME, [NAME, f"{NAME}_tuning"], information)


def _tune_and_train(cfg: DictConfig, panel: str, name: str, bar: Any) -> Tuned:
    settings = cfg.experiments[NAME].panels[panel]

    def make_config(rate: float, seed: int, tuning: bool) -> DictConfig:
        num_steps = settings.tuning_steps if tuning else settings.num_steps
        length = {"num_steps": num_steps, "eval_every": max(1, num_steps // settings.num_rows)}
        return jobs.train_config(cfg, NAME, panel, name, learning_rate=rate, **length, seed=seed)

    def note(text: str) -> None:
        bar.write(f"{NAME}: {text}")

    return tune_and_train(make_config, settings.rates, cfg.experiments[NAME].seeds, note)


def draw(folder: Path) -> None:
    """Draw the figure from the tables in `folder`."""
    panels, information = read_curves(folder / f"{NAME}.csv"), read_json(folder / f"{NAME}.json")
    tuned = {
        panel: {x: (rates.chosen, rates.tried) for x, rates in _rates(folder, panel).items()}
        for panel in panels
    }
    draw_comparison(panels, tuned, information, folder, NAME)


def _rates(folder: Path, panel: str) -> dict[str, Rates]:
    """Return estimator -> the rates tried and the one chosen."""
    rows = tables.read(folder / f"{NAME}_tuning.csv", _TUNING_COLUMNS)
    return read_rates(rows[rows["panel"] == panel], "valid_loss")


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the winners, the figure, and a table."""
    panels, information = read_curves(folder / f"{NAME}.csv"), read_json(folder / f"{NAME}.json")
    table = tables.read(folder / f"{NAME}_tuning.csv", _TUNING_COLUMNS)
    tuning_steps = dict(zip(table["panel"], table["num_steps"], strict=True))
    text = [
        "## At the best rate of each (not in the paper)",
        "",
        f"![Each method at its best rate]({NAME}.png)",
        "",
        "The paper compares at equal rates. Here each method has the rate with the lowest "
        "validation loss after the tuning steps, by one seed, of the same grid for all. A rate is "
        "left out if its run fails: if it diverges or ends above its start. Then other seeds train "
        "at that rate; if one of them fails, the rate is given up, as the table notes, and all "
        "train at the next best. The figure has geometric means, with 95 % intervals of the "
        "logarithms; the table and the winners are by arithmetic means.",
        "",
    ]
    rows, verdicts = [], []
    for panel, by_estimator in panels.items():
        title, rates = information["titles"][panel], _rates(folder, panel)
        for estimator, line in by_estimator.items():
            tried, steps = rates[estimator].tried, int(line["step"][0, -1])
            grid = f"{len(tried)} from {min(tried):g} to {max(tried):g}, {tuning_steps[panel]}"
            accuracy = mean_interval(information["test_accuracy"][panel][estimator])
            operations = steps * information["operations"][panel][estimator] / 1e9
            rows.append([
                title, style.label(estimator), grid, rates[estimator], len(line["step"]), steps,
                final_value(line, "valid_loss"), accuracy, final_value(line, "seconds"),
                f"{operations:.4g}",
            ])  # fmt: skip
        verdicts.append(f"{title}: {_winners(by_estimator, information['operations'][panel])}")
    for panel, name in information["failed"]:
        title = information["titles"][panel]
        verdicts.append(f"{title}: {style.label(name)} fails at every rate and is left out.")
    return "\n".join([*text, *tables.markdown(_SHOWN, rows), "", *verdicts])


def _winners(lines: dict[str, Curve], operations: dict[str, float]) -> str:
    """Name the estimator of the lowest mean loss at equal iterations, time and operations."""
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
    return "; ".join(f"{style.label(n)} wins at {', '.join(b)}" for n, b in won.items()) + "."


def findings(folder: Path) -> list[Finding]:
    """Compare the tables with the numbers of replications, for the MLP."""
    panels, information = read_curves(folder / f"{NAME}.csv"), read_json(folder / f"{NAME}.json")
    names = ("backprop", "forward-normal", "forward-low_rank")
    if not set(names) <= set(panels.get("mlp", {})):
        return []
    losses = [panels["mlp"][name]["valid_loss"][:, -1] for name in names]
    rates = [_rates(folder, "mlp")[name] for name in names]
    errors = [1 - np.array(information["test_accuracy"]["mlp"][name]) for name in names]
    rates_of_errors = [mean_interval(x, CONFIDENCE) for x in errors]
    differs = information["differs"]["mlp"]
    samples: Any = {"of": SEEDS, "differs": differs}
    found = [
        compare(
            "replications.backprop_wins",
            *(mean_interval(losses[0] / x, CONFIDENCE) for x in losses[1:]),
            **samples,
        ),
        compare("replications.rates", *(rates[0].over(r) for r in rates[1:]), **samples),
        compare("replications.weights", *rates_of_errors[1:], **samples),
        compare("replications.backprop", rates_of_errors[0], **samples),
    ]
    return [f for f in found if f is not None]


command = jobs.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.paper.fair_comparison")
