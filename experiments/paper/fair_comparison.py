"""A comparison that the paper lacks: each method at its best learning rate.

For every model and method the rate is tuned as `configs/protocol.yaml` says: by the same budget
for all, at full length, with several seeds, on the validation set. Then each trains at its own rate
with other seeds. Loss against iterations, training time and floating-point operations.
Part of `reproduce`; alone:

    python -m experiments.paper.fair_comparison preset=quick

Leaves `fair_comparison.csv` (a row an evaluation), `fair_comparison_tuning.csv` (a row a run and
rate), `fair_comparison_comparisons.csv` (a row a paired comparison), `fair_comparison_timings.csv`
(a row a timed turn), `fair_comparison.json` and the figure `fair_comparison`.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments.common import (
    alone,
    commands,
    comparisons,
    costs,
    jobs,
    machines,
    style,
    tables,
    timings,
    tuning,
)
from experiments.common.curves import Curve, final_value, read_curves, write_curves
from experiments.common.paper_facts import Finding, compare
from experiments.common.tuning import Rates, Tuned
from experiments.common.verdicts import CONFIDENCE, SEEDS
from experiments.paper.fair_comparison_figure import draw_comparison
from fwdgrad.measurement import Interval, mean_interval
from fwdgrad.records import read_json, write_table
from fwdgrad.training import DivergedError

NAME = "fair_comparison"
_OF_FINDINGS = "mlp"  # the panel that is held against the numbers of replications
_TUNING_COLUMNS: tables.Columns = {"panel": str, **tuning.COLUMNS}
_COMPARED = ("panel", *comparisons.Comparison._fields)
# Of the report's tables.
_SHOWN = (
    "model", "estimator", "best rate", "validation loss", "test error (%)", "training time (s)",
    "10⁹ operations",
)  # fmt: skip
_SHOWN_COMPARISONS = ("model", "estimator", "against", "difference of losses", "p", "corrected")


def run(cfg: DictConfig, folder: Path) -> None:
    """Tune and train, or read runs back, and write the tables."""
    experiment = cfg.experiments[NAME]
    runs = folder / "runs" / NAME
    lines: dict[str, dict[str, Tuned]] = {}
    operations: dict[str, dict[str, float]] = {}
    counts: list[Any] = []
    trials: dict[str, list[Any]] = {}
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
        lines.setdefault(panel, {})[name] = line
        counted = costs.operations_of_a_step(line.config, runs)
        operations.setdefault(panel, {})[name] = counted["result"]
        counts.append(counted)
        trials.setdefault(panel, []).extend(trial.info for trial in line.trials)
    if not lines:
        raise DivergedError(f"every line fails at every rate of experiments.{NAME}.")
    timed = {
        (panel,): costs.training_costs(
            {name: line.config for name, line in of_panel.items()}, runs, **experiment.timing
        )
        for panel, of_panel in lines.items()
    }
    _write_tables(lines, timed, experiment, folder)
    every = [info for of_panel in trials.values() for info in of_panel]
    information = {
        "titles": {panel: experiment.panels[panel].title for panel in experiment.shown},
        "operations": operations,
        "test_accuracy": {
            panel: {
                name: [run.info["final"]["test_accuracy"] for run in line.runs.values()]
                for name, line in of_panel.items()
            }
            for panel, of_panel in lines.items()
        },
        "differs": {
            panel: jobs.differences(experiment.panels[panel]) for panel in experiment.shown
        },
        "tuning": jobs.to_plain(experiment.tuning),
        "failed": failed,
        "processes": timings.processes_of(timed),
        "trained_on": machines.names(every),
        "timed_on": machines.names(timed.values()),
        "findings_of": jobs.provenance_of(trials.get(_OF_FINDINGS, []))["provenance"],
        **jobs.provenance_of([*every, *counts, *timed.values()]),
    }
    written = [NAME, *(f"{NAME}_{table}" for table in ("tuning", "comparisons", "timings"))]
    jobs.write_information(folder, NAME, written, information)


def train_line(cfg: DictConfig, folder: Path) -> None:
    """Tune and train the line `cfg.line` with every model; `run` reads the runs back."""
    bar = jobs.progress(list(cfg.experiments[NAME].shown), cfg, NAME)
    for panel in bar:
        _tune_and_train(cfg, panel, cfg.line, bar)


def _tune_and_train(cfg: DictConfig, panel: str, name: str, bar: Any) -> Tuned:
    experiment = cfg.experiments[NAME]
    settings, line = experiment.panels[panel], experiment.lines[name]
    overrides = [*settings.overrides, *line.overrides]

    def make_config(rate: float, seed: int, is_tuning: bool) -> DictConfig:
        rows = 1 if is_tuning else settings.num_rows
        return jobs.compose_train(
            cfg, overrides, learning_rate=rate, seed=seed, num_steps=settings.num_steps,
            eval_every=max(1, settings.num_steps // rows),
        )  # fmt: skip

    def note(text: str) -> None:
        bar.write(f"{NAME}: {panel}, {name}: {text}")

    rule, seeds = jobs.to_plain(experiment.tuning), jobs.to_plain(experiment.seeds)
    return tuning.tune_and_train(make_config, line.first_rates[panel], rule, seeds, note)


def _write_tables(
    lines: dict[str, dict[str, Tuned]], timed: Any, experiment: DictConfig, folder: Path
) -> None:
    every = [(panel, name, line) for panel, x in lines.items() for name, line in x.items()]
    write_curves(
        folder / f"{NAME}.csv",
        (
            (panel, name, seed, run)
            for panel, name, line in every
            for seed, run in line.runs.items()
        ),
    )
    write_table(
        folder / f"{NAME}_tuning.csv",
        _TUNING_COLUMNS,
        [(*names, *trial.row) for *names, line in every for trial in line.trials],
    )
    pairs = [
        (panel, first, second)
        for panel in lines
        for first, second in experiment.comparisons
        if {first, second} <= set(lines[panel])
    ]
    losses = {
        (panel, name): np.array([run.metrics[-1].valid_loss for run in line.runs.values()])
        for panel, name, line in every
    }
    found = comparisons.compare(
        [(first, second) for _, first, second in pairs],
        [losses[panel, first] - losses[panel, second] for panel, first, second in pairs],
        confidence=experiment.confidence,
    )
    rows = [(panel, *x) for (panel, *_), x in zip(pairs, found, strict=True)]
    write_table(folder / f"{NAME}_comparisons.csv", _COMPARED, rows)
    timings.write_timings(folder / f"{NAME}_timings.csv", timed, ["panel"])


def _read(folder: Path) -> dict[str, dict[str, Curve]]:
    """Return panel -> estimator -> curve; its seconds are steps times the time of a step."""
    panels = read_curves(folder / f"{NAME}.csv")
    for (panel,), samples in timings.read_timings(
        folder / f"{NAME}_timings.csv", {"panel": str}
    ).items():
        for name, interval in costs.seconds(samples).items():
            curve = panels[panel][name]
            curve["seconds"] = curve["step"] * interval.value
    return panels


def draw(folder: Path) -> None:
    """Draw the figure from the tables in `folder`."""
    panels, information = _read(folder), read_json(folder / f"{NAME}.json")
    tuned = {
        panel: {x: (rates.chosen, rates.means) for x, rates in _rates(folder, panel).items()}
        for panel in panels
    }
    draw_comparison(panels, tuned, information, folder, NAME)


def _rates(folder: Path, panel: str) -> dict[str, Rates]:
    """Return estimator -> the rates tried and the one chosen."""
    rows = tables.read(folder / f"{NAME}_tuning.csv", _TUNING_COLUMNS)
    return tuning.read_rates(rows[rows["panel"] == panel])


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the winners, the figure, and tables."""
    panels, information = _read(folder), read_json(folder / f"{NAME}.json")
    rule = information["tuning"]
    text = [
        "## At the best rate of each (not in the paper)",
        "",
        f"![Each method at its best rate]({NAME}.png)",
        "",
        f"Every line tries {rule['num_rates']} rates, each at full length with "
        f"{len(rule['seeds'])} seeds, and takes the one of the lowest mean validation loss "
        "([protocol](../../configs/protocol.yaml)); then other seeds train at it. Losses are means "
        "over these seeds with 95 % intervals (Student's t), the figure's are geometric means. "
        "Time is steps times the time of a step on an idle machine."
        f"{machines.sentence(information)}",
        "",
    ]
    rows, verdicts = [], []
    for panel, by_estimator in panels.items():
        title, rates = information["titles"][panel], _rates(folder, panel)
        for estimator, line in by_estimator.items():
            accuracies = np.array(information["test_accuracy"][panel][estimator], float)
            operations = float(line["step"][0, -1]) * information["operations"][panel][estimator]
            rows.append([
                title, style.label(estimator), rates[estimator], final_value(line, "valid_loss"),
                mean_interval(100 * (1 - accuracies)), f"{line['seconds'][0, -1]:.3g}",
                f"{operations / 1e9:.3g}",
            ])  # fmt: skip
        verdicts.append(f"{title}: {_winners(by_estimator, information['operations'][panel])}")
    for panel, name in information["failed"]:
        title = information["titles"][panel]
        verdicts.append(f"{title}: {style.label(name)} fails at every rate and is left out.")
    compared = [
        (information["titles"][names["panel"]], style.label(c.first), style.label(c.second),
         Interval(c.difference, c.low, c.high, c.n), f"{c.p_value:.2g}", f"{c.corrected:.2g}")
        for names, c in comparisons.read(folder / f"{NAME}_comparisons.csv")
    ]  # fmt: skip
    return "\n".join([
        *text, *tables.markdown(_SHOWN, rows), "", *verdicts, "",
        "The comparisons that the protocol names, paired by seed; p-values are corrected for their "
        "number by Holm's method:", "", *tables.markdown(_SHOWN_COMPARISONS, compared),
    ])  # fmt: skip


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
    panels, information = _read(folder), read_json(folder / f"{NAME}.json")
    names = ("backprop", "forward-normal", "forward-low_rank")
    if not set(names) <= set(panels.get(_OF_FINDINGS, {})):
        return []
    losses = [panels[_OF_FINDINGS][name]["valid_loss"][:, -1] for name in names]
    rates = [_rates(folder, _OF_FINDINGS)[name] for name in names]
    errors = [1 - np.array(information["test_accuracy"][_OF_FINDINGS][name]) for name in names]
    rates_of_errors = [mean_interval(x, CONFIDENCE) for x in errors]
    differs = information["differs"][_OF_FINDINGS]
    samples: Any = {"of": SEEDS, "differs": differs}
    found = [
        compare(
            "replications.backprop_wins",
            *(mean_interval(losses[0] / x, CONFIDENCE) for x in losses[1:]),
            **samples,
        ),
        compare(
            "replications.rates", *(rates[0].over(r, CONFIDENCE) for r in rates[1:]), **samples
        ),
        compare("replications.weights", *rates_of_errors[1:], **samples),
        compare("replications.backprop", rates_of_errors[0], **samples),
    ]
    return [f for f in found if f is not None]


command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.paper.fair_comparison")
