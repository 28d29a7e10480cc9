"""Fixtures for all tests."""

import os
import secrets
from pathlib import Path

import jax
import pytest

from tests.examples import SEED, THOROUGH
from tests.sweeps import beyond_the_short_run

# The tests spend most of their time on compiling small programs that run once, so LLVM's expensive
# passes are off; XLA's own passes stay on. JAX reads the flags when it makes the first backend, so
# they are set before any test.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ <= (0, 10, 2):  # a later XLA may not know the flag, which is an error
    _QUICK += " --xla_cpu_use_fusion_emitters=false"  # an older code generator, a third faster
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}"

# A cache of compiled programs, which all workers, later runs and the processes of commands share.
for _name, _value in {
    "compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
    "persistent_cache_min_compile_time_secs": 0,
    "persistent_cache_min_entry_size_bytes": 0,
}.items():
    jax.config.update(f"jax_{_name}", _value)
    os.environ[f"JAX_{_name.upper()}"] = str(_value)


def pytest_addoption(parser):
    group = parser.getgroup("fwdgrad")
    group.addoption("--nightly", action="store_true", help="many random programs, of a new seed")
    group.addoption("--nightly-seed", type=int, metavar="N", help="the seed of an earlier night")
    group.addoption("--thorough", action="store_true", help="wide sweeps too, as CI runs them")


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


@pytest.hookimpl(tryfirst=True)  # before `-m thorough` chooses
def pytest_collection_modifyitems(config, items):
    if not config.option.keyword:  # `-k` may name any row
        for item in [*beyond_the_short_run(items)]:
            item.add_marker(pytest.mark.thorough)
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
    """Skip a test whose bound holds for programs of XLA's CPU compiler alone."""
    if jax.default_backend() != "cpu":
        pytest.skip("the bound holds for XLA's CPU compiler alone")


@pytest.fixture
def x64():
    """Enable float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def register():
    """Register rules by `fwdgrad.register_rule` for one test."""
    import fwdgrad

    undone = []

    def register(*args, **options):
        undone.append(fwdgrad.register_rule(*args, **options))

    yield register
    for undo in reversed(undone):
        undo()
