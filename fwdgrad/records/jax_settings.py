"""Settings of JAX that decide numbers, part of the identity of a run or a measurement."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

# With JAX's own values. Other values change random streams, precision or types.
JAX_DEFAULTS: dict[str, Any] = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_enable_x64": False,
    "jax_default_matmul_precision": None,
    "jax_numpy_dtype_promotion": "standard",
    "platform": "cpu",
}
# Flags of XLA that change no number.
_HARMLESS = ("--xla_dump", "--xla_force_host_platform_device_count")
# The platform of the records that are read; None: this process's.
_platform: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def records_of(platform: str | None) -> Iterator[None]:
    """Name and check records as those of another platform, to read them back; None: of this one.

    >>> with records_of("gpu"):
    ...     changed_settings()
    {'platform': 'gpu'}
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def jax_settings() -> dict[str, Any]:
    """Return the settings that decide numbers, the platform included, as plain values."""
    return {
        name: _platform.get() or default_platform()
        if name == "platform"
        else _plain(getattr(jax.config, name, default))
        for name, default in JAX_DEFAULTS.items()
    }


def changed_settings() -> dict[str, Any]:
    """Return the settings that differ from JAX's defaults on a CPU; {} if none does."""
    return {name: value for name, value in jax_settings().items() if value != JAX_DEFAULTS[name]}


def with_changed_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the changed settings added; the config itself if none is changed.

    >>> with_changed_settings({"n": 1})
    {'n': 1}
    """
    changed = changed_settings()
    return {**config, "jax_settings": changed} if changed else config


def xla_flags() -> str:
    """Return the flags of XLA that may change the rounding, sorted, as one text."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(sorted(flag for flag in flags if not flag.startswith(_HARMLESS)))


def default_platform() -> str:
    """Return the platform of new arrays: cpu, gpu or tpu."""
    device = getattr(jax.config, "jax_default_device", None)
    if device is None:
        return jax.default_backend()
    return getattr(device, "platform", None) or str(device)


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)  # of an enumeration
