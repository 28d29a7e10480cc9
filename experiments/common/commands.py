"""The start of every command, from a console or from the worker of a parallel launcher.

A module with a command ends in

    @commands.with_config("CONFIG")
    def command(cfg: DictConfig) -> None:
        ...

    if __name__ == "__main__":
        commands.start("experiments.FOLDER.NAME")
"""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from experiments.common import settings

CONFIGS = Path(__file__).parents[2] / "configs"

Command = Callable[[DictConfig], Any]

# For Hydra's own folder of a sweep, which it makes before a command runs.
OmegaConf.register_new_resolver(
    "expand_user", lambda path: str(Path(str(path)).expanduser()), replace=True
)


def start(module: str) -> None:
    """Run the `command` of a module with its config and the overrides of the command line.

    The module is imported by its name and not run as `__main__`: parallel launchers (joblib,
    submitit, Ray) pickle the command for other processes, which find it and all that it refers to
    under the module's name alone.
    """
    command: Any = importlib.import_module(module).command
    name = command.config_name
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(command)()


def with_config(config_name: str) -> Callable[[Command], Command]:
    """Return a decorator that makes a function of a config of `configs/` a command.

    A wrong value in the config raises an error before the function is called. A character that the
    console lacks is printed escaped: the results are on disk by then, and must not end in a
    UnicodeEncodeError.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def command(cfg: DictConfig) -> Any:
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):  # not one that a test or a notebook put there
                    stream.reconfigure(errors="backslashreplace")
            settings.check(cfg, config_name)
            return function(cfg)

        command.config_name = config_name  # type: ignore[attr-defined]
        return command

    return decorate
