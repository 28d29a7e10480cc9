"""Without the extra `experiments` an import says how to get it; with the library come its types."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fwdgrad

MISSING = ("equinox", "optax", "sympy", "tqdm")
# The library alone is imported once; each of the rest is missing in a copy of that process.
WITHOUT = """
import builtins, os, sys
original = builtins.__import__
def without(name, *args, **kwargs):
    if name.partition(".")[0] in missing:
        raise ModuleNotFoundError(f"No module named {missing[0]!r}", name=missing[0])
    return original(name, *args, **kwargs)
builtins.__import__ = without
missing = sys.argv[1].split(",")
import fwdgrad
for module in list(missing):
    if os.fork():
        if os.wait()[1] != 0:
            sys.exit(1)
        continue
    missing = [module]
    for package in sys.argv[2:]:
        try:
            __import__(package)
        except ImportError as error:
            print(module, package, error.name, error, sep="|")
        else:
            print(module, package, "imported", "", sep="|")
    break
"""
ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("fwdgrad.problems", "fwdgrad.records", "fwdgrad.training", "fwdgrad.measurement"),
    *("fwdgrad.problems.symbolic", "fwdgrad.optax"),
)


@pytest.fixture(scope="module")
def imports():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, ",".join(MISSING), *PACKAGES], capture_output=True,
        text=True, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [line.split("|") for line in result.stdout.splitlines()]


@pytest.mark.parametrize("missing", MISSING)
def test_an_import_without_the_extra_names_it(imports, missing):
    lines = [rest for module, *rest in imports if module == missing]
    assert [package for package, *_ in lines] == list(PACKAGES)
    assert any(name == missing for _, name, _ in lines)
    for package, name, message in lines:
        if name != "imported":
            package_of_it = message.partition(" ")[0]
            assert name == missing and package.startswith(package_of_it)
            assert message.startswith(f"{package_of_it} needs the module {missing!r}, which is")
            assert "pip install 'fwdgrad[experiments]'" in message


def test_the_extra_that_is_named_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]["experiments"]
    names = {line.partition(">")[0] for line in extra}
    assert names >= {"equinox", "optax", "sympy", "tqdm", "pooch"}


def test_the_types_come_with_the_library():
    assert (Path(fwdgrad.__file__).parent / "py.typed").exists()
