"""The gain of noise allocated by known scales: python -m experiments.quality.noise_allocation

Activity perturbation gives each unit of a layer noise of the same size, and each example the same
number of tangents K. With noise v_j = a_j ξ_j, of signs ξ and any scales a, the mean of (δ·v) v_j /
a_j² is δ_j, too. The error of an example with the derivatives δ_j by the units that are on is

    e(a) = ((Σ_j a_j² δ_j²) (Σ_j a_j⁻²) − Σ_j δ_j²) / K

With exact derivatives along backprop's path, this measures e of all examples over that of

  units:    a_j² = 1/rms of δ_j over examples, so that noise is matched to each unit's gradient
  entries:  a_j² = 1/|δ_j| of the example itself, which no estimator knows: the least e there is
  examples: K in proportion to √e of each example, with the same sum, known in advance as well

Leaves in `output.root`: `noise_allocation.csv`, a row for each seed, step and layer; and README.md.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pandas as pd
from jax import Array
from omegaconf import DictConfig

from experiments.common import commands, problems, settings, tables
from fwdgrad.measurement import mean_interval
from fwdgrad.problems import Problem
from fwdgrad.records import atomic_write, hold, provenance, write_json, write_table

NAME = "noise_allocation"
_GAINS = ("units", "entries", "examples")
_COLUMNS: tables.Columns = {
    "seed": int, "step": int, "layer": int, **dict.fromkeys(_GAINS, float),
}  # fmt: skip


def gains(delta: Array) -> dict[str, Array]:
    """Return the error of equal noise over that of each allocation.

    Args:
      delta: the derivatives by the units of a layer, (examples, units); zero where a unit is off.

    >>> found = gains(jnp.array([[1.0, 1.0, 4.0], [1.0, 1.0, 4.0]]))
    >>> {name: round(float(x), 4) for name, x in found.items()}
    {'units': 2.0, 'entries': 2.0, 'examples': 1.0}
    """
    is_on, square = delta != 0, jnp.square(delta)

    def error(squared_scale: Array) -> Array:
        """Return K e(a) of each example, for a² of the units, or of each example's."""
        inverse = jnp.where(is_on, 1 / squared_scale, 0)
        of_units = jnp.where(is_on, squared_scale * square, 0)
        return of_units.sum(1) * inverse.sum(1) - square.sum(1)

    rms = jnp.sqrt(square.sum(0) / jnp.maximum(is_on.sum(0), 1))
    equal = error(jnp.ones_like(delta[0]))
    return {
        "units": equal.sum() / error(1 / _or_one(rms)).sum(),
        "entries": equal.sum() / error(1 / _or_one(jnp.abs(delta))).sum(),
        "examples": len(delta) * equal.sum() / jnp.square(jnp.sqrt(equal).sum()),
    }


def _or_one(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def run(cfg: DictConfig) -> None:
    """Train by backprop with every seed, measure the gains on the way, and write the table."""
    problem = problems.problem(cfg)
    derivatives = jax.jit(functools.partial(_derivatives, problem))
    rows = []
    for seed in cfg.seeds:
        for step, params in _path(problem, cfg, seed):
            key = jax.random.fold_in(jax.random.key(seed), cfg.num_steps + step)
            deltas = derivatives(params, _minibatch(problem, key, cfg.num_examples))
            for layer, delta in enumerate(deltas, 1):
                found = {name: float(x) for name, x in gains(delta).items()}
                rows.append((seed, step, layer, *found.values()))
                print(f"seed {seed} step {step} layer {layer}: {found}")
    folder = settings.root(cfg)
    write_table(folder / f"{NAME}.csv", _COLUMNS, rows)
    write_json(folder / f"{NAME}.json", {"provenance": [provenance()]})


def _minibatch(problem: Problem, key: Array, size: int) -> Any:
    choose, change = jax.random.split(key)
    number = len(jax.tree.leaves(problem.train)[0])
    indices = jax.random.randint(choose, (size,), 0, number)
    batch = jax.tree.map(lambda x: x[indices], problem.train)
    return batch if problem.augment is None else problem.augment(change, batch)


def _path(problem: Problem, cfg: DictConfig, seed: int) -> Iterator[tuple[int, Any]]:
    """Yield each of `cfg.steps` with the parameters after so many steps of backprop."""
    rates = optax.cosine_decay_schedule(cfg.learning_rate, cfg.num_steps)
    key = jax.random.key(seed)
    params = problem.init(key)

    @jax.jit
    def train(params: Any, first: Array, last: Array) -> Any:
        def step(i: Array, params: Any) -> Any:
            batch = _minibatch(problem, jax.random.fold_in(key, i), cfg.batch_size)
            grad = jax.grad(problem.loss)(params, batch)
            return jax.tree.map(lambda p, g: p - rates(i) * g, params, grad)

        return jax.lax.fori_loop(first, last, step, params)

    done = 0
    for step in cfg.steps:
        params = train(params, done, step)
        done = step
        yield step, params


def _derivatives(problem: Problem, params: Any, batch: Any) -> list[Array]:
    """Return the derivatives of each example's loss by the hidden layers' pre-activations.

    They are those by its biases, all vectors among the parameters but the last layer's.
    """
    leaves, structure = jax.tree.flatten(params)
    hidden = [i for i, x in enumerate(leaves) if x.ndim == 1][:-1]

    def loss(biases: list[Array], example: Any) -> Array:
        at = list(leaves)
        for i, x in zip(hidden, biases, strict=True):
            at[i] = x
        one = jax.tree.map(lambda x: x[None], example)
        return problem.loss(jax.tree.unflatten(structure, at), one)

    return jax.vmap(jax.grad(loss), (None, 0))([leaves[i] for i in hidden], batch)


def describe(folder: Path) -> str:
    """Describe the gains of every layer and step, in Markdown."""
    table = tables.read(folder / f"{NAME}.csv", _COLUMNS, grid=("seed", "step", "layer"))
    rows = [
        [*key, *(_cell(runs, name) for name in _GAINS)]
        for key, runs in table.groupby(["layer", "step"])
    ]
    number = table["seed"].nunique()
    return "\n".join(
        [
            "## What noise allocated by known scales would gain",
            "",
            "The error of activity perturbation with equal noise over that with noise matched to "
            "the gradient of each unit; matched to each entry of the exact derivative; and with "
            "tangents shared between examples by their errors. Exact derivatives along backprop's "
            f"path on the sum of two digits; means over {number} seeds with 95 % intervals. An "
            "estimator would have to learn the scales, which are known here.",
            "",
            *tables.markdown(["layer", "step", *_GAINS], rows),
        ]
    )


def _cell(runs: pd.DataFrame, name: str) -> str:
    mean = mean_interval(runs[name])
    return f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


@commands.with_config(NAME)
def command(cfg: DictConfig) -> None:
    folder = settings.root(cfg)
    with hold(folder):
        run(cfg)
        text = describe(folder)
        with atomic_write(folder / "README.md") as file:
            file.write(f"{text}\n")
    print(text)


if __name__ == "__main__":
    commands.start("experiments.quality.noise_allocation")
