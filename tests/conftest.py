"""Fixtures for all tests."""

import os
from pathlib import Path

import jax
import pytest

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

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield
