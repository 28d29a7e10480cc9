"""The main job: every figure and the report, python -m experiments.reproduce preset=quick

Presets are in configs/preset: `smoke` (tests), `quick` (minutes on two cores), `gpu` (minutes on
one GPU) and `paper` (the paper's iterations; hours). What was interrupted goes on, and what is
finished is not repeated. The report is written after every experiment. With `budget_seconds` the
least important jobs are left out, and the report names them. An experiment that fails does not keep
the others from running; the report names it, and the exit status is 1.
"""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from experiments.common import (
    alone,
    budget,
    commands,
    jobs,
    own_problem,
    report,
    settings,
    start,
)
from experiments.common.paper_facts import Finding
from experiments.cost import step_cost
from experiments.modes import differentiation
from experiments.paper import (
    depth_scaling,
    fair_comparison,
    learning_curves,
    small_rates,
    trajectories,
)
from experiments.quality import estimator_quality, perturbed_weights, scaling_laws
from experiments.races import (
    accuracy_race,
    cnn_race,
    cnn_race_long,
    optimizer_race,
    sum_race,
    sum_race_cnn,
    sum_race_deep,
    sum_race_long,
    sum_race_shifted,
)
from fwdgrad.records import hold, read_json

# In the order of the report; the learning curves take R from the tables of `step_cost`. Each has
# run(cfg, folder), which leaves files in the folder, and from them draw(folder) and
# describe(folder), a section of the report; where the paper has such numbers, findings(folder).
EXPERIMENTS = {
    module.NAME: module
    for module in (
        trajectories, step_cost, learning_curves, depth_scaling, fair_comparison, small_rates,
        differentiation, estimator_quality, scaling_laws, perturbed_weights, accuracy_race,
        cnn_race, sum_race, sum_race_long, sum_race_shifted, sum_race_deep, sum_race_cnn,
        cnn_race_long, optimizer_race,
    )
}  # fmt: skip


class _Outcome(NamedTuple):
    """Contents of the report from one experiment; `failure` is the reason of one that failed."""

    section: str | None = None
    findings: Sequence[Finding] = ()
    failure: str = ""


def run(cfg: DictConfig) -> dict[str, str]:
    """Run, draw and report all experiments; return the reasons of those that failed.

    Raises:
      FolderInUseError: another process writes to the same root.
      FileNotFoundError: with draw_only, nothing is recorded in the root.
      RuntimeError: the preset is made for another platform.
      ValueError: the config names an unknown experiment.
    """
    folder = settings.root(cfg)
    shown = _shown(cfg)
    if cfg.line is not None:
        alone.check_line(cfg, "reproduce", has_lines=False)
    if cfg.draw_only:
        jobs.check_recorded(folder, shown)
    else:
        start.check_platform(cfg)
        cfg = own_problem.adapted(cfg, shown)
    with hold(folder), start.processes(cfg):
        limit = budget.Budget() if cfg.draw_only else start.start(cfg, shown)
        with budget.keep(limit):
            return _run(cfg, folder, shown)


def _shown(cfg: DictConfig) -> dict[str, Any]:
    """Return the experiments of a preset, in the order of the report."""
    names = EXPERIMENTS if cfg.shown is None else cfg.shown
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        raise ValueError(
            f"shown must name experiments, {', '.join(EXPERIMENTS)}; found {', '.join(unknown)}."
        )
    return {name: module for name, module in EXPERIMENTS.items() if name in names}


def _run(cfg: DictConfig, folder: Path, shown: dict[str, Any]) -> dict[str, str]:
    """Run the experiments, those with the most important jobs first, each with a new report."""
    done: dict[str, _Outcome] = {}
    path = folder / "README.md"
    limit = budget.present()
    present = {name for name in shown if (folder / f"{name}.json").exists()}
    for level in limit.rounds():
        due = [name for name in shown if limit.is_due(name, level)]
        if cfg.draw_only:
            due = [name for name in due if name in present]
        bar = jobs.progress(due, cfg, "reproduce")
        for name in bar:
            bar.set_postfix_str(name)
            begun = time.monotonic()
            done[name] = _experiment(cfg, folder, name, shown[name], done.get(name))
            path = _report(cfg, folder, done, [other for other in shown if other not in done])
            outcome = "left out" if limit.is_left_out(name) else done[name].failure or "done"
            bar.write(f"{name}: {outcome} after {time.monotonic() - begun:.0f} s")
    print(f"report: {path}")
    return {name: outcome.failure for name, outcome in done.items() if outcome.failure}


def _report(cfg: DictConfig, folder: Path, done: dict[str, _Outcome], waiting: list[str]) -> Path:
    sections = {name: x.section for name, x in done.items() if x.section is not None}
    findings = {name: outcome.findings for name, outcome in done.items()}
    failures = {name: outcome.failure for name, outcome in done.items() if outcome.failure}
    notes = [_left_out(folder, name, cfg) for name in done]
    if waiting:
        notes.append(f"Not yet run: {', '.join(waiting)}.")
    title = f"Results of the preset `{cfg.preset}`"
    made_by = f"python -m experiments.reproduce preset={cfg.preset}"
    notes = [note for note in notes if note]
    return report.write(folder, title, made_by, sections, findings, failures, notes)


def _left_out(folder: Path, name: str, cfg: DictConfig) -> str:
    """Return the sentence on what the budget left out of an experiment; "" if nothing."""
    path = folder / f"{name}.json"
    about = read_json(path) if path.exists() else {}
    if budget.present().is_left_out(name):
        about = {"budget_seconds": cfg.budget_seconds, "left_out": ["all of it"]}
    if "left_out" not in about:
        return ""
    parts = "; ".join(about["left_out"])
    return f"Left out of {name}, to keep the budget of {about['budget_seconds']:g} s: {parts}."


def _experiment(
    cfg: DictConfig, folder: Path, name: str, module: Any, before: _Outcome | None
) -> _Outcome:
    """Run an experiment, draw and describe it, unless that was done before and nothing is new."""
    failed: list[str] = []
    limit = budget.present()
    if not cfg.draw_only:
        with limit.experiment(name):
            _attempt(failed, "", module.run, cfg, folder)
        if limit.is_left_out(name):
            return _Outcome()
        if before is not None and not limit.has_worked and not failed:
            return before
    if not (folder / f"{name}.json").exists():
        return _Outcome(failure=(*failed, f"nothing of it is recorded, {name}.json is missing")[0])
    is_old = bool(failed)  # the files are then of an earlier run
    wrong: list[str] = []
    _attempt(wrong, "its tables: ", jobs.check_tables, folder, name)
    if wrong:  # they are neither drawn nor reported
        return _Outcome(failure="; ".join([*failed, *wrong]))
    with limit.drawing(name):
        _attempt(failed, "drawing: ", module.draw, folder)
    section = _attempt(failed, "its section: ", module.describe, folder)
    findings_of: Any = getattr(module, "findings", lambda folder: [])
    found = _attempt(failed, "its numbers: ", findings_of, folder) or []
    if is_old:
        of_earlier = "of an earlier time"
        found = [f._replace(why="; ".join(filter(None, (f.why, of_earlier)))) for f in found]
    return _Outcome(section, found, failed[0] if failed else "")


def _attempt(failed: list[str], what: str, part: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a part of an experiment; if it fails, add a line to `failed`.

    Whatever the error is, the other parts and experiments shall run.
    """
    try:
        return part(*args)
    except budget.LeftOut:  # no failure
        raise
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().partition("\n")[0]
        failed.append(f"{what}{type(error).__name__}: {first}")
        return None


@commands.with_config("reproduce")
def command(cfg: DictConfig) -> None:
    if failures := run(cfg):
        sys.exit(f"failed: {', '.join(failures)}")


if __name__ == "__main__":
    commands.start("experiments.reproduce")
