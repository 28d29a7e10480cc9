"""The main job: every figure and the report, python -m experiments.reproduce preset=quick

Presets are in configs/preset: `smoke` (tests), `quick` (minutes on two cores) and `paper` (the
paper's iterations; hours). What was interrupted goes on, and what is finished is not repeated. An
experiment that fails does not keep the others from running; the report names it, and the exit
status is 1.
"""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.common import commands, jobs, report, settings
from experiments.common.paper_facts import Finding
from experiments.modes import differentiation
from experiments.paper import depth_scaling, fair_comparison, learning_curves, trajectories
from experiments.quality import estimator_quality
from experiments.races import accuracy_race, cnn_race
from fwdgrad.records import hold

# In the order of the report. Each has run(cfg, folder), which leaves files in the folder, and from
# them draw(folder) and describe(folder), a section of the report; where the paper has such numbers,
# also findings(folder).
EXPERIMENTS = {
    module.NAME: module
    for module in (
        trajectories, learning_curves, depth_scaling, fair_comparison, differentiation,
        estimator_quality, accuracy_race, cnn_race,
    )
}  # fmt: skip


def run(cfg: DictConfig) -> dict[str, str]:
    """Run, draw and report all experiments; return the reasons of those that failed.

    Raises:
      FolderInUseError: another process writes to the same root.
      FileNotFoundError: with draw_only, nothing is recorded in the root.
    """
    folder = settings.root(cfg)
    if cfg.draw_only:
        jobs.check_recorded(folder, EXPERIMENTS)
    with hold(folder):
        return _run(cfg, folder)


def _run(cfg: DictConfig, folder: Path) -> dict[str, str]:
    sections, failures = {}, {}
    findings: list[Finding] = []
    bar = jobs.progress(list(EXPERIMENTS.items()), cfg, "reproduce")
    for name, module in bar:
        bar.set_postfix_str(name)
        failed: list[str] = []
        if not cfg.draw_only:
            _attempt(failed, "", module.run, cfg, folder)
        elif not (folder / f"{name}.json").exists():
            failures[name] = f"nothing of it is recorded, {name}.json is missing"
            continue
        is_old = bool(failed)  # the files are then of an earlier run
        wrong: list[str] = []
        _attempt(wrong, "its tables: ", jobs.check_tables, folder, name)
        if wrong:  # they are neither drawn nor reported
            failures[name] = "; ".join([*failed, *wrong])
            continue
        _attempt(failed, "drawing: ", module.draw, folder)
        section = _attempt(failed, "its section: ", module.describe, folder)
        findings_of: Any = getattr(module, "findings", lambda folder: [])
        found = _attempt(failed, "its numbers: ", findings_of, folder) or []
        if section is not None:
            sections[name] = section
        if is_old:
            found = [f._replace(why=f"{f.why} Of an earlier time.".strip()) for f in found]
        findings += found
        if failed:
            failures[name] = failed[0]
    print(f"report: {report.write(folder, cfg.preset, sections, findings, failures)}")
    return failures


def _attempt(failed: list[str], what: str, part: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a part of an experiment; if it fails, add a line to `failed`.

    Whatever the error is, the other parts and experiments shall run.
    """
    try:
        return part(*args)
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
