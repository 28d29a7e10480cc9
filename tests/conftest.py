"""Fixtures for all tests."""

import os
import secrets
from pathlib import Path

import jax
import pytest

from tests.examples import SEED, THOROUGH

# Most of what the tests take is compiling small programs that run once: LLVM need not try hard.
# XLA's own passes are as ever. Read when the first backend is made, so before any test.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ <= (0, 10, 2):  # a later XLA may not know it, and would stop here
    _QUICK += " --xla_cpu_use_fusion_emitters=false"  # an older code generator, and a third faster
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}"

# And nothing is compiled twice, by no worker and in no later run; in the processes of commands too.
for _name, _value in {
    "compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
    "persistent_cache_min_compile_time_secs": 0,
    "persistent_cache_min_entry_size_bytes": 0,
}.items():
    jax.config.update(f"jax_{_name}", _value)
    os.environ[f"JAX_{_name.upper()}"] = str(_value)


def pytest_addoption(parser):
    group = parser.getgroup("fwdgrad")
    group.addoption("--nightly", action="store_true", help="random programs: many, and new ones")
    group.addoption("--nightly-seed", type=int, metavar="N", help="those of an earlier night")
    group.addoption("--thorough", action="store_true", help="also what is marked so, as CI does")


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "thorough: a wide sweep, which CI runs once (the library's on the newest JAX)",
    )
    if config.getoption("--thorough"):
        os.environ[THOROUGH] = "1"
    seed = config.getoption("--nightly-seed")
    if seed is None and config.getoption("--nightly") and SEED not in os.environ:
        seed = secrets.randbelow(2**32)
    if seed is not None:
        os.environ[SEED] = str(seed)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--thorough") or config.getoption("--nightly"):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("thorough")]


def pytest_terminal_summary(terminalreporter):
    if SEED in os.environ:
        terminalreporter.write_line(f"the same examples again: --nightly-seed={os.environ[SEED]}")


FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def on_cpu():
    """A bound on what XLA's compiler for CPUs makes of a program, and no other."""
    if jax.default_backend() != "cpu":
        pytest.skip("the bound holds for XLA's CPU compiler alone")


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield
