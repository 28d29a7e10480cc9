"""Fixtures for all tests."""

import jax
import pytest

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield
