"""Fixtures for all tests."""

import os

import jax
import pytest

# Most of what the tests take is compiling small programs that run once: LLVM need not try hard.
# XLA's own passes are as ever. Read when the first backend is made, so before any test.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ <= (0, 10, 2):  # a later XLA may not know it, and would stop here
    _QUICK += " --xla_cpu_use_fusion_emitters=false"  # an older code generator, and a third faster
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}"

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield
