"""The commands under parallel launchers, which pickle them, and on any console."""

import importlib
import io
import os
import re
import subprocess
import sys

import pytest

from experiments.common import commands

from .conftest import CONFIGS

ROOT = CONFIGS.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
    for path in sorted((ROOT / "experiments").rglob("*.py"))
}
STARTED = {
    name: re.findall(r'commands\.start\("([\w.]+)"\)', text) for name, text in MODULES.items()
}
SHARED = "experiments.common.commands"
COMMANDS = [name for name, calls in STARTED.items() if calls and name != SHARED]
WITHOUT_CONFIG = {"experiments.paper.h200"}  # it reports committed tables, and has no options


def test_every_module_that_runs_as_a_script_starts_a_command_of_its_own():
    on_top = [name for name in COMMANDS if name.count(".") == 1]
    names = ("compare", "dashboard", "reproduce", "train")
    assert on_top == [f"experiments.{name}" for name in names]
    assert {"experiments.cost.null_test", "experiments.modes.walkthrough"} <= set(COMMANDS)
    for name, text in MODULES.items():
        is_script = '\nif __name__ == "__main__":' in text
        assert is_script == (name in {*COMMANDS, *WITHOUT_CONFIG}), name
        assert "hydra.main" not in text or name == SHARED, name
    for name in COMMANDS:
        assert STARTED[name] == [name]


PICKLE = """
import pickle, runpy, sys, cloudpickle, hydra
tasks = {}
for name in sys.argv[2:]:
    def main(name=name, **settings):
        def start(task):
            tasks[name] = cloudpickle.dumps(task)
            return lambda: None
        return start
    hydra.main = main
    runpy.run_module(name, run_name="__main__", alter_sys=True)
pickle.dump(tasks, open(sys.argv[1], "wb"))
"""
UNPICKLE = """
import pickle, sys
for name, task in pickle.load(open(sys.argv[1], "rb")).items():
    assert b"__main__" not in task, name
    print(name, pickle.loads(task).__module__, len(task))
"""


def run(*command, **env):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, **env}, encoding="utf-8",
    )  # fmt: skip


@pytest.mark.thorough
def test_every_command_is_found_by_its_name_in_another_process(tmp_path):
    """A launcher pickles `python -m experiments.NAME` as a reference, and not as `__main__`."""
    pytest.importorskip("cloudpickle")
    file = str(tmp_path / "tasks")
    pickled = run("-c", PICKLE, file, *COMMANDS)
    assert pickled.returncode == 0, pickled.stderr
    unpickled = run("-c", UNPICKLE, file)
    assert unpickled.returncode == 0, unpickled.stderr
    lines = [line.split() for line in unpickled.stdout.splitlines()]
    assert [(name, module) for name, module, _ in lines] == [(name, name) for name in COMMANDS]
    assert all(int(size) < 100 for *_, size in lines)


@pytest.mark.thorough
def test_a_console_that_is_not_utf_8(tmp_path):
    """A character that the console lacks is escaped, and stands in the files."""
    result = run("-m", "experiments.modes.walkthrough", f"output.root={tmp_path}",
                 PYTHONIOENCODING="ascii")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii() and r"c^i = (J^i)\u1d40 c^{i+1}" in result.stdout
    assert "c^i = (J^i)ᵀ c^{i+1}" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_on_any_console(compose, monkeypatch, name):
    """Each command, with another function in the place of its own."""
    command = importlib.import_module(name).command
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(sys, "stderr", console)
    commands.with_config(command.config_name)(lambda cfg: print("10⁹", "η₀"))(
        compose(command.config_name)
    )
    console.flush()
    assert console.buffer.getvalue() == rb"10\u2079 \u03b7\u2080" + b"\n"
    # And the command is made by the same decorator.
    assert command.__code__ is commands.with_config("train")(command.__wrapped__).__code__
