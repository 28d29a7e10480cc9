"""The way into every command, from a console or from the worker of a parallel launcher.

A module with a command has a function `command(cfg)` that is decorated by `printable`, and ends in

    if __name__ == "__main__":
        commands.start("experiments.NAME", "CONFIG")
"""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

CONFIGS = Path(__file__).parents[1] / "configs"

Command = Callable[[DictConfig], None]

# For Hydra's own folder of a sweep, which it makes before a command runs.
OmegaConf.register_new_resolver(
    "expand_user", lambda path: str(Path(str(path)).expanduser()), replace=True
)


def start(module: str, config_name: str) -> None:
    """Run the `command` of a module with a config of `configs/` and the command line's overrides.

    The module is imported by its name and not run as `__main__`: parallel launchers (joblib,
    submitit, Ray) pickle the command for other processes, which find it and all that it refers to
    under the module's name alone.
    """
    command = importlib.import_module(module).command
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(command)()


def printable(command: Command) -> Command:
    """Make a command print on any console: a character that it lacks is escaped.

    The results are on disk by then, and must not end in a UnicodeEncodeError.
    """

    @functools.wraps(command)
    def printed(cfg: DictConfig) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # not one that a test or a notebook put there
                stream.reconfigure(errors="backslashreplace")
        command(cfg)

    return printed
