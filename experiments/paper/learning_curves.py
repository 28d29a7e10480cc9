"""Figures 3, 4 and 5 of the paper: learning curves on MNIST, forward gradients and backprop.

One row of panels for each model: loss against iterations, loss against time, time against
iterations, accuracy against time; with the paper's T, and with R where `step_cost` has measured it
in the same folder. Part of `reproduce`; alone:

    python -m experiments.paper.learning_curves preset=quick

Leaves in the preset's folder `learning_curves.csv` (a row an evaluation),
`learning_curves_runs.csv` (a row a run), `learning_curves.json` and the figure `learning_curves`.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.common import budget, commands, from_config, jobs, style, tables
from experiments.common.costs import read_costs, step_of
from experiments.common.curves import (
    Curve,
    Unreached,
    final_value,
    mean_time,
    ratios_of_times,
    ratios_to_common_loss,
    read_curves,
    times_to_best,
    write_curves,
)
from experiments.common.paper_facts import Finding, compare
from experiments.paper.learning_curves_figure import learning_curves_figure
from fwdgrad.measurement import Interval, mean_interval
from fwdgrad.records import RunRecord, read_json, write_table
from fwdgrad.training import DivergedError

NAME = "learning_curves"
_FEW_SEEDS = 3  # an interval needs as many
_RUN_COLUMNS: tables.Columns = {
    "panel": str, "estimator": str, "seed": int, "num_steps": int, "seconds": float,
    **dict.fromkeys(("milliseconds_per_step", "compile_seconds", "train_loss"), float),
    **dict.fromkeys(("valid_loss", "valid_accuracy", "test_accuracy"), float),
}  # fmt: skip
# Of the report's table.
_SHOWN = (
    "model", "estimator", "seeds", "steps", "ms a step", "R", "R / R_b", "T / T_b", "both reach",
    "validation loss", "test accuracy",
)  # fmt: skip


def run(cfg: DictConfig, folder: Path) -> None:
    """Train every panel, seed and line, or read runs back; write the tables after each seed.

    The order is that of importance: a seed of every panel before the next, and the seeds that an
    interval needs before more of them.
    """
    experiment, limit = cfg.experiments[NAME], budget.present()
    seeds = {name: experiment.panels[name].seeds or experiment.seeds for name in experiment.shown}
    ranked = [(i, panel, seed) for panel in seeds for i, seed in enumerate(seeds[panel])]
    ranked.sort(key=lambda job: job[0])
    records: list[tuple[str, str, int, RunRecord]] = []
    diverged: list[tuple[str, str, int]] = []
    bar = jobs.progress(ranked, cfg, NAME)
    for i, panel, seed in bar:
        part = f"{experiment.panels[panel].title}, seed"
        bar.set_postfix_str(f"{part} {seed}")
        with limit.job(part, seed, level=int(i >= _FEW_SEEDS), share=1 / len(ranked)):
            trained, failed = _train(cfg, panel, seed, bar)
            records, diverged = [*records, *trained], [*diverged, *failed]
            if whole := _whole_seeds(records, diverged):
                _write_tables(cfg, whole, diverged, folder)
    whole = _whole_seeds(records, diverged)
    if not whole and diverged:
        raise DivergedError(
            f"with every seed a run diverges: {diverged}. Lower the learning rates of "
            f"experiments.{NAME}.panels."
        )
    if not whole:
        raise budget.LeftOut(NAME)
    _write_tables(cfg, whole, diverged, folder)


def _train(
    cfg: DictConfig, panel: str, seed: int, bar: Any
) -> tuple[list[tuple[str, str, int, RunRecord]], list[tuple[str, str, int]]]:
    """Return the runs of all lines of a panel with a seed, and the lines that diverged."""
    records, diverged = [], []
    for line in cfg.experiments[NAME].lines:
        try:
            record = from_config.run(_train_config(cfg, panel, line, seed))
        except DivergedError as error:
            diverged.append((panel, line, seed))
            bar.write(f"{NAME}: {panel} {line} seed {seed}: {error}")
            continue
        records.append((panel, line, seed, record))
        bar.write(f"{NAME}: {from_config.summary(record)}")
    return records, diverged


def _whole_seeds(
    records: list[tuple[str, str, int, RunRecord]], diverged: list[tuple[str, str, int]]
) -> list[tuple[str, str, int, RunRecord]]:
    """Return the runs of the seeds with which no line of a panel diverged, for paired lines."""
    left_out = {(panel, seed) for panel, _, seed in diverged}
    return [record for record in records if (record[0], record[2]) not in left_out]


def _train_config(cfg: DictConfig, panel: str, line: str, seed: int) -> DictConfig:
    settings = cfg.experiments[NAME].panels[panel]
    length = {"num_steps": settings.num_steps, "eval_every": settings.eval_every}
    return jobs.train_config(cfg, NAME, panel, line, **length, seed=seed)


def _write_tables(
    cfg: DictConfig,
    records: list[tuple[str, str, int, RunRecord]],
    diverged: list[tuple[str, str, int]],
    folder: Path,
) -> None:
    order = list(cfg.experiments[NAME].shown)
    records = sorted(records, key=lambda names: (order.index(names[0]), names[2]))
    diverged = sorted(diverged, key=lambda names: (order.index(names[0]), names[2]))
    write_curves(folder / f"{NAME}.csv", records)
    runs = []
    for *names, record in records:
        final = record.info["final"]
        values = {
            "num_steps": final["step"],
            "milliseconds_per_step": 1e3 * final["seconds"] / final["step"],
            "compile_seconds": record.info["compile_seconds"],
            **final,
        }
        runs.append((*names, *(values[column] for column in [*_RUN_COLUMNS][3:])))
    write_table(folder / f"{NAME}_runs.csv", _RUN_COLUMNS, runs)
    experiment = cfg.experiments[NAME]
    panels = {panel: experiment.panels[panel] for panel in experiment.shown}
    every = [record.info for *_, record in records]
    every += [from_config.recorded_info(_train_config(cfg, *names)) for names in diverged]
    information = {
        "titles": {panel: settings.title for panel, settings in panels.items()},
        "shortened": {
            panel: f"{settings.num_steps:,} of {settings.full.num_steps:,}"
            for panel, settings in panels.items()
            if settings.num_steps < settings.full.num_steps
        },
        "changed": {
            panel: jobs.differences(settings, but_for=["num_steps"])
            for panel, settings in panels.items()
        },
        "steps": {
            panel: step_of(_train_config(cfg, panel, "backprop", seed=0)) for panel in panels
        },
        "diverged": diverged,
        **jobs.provenance_of(every),
    }
    jobs.write_information(folder, NAME, [NAME, f"{NAME}_runs"], information)


def draw(folder: Path) -> None:
    """Draw the figure from the tables in `folder`."""
    panels, information = read_curves(folder / f"{NAME}.csv"), read_json(folder / f"{NAME}.json")
    costs = read_costs(folder, information.get("steps", {}))
    titles = {
        panel: f"{title} ({information['shortened'][panel]} iterations)"
        if panel in information["shortened"]
        else title
        for panel, title in information["titles"].items()
    }
    style.save(learning_curves_figure(panels, costs, titles), folder, NAME)


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the figure, and a table of final numbers."""
    panels, information = read_curves(folder / f"{NAME}.csv"), read_json(folder / f"{NAME}.json")
    costs = read_costs(folder, information.get("steps", {}))
    runs = tables.read(folder / f"{NAME}_runs.csv", _RUN_COLUMNS)
    text = [
        "## Learning curves (the paper's figures 3, 4 and 5)",
        "",
        f"![Learning curves]({NAME}.png)",
        "",
        "Means over the seeds, with 95 % intervals (Student's t) shaded in the figure and in "
        "brackets below. Time is training time alone: compilation, evaluation and logging are "
        "off the clock. The training loss is the mean over the minibatches since the evaluation "
        "before, so it lags by half that distance. T is the time at which a seed's validation "
        "loss reaches the lowest of backprop's with the same seed, T_b for backprop itself; in the "
        "figure, as in the paper, it is that of the mean curves. Where two curves lie on each "
        "other it is by chance that one gets as low as the other; the next column is the ratio of "
        "the times to the lowest loss that both reach with that seed. R, the time of a step over "
        "the loss alone, is that of the table of step costs.",
        "",
    ]
    rows = []
    for panel, by_estimator in panels.items():
        title = information["titles"][panel]
        for estimator in by_estimator:
            chosen = runs[(runs["panel"] == panel) & (runs["estimator"] == estimator)]
            cost = costs.get(panel, {}).get(estimator, {})
            rows.append([
                title, style.label(estimator), len(chosen), chosen["num_steps"].iloc[0],
                mean_interval(chosen["milliseconds_per_step"]), cost.get("relative_cost", "–"),
                cost.get("over_reference", "–"), _ratio(by_estimator, estimator),
                mean_time(ratios_to_common_loss(by_estimator, estimator, "backprop")),
                mean_interval(chosen["valid_loss"]), mean_interval(chosen["test_accuracy"]),
            ])  # fmt: skip
    text += tables.markdown(_SHOWN, rows)
    for panel, steps in information["shortened"].items():
        text += ["", f"{information['titles'][panel]} is shortened to {steps} iterations."]
    for panel, line, seed in information["diverged"]:
        title = information["titles"][panel]
        text += ["", f"{title}: {style.label(line)} diverged with seed {seed}, left out of all."]
    return "\n".join(text)


def _ratio(lines: dict[str, Curve], estimator: str) -> Interval | Unreached:
    return mean_time(ratios_of_times(lines, estimator, "backprop"))


def findings(folder: Path) -> list[Finding]:
    """Compare the tables with the paper's numbers."""
    panels, information = read_curves(folder / f"{NAME}.csv"), read_json(folder / f"{NAME}.json")
    costs = read_costs(folder, information.get("steps", {}))
    found = []
    for panel, lines in panels.items():
        times = times_to_best(lines, "backprop")
        dense, low_rank = "forward-normal", "forward-low_rank"
        of_steps: dict[str, tuple[Any, Any]] = {}
        if panel in costs:
            R, over = (
                {line: cost[quantity] for line, cost in costs[panel].items()}
                for quantity in ("relative_cost", "over_reference")
            )
            of_steps = {
                "R_f": (R[dense], R[low_rank]),
                "R_b": (R["backprop"], ""),
                "R_ratio": (over[dense], over[low_rank]),
            }
        of_training: dict[str, tuple[Any, Any]] = {
            "T_f": (mean_time(times[dense]), mean_time(times[low_rank])),
            "T_b": (mean_time(times["backprop"]), ""),
            "T_ratio": (_ratio(lines, dense), _ratio(lines, low_rank)),
        }
        for key in ("loss", "accuracy"):
            ends = {e: final_value(line, f"valid_{key}") for e, line in lines.items()}
            of_training[f"{key}_f"] = (ends[dense], ends[low_rank])
            of_training[f"{key}_b"] = (ends["backprop"], "")
        losses = {e: line["valid_loss"][:, -1] for e, line in lines.items()}
        of_training["loss_ratio"] = (
            mean_interval(losses[dense] / losses["backprop"]),
            mean_interval(losses[low_rank] / losses["backprop"]),
        )
        changed = information["changed"][panel]
        shortened = information["shortened"].get(panel, "")
        lost = [f"seed {seed}, with which {line} diverged, is left out" for panel_of, line, seed
                in information["diverged"] if panel_of == panel]  # fmt: skip
        after = [f"after {shortened} iterations"] if shortened else []
        differs = "; ".join([*([changed] if changed else []), *after, *lost])
        if panel == "mlp_2e-4" and of_steps:
            found.append(compare("replications.slower", *of_steps["R_ratio"], differs=changed))
        found += [compare(f"{panel}.{k}", *pair, differs=changed) for k, pair in of_steps.items()]
        found += [
            compare(f"{panel}.{k}", *pair, differs=differs) for k, pair in of_training.items()
        ]
    return [f for f in found if f is not None]


command = jobs.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.paper.learning_curves")
