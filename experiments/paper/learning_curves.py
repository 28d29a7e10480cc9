"""Figures 3, 4 and 5 of the paper: learning curves on MNIST, forward gradients and backprop.

One row of panels for each model: loss against iterations, loss against time, time against
iterations, accuracy against time; with the paper's T, and with R where `step_cost` has measured it
in the same folder. Part of `reproduce`; alone:

    python -m experiments.paper.learning_curves preset=quick

Leaves in the preset's folder `learning_curves.csv` (a row an evaluation),
`learning_curves_runs.csv` (a row a run; one whose step a run of another seed had compiled has a
`compile_seconds` of 0), `learning_curves.json` and the figure `learning_curves`.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.common import alone, budget, commands, from_config, jobs
from experiments.common.costs import step_of
from experiments.common.curves import (
    read_curves,
    write_curves,
)
from experiments.paper.learning_curves_figure import draw_figures
from experiments.paper.learning_curves_report import NAME, RUN_COLUMNS
from experiments.paper.learning_curves_report import describe as describe
from experiments.paper.learning_curves_report import findings as findings
from fwdgrad.records import RunRecord, read_json, write_table
from fwdgrad.training import DivergedError

_FEW_SEEDS = 3  # an interval needs as many


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
        with limit.job(part, seed, level=2 * (i >= _FEW_SEEDS), share=1 / len(ranked)):
            trained, failed = _train(cfg, panel, seed, bar)
            records, diverged = [*records, *trained], [*diverged, *failed]
            if compared := _compared(records):
                _write_tables(cfg, compared, diverged, folder)
    compared = _compared(records)
    if not compared and diverged:
        raise DivergedError(
            f"with every seed backprop diverges: {diverged}. Lower the learning rates of "
            f"experiments.{NAME}.panels."
        )
    if not compared:
        raise budget.LeftOut(NAME)
    _write_tables(cfg, compared, diverged, folder)


def _compared(
    records: list[tuple[str, str, int, RunRecord]],
) -> list[tuple[str, str, int, RunRecord]]:
    """Return the runs of panels that have a run of backprop, with which the others are compared."""
    panels = {panel for panel, line, *_ in records if line == "backprop"}
    return [record for record in records if record[0] in panels]


def _train(
    cfg: DictConfig, panel: str, seed: int, bar: Any
) -> tuple[list[tuple[str, str, int, RunRecord]], list[tuple[str, str, int]]]:
    """Return the runs of all lines of a panel with a seed, and the lines that diverged.

    Say so of each, unless all of them were recorded before.
    """
    records, diverged = [], []

    def say(text: str) -> None:
        if budget.present().is_working:
            bar.write(f"{NAME}: {text}")

    for line in cfg.experiments[NAME].lines:
        try:
            record = from_config.run(_train_config(cfg, panel, line, seed))
        except DivergedError as error:
            diverged.append((panel, line, seed))
            say(f"{panel} {line} seed {seed}: {error}")
            continue
        records.append((panel, line, seed, record))
        say(from_config.summary(record))
    return records, diverged


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
        runs.append((*names, *(values[column] for column in [*RUN_COLUMNS][3:])))
    write_table(folder / f"{NAME}_runs.csv", RUN_COLUMNS, runs)
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
    """Draw the figures from the tables in `folder`."""
    information = read_json(folder / f"{NAME}.json")
    draw_figures(read_curves(folder / f"{NAME}.csv"), information, folder, NAME)


command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.paper.learning_curves")
