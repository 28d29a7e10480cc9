"""The library's overhead over `jax.jvp` by hand: python -m experiments.cost.overhead

Both make the same training steps of the same model on the same minibatch, drawn, pushed
forward and updated in one `lax.scan` under `jit`; one with `forward_value_and_grad`, one with
the formulas spelled out. They are timed in turns; the number is the ratio of each turn.
Leaves `overhead.csv`, a row a turn.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from hydra.utils import instantiate
from jax import Array
from omegaconf import DictConfig

import fwdgrad
from experiments.common import commands, settings
from fwdgrad.measurement import Interval, interleaved_seconds, median_interval
from fwdgrad.problems import image_classification, load_dataset
from fwdgrad.records import hold, write_table

RATE = 1e-6


def by_hand(loss: Callable[..., Array], key: Array, params: Any, batch: Any) -> tuple[Array, Any]:
    """Return the forward gradient with a normal tangent, spelled out."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    tangent = jax.tree.unflatten(structure, draws)
    value, derivative = jax.jvp(lambda p: loss(p, batch), (params,), (tangent,))
    return value, jax.tree.map(lambda v: derivative * v, tangent)


def run(cfg: DictConfig) -> dict[str, Interval]:
    """Time both; return the milliseconds of a step of each, and their ratio."""
    problem = image_classification(
        instantiate(cfg.model.make, _convert_="all"),
        load_dataset(cfg.dataset.name, cfg.dataset.folder),
    )
    batch = jax.tree.map(lambda x: x[: cfg.batch_size], problem.train)
    params = problem.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), cfg.num_steps)

    def compiled(estimate: Callable[..., tuple[Array, Any]]) -> Callable[[], Any]:
        def step(params: Any, key: Array) -> tuple[Any, Array]:
            value, grad = estimate(key, params, batch)
            return jax.tree.map(lambda p, g: p - RATE * g, params, grad), value

        steps = jax.jit(lambda params: jax.lax.scan(step, params, keys))
        return lambda: steps(params)

    seconds = interleaved_seconds(
        {
            "library": compiled(fwdgrad.forward_value_and_grad(problem.loss)),
            "by_hand": compiled(lambda *args: by_hand(problem.loss, *args)),
        },
        rounds=cfg.rounds,
    )
    milliseconds = {name: 1e3 * samples / cfg.num_steps for name, samples in seconds.items()}
    ratio = milliseconds["library"] / milliseconds["by_hand"]
    write_table(
        settings.root(cfg) / "overhead.csv",
        ("turn", "library_ms", "by_hand_ms", "ratio"),
        zip(range(cfg.rounds), *milliseconds.values(), ratio, strict=True),
    )
    columns: dict[str, np.ndarray] = {**milliseconds, "ratio": ratio}
    return {name: median_interval(samples) for name, samples in columns.items()}


@commands.with_config("overhead")
def command(cfg: DictConfig) -> None:
    with hold(settings.root(cfg)):
        result = run(cfg)
    print(
        f"{cfg.model.name}, medians with 95 % intervals of {cfg.rounds} turns\n"
        f"  library  {result['library']} ms a step\n"
        f"  by hand  {result['by_hand']} ms a step\n"
        f"  ratio    {result['ratio']}"
    )


if __name__ == "__main__":
    commands.start("experiments.cost.overhead")
