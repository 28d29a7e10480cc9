"""The command of one experiment of a `reproduce` config: run and draw it alone."""

import sys
from typing import Any

from omegaconf import DictConfig

from experiments.common import budget, commands, jobs, own_problem, settings, start
from fwdgrad.records import hold


def command_of(module: str) -> commands.Command:
    """Return the command that runs and draws one experiment of a `reproduce` config.

    Args:
      module: the name of the experiment's module, which has `NAME`, `run` and `draw`.
    """

    def command(cfg: DictConfig) -> None:
        run_alone(cfg, sys.modules[module])

    command.__module__, command.__qualname__ = module, "command"  # where a launcher finds it
    return commands.with_config("reproduce")(command)


def run_alone(cfg: DictConfig, experiment: Any) -> None:
    """Run and draw one experiment of a `reproduce` config, a module with `run` and `draw`.

    With a `line`, its runs are made and nothing else, by `train_line` of the module; several
    processes may do so for lines of one experiment.

    Raises:
      ValueError: the preset leaves the experiment out, or the experiment has no such line.
    """
    folder = settings.root(cfg)
    if cfg.shown is not None and experiment.NAME not in cfg.shown:
        raise ValueError(
            f"preset={cfg.preset} has no {experiment.NAME}, but {', '.join(cfg.shown)}. Run it "
            "with preset=paper (perhaps hours), or set shown=null and its lengths by hand."
        )
    if cfg.draw_only:
        jobs.check_recorded(folder, [experiment.NAME])
    else:
        start.check_platform(cfg)
        cfg = own_problem.adapted(cfg, [experiment.NAME])
    if cfg.line is not None:
        check_line(cfg, experiment.NAME, hasattr(experiment, "train_line"))
        experiment.train_line(cfg, folder)
        return
    with hold(folder), start.processes(cfg):
        if not cfg.draw_only:
            with budget.keep(start.start(cfg, [experiment.NAME])) as limit:
                for _ in limit.rounds():
                    with limit.experiment(experiment.NAME):
                        experiment.run(cfg, folder)
            if limit.is_left_out(experiment.NAME):
                print(f"nothing of it fits into the budget of {cfg.budget_seconds:g} s")
                return
        jobs.check_tables(folder, experiment.NAME)
        experiment.draw(folder)
    print(f"drawn in {folder}")


def check_line(cfg: DictConfig, name: str, has_lines: bool) -> None:
    """Raise an error unless `line` names a line of an experiment that can train it alone.

    Args:
      cfg: a `reproduce` config.
      name: of the experiment or command.
      has_lines: the module of the experiment has `train_line`.

    Raises:
      ValueError: the experiment has no such line.
    """
    lines = cfg.experiments[name].lines if has_lines else ()
    if cfg.line not in lines:
        has = f"{name} has {', '.join(lines)}" if lines else f"{name} tunes no lines"
        raise ValueError(
            f"line={cfg.line} is to be trained alone, but {has}. The commands of experiments that "
            "compare trainings, as fair_comparison and the races, train a line alone; leave line= "
            "out of the others."
        )
