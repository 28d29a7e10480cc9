"""The main job: every figure and the report, python -m experiments.reproduce preset=quick

Presets are in configs/preset: `smoke` (tests), `quick` (minutes on two cores) and `paper` (the
paper's iterations; hours). What was interrupted goes on, and what is finished is not repeated. An
experiment that fails does not keep the others from running; the report names it, and the exit
status is 1.
"""

import sys
import traceback
from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments import (
    depth_scaling,
    fair_comparison,
    jobs,
    learning_curves,
    report,
    trajectories,
)
from experiments.paper import Finding

# In the order of the report. Each has run(cfg, folder), and of what that leaves in the folder
# draw(folder), describe(folder), a section of the report, and findings(folder).
EXPERIMENTS = {
    module.NAME: module
    for module in (trajectories, learning_curves, depth_scaling, fair_comparison)
}


def run(cfg: DictConfig) -> dict[str, str]:
    """Runs, draws and reports all experiments; returns those that failed, and why."""
    folder = Path(cfg.output.root)
    sections, failures = {}, {}
    findings: list[Finding] = []
    bar = jobs.progress(list(EXPERIMENTS.items()), cfg, "reproduce")
    for name, module in bar:
        bar.set_postfix_str(name)
        try:
            if not cfg.draw_only:
                module.run(cfg, folder)
            module.draw(folder)
        except Exception as error:  # whatever it is, the other experiments shall run
            traceback.print_exc()
            failures[name] = _in_a_line(error)
        # Of this time; or, if it failed, of the last time that it did not.
        try:
            section, found = module.describe(folder), module.findings(folder)
        except Exception as error:
            failures.setdefault(name, _in_a_line(error))
            continue
        sections[name] = section
        if name in failures:
            found = [f._replace(why=f"{f.why} Of an earlier time.".strip()) for f in found]
        findings += found
    print(f"report: {report.write(folder, cfg.preset, sections, findings, failures)}")
    return failures


def _in_a_line(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"


@hydra.main(version_base="1.3", config_path="../configs", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    if failures := run(cfg):
        sys.exit(f"failed: {', '.join(failures)}")


if __name__ == "__main__":
    main()
