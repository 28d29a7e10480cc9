"""The start of a command: the platform, a line on what will run and how long, and the budget."""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from omegaconf import DictConfig

from experiments.common.budget import Budget
from fwdgrad.measurement import shared_processes
from fwdgrad.util import backend

# Seconds of `_products`, the loss of depth_scaling at 20 layers and a minibatch of 64: on two quiet
# cores of an AMD EPYC, and on an H200. The presets' expected seconds are of the same machines.
_NOMINAL = {"cpu": 0.027, "gpu": 0.28e-3}
_LAYERS, _WIDTH, _BATCH_SIZE = 20, 1024, 64
_DRAWING = 4.0  # seconds kept for the drawing of an experiment and its part of the report


def check_platform(cfg: DictConfig) -> None:
    """Raise an error if a preset is made for another platform than this one.

    Raises:
      RuntimeError: JAX finds no such device.
    """
    # This process shares an accelerator with those that measure.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    here = backend.platform()
    if cfg.platform not in (None, here):
        raise RuntimeError(
            f"preset={cfg.preset} needs a {cfg.platform.upper()}, but JAX finds only a "
            f"{here.upper()} here. On a CPU run preset=quick (minutes) or preset=paper (hours). If "
            "this machine has a GPU, install JAX for it: pip install 'jax[cuda12]', in the version "
            "of constraints.txt."
        )


def processes(cfg: DictConfig) -> AbstractContextManager[None]:
    """Return the context of measurements: with shared processes if the config says so."""
    return shared_processes() if cfg.share_processes else nullcontext()


def start(cfg: DictConfig, names: Iterable[str]) -> Budget:
    """Print what will run here and how long it will take; return the budget, which begins now.

    Args:
      cfg: a `reproduce` config.
      names: the experiments.
    """
    begun = time.monotonic()
    names, platform = list(names), backend.platform()
    where = f"{os.cpu_count()} cores" if platform == "cpu" else jax.devices()[0].device_kind
    print(
        f"preset {cfg.preset} on {platform} ({where}), into {cfg.output.root}: {', '.join(names)}",
        flush=True,
    )
    nominal = {name: cfg.expected_seconds[name] for name in names if name in cfg.expected_seconds}
    if nominal and platform in _NOMINAL:
        factor = slowness(platform)
        nominal = {name: factor * seconds for name, seconds in nominal.items()}
        print(_estimate(nominal, factor, cfg.budget_seconds), flush=True)
    return Budget(cfg.budget_seconds, expected=nominal, reserve=_DRAWING, start=begun)


def _estimate(nominal: Mapping[str, float], factor: float, budget: float | None) -> str:
    text = (
        f"about {duration(sum(nominal.values()))} here, if nothing is recorded yet and the machine "
        f"stays as it is: a short test took {factor:.2g} times its nominal time"
    )
    if budget is not None and budget < sum(nominal.values()):
        text += f"; what does not fit into the budget of {budget:g} s is left out"
    return text


def slowness(platform: str, *, seconds: float = 1.0) -> float:
    """Return the time of a small computation over its nominal time, a median of about a second.

    Args:
      platform: of the nominal time, 'cpu' or 'gpu'.
      seconds: how long to measure, after compiling.
    """
    weight = jnp.full((_WIDTH, _WIDTH), 1 / _WIDTH)
    x = jnp.ones((_BATCH_SIZE, _WIDTH))
    jax.block_until_ready(_products(x, weight))  # compiles
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end or not samples:
        jax.block_until_ready(_products(x, weight))
        samples.append(time.perf_counter() - begun)
    return float(np.median(samples)) / _NOMINAL[platform]


@jax.jit
def _products(x: Array, weight: Array) -> Array:
    for _ in range(_LAYERS):
        x = jax.nn.relu(x @ weight)
    return x


def duration(seconds: float) -> str:
    """Return a time in words, as rough as an estimate is.

    >>> duration(7.2), duration(95), duration(500), duration(9000)
    ('10 s', '2 min', '8 min', '2.5 h')
    """
    if seconds < 60:
        return f"{max(10, 10 * round(seconds / 10))} s"
    minutes = seconds / 60
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.2g} h"
