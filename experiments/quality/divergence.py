"""The share of trainings that diverge, and remedies: python -m experiments.quality.divergence

Trains a small MLP on a part of MNIST by SGD with one tangent a step, at rates around the largest
that is stable, for each line: a distribution of tangents, and a rule of clipping. A seed
has the same start, minibatches and key in every line. A run *fails* if its validation loss at the
end is not finite or above that of the start.

Leaves in `output.root`: `divergence.csv`, a row for each run; and README.md.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from hydra.utils import instantiate
from jax import Array
from omegaconf import DictConfig

import fwdgrad
from experiments.common import commands, problems, settings, style, tables
from fwdgrad.measurement import median_interval, proportion_interval
from fwdgrad.problems import Problem, image_classification
from fwdgrad.records import atomic_write, hold, provenance, write_json, write_table

NAME = "divergence"
_COLUMNS: tables.Columns = {
    "line": str, "learning_rate": float, "seed": int, "first_loss": float, "last_loss": float,
    "steps": int,
}  # fmt: skip


def run(cfg: DictConfig) -> None:
    """Train every line at every rate with every seed, and write the table."""
    make_model = instantiate(cfg.model.make, _convert_="all")
    problem = image_classification(make_model, problems.dataset(cfg.dataset))
    rows = []
    for name, line in cfg.lines.items():
        made = instantiate(line, _convert_="all")
        clipping = made.pop("clipping", optax.identity())
        estimator = fwdgrad.forward_value_and_grad(problem.loss, **made)
        outcomes = jax.jit(_outcomes(problem, estimator, clipping, cfg))
        for rate in cfg.rates:
            found = [np.asarray(x) for x in outcomes(jnp.arange(cfg.num_seeds), rate)]
            seeds = range(cfg.num_seeds)
            rows += [(name, rate, seed, *(x[seed] for x in found)) for seed in seeds]
            failed = _has_failed(*found[:2]).sum()
            print(f"{name:28} rate {rate:g}: {failed} of {cfg.num_seeds} fail")
    folder = settings.root(cfg)
    write_table(folder / f"{NAME}.csv", _COLUMNS, rows)
    write_json(folder / f"{NAME}.json", {"provenance": [provenance()]})


def _outcomes(
    problem: Problem,
    value_and_grad: Callable[..., Any],
    clipping: optax.GradientTransformation,
    cfg: DictConfig,
) -> Callable[[Array, Array], tuple[Array, Array, Array]]:
    """Return a function (seeds, rate) -> first and last validation loss, number of finite steps."""
    examples = jax.tree.map(lambda x: x[: cfg.num_train], problem.train)
    valid = jax.tree.map(lambda x: x[: cfg.num_valid], problem.valid)

    def outcome(seed: Array, rate: Array) -> tuple[Array, Array, Array]:
        init_key, batch_key, steps_key = jax.random.split(jax.random.key(seed), 3)
        params = problem.init(init_key)

        def step(carry: Any, i: Array) -> tuple[Any, Array]:
            params, state = carry
            key = jax.random.fold_in(batch_key, i)
            indices = jax.random.randint(key, (cfg.batch_size,), 0, cfg.num_train)
            batch = jax.tree.map(lambda x: x[indices], examples)
            value, grad = value_and_grad(jax.random.fold_in(steps_key, i), params, batch)
            updates, state = clipping.update(grad, state, params)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            return (params, state), jnp.isfinite(value)

        start = (params, clipping.init(params))
        (last, _), is_finite = jax.lax.scan(step, start, jnp.arange(cfg.num_steps))
        return problem.loss(params, valid), problem.loss(last, valid), is_finite.sum()

    # One after the other: on a CPU as fast as all seeds together, and in less memory.
    return lambda seeds, rate: jax.lax.map(lambda seed: outcome(seed, rate), seeds)


def _has_failed(first_loss: Any, last_loss: Any) -> Any:
    return ~(last_loss <= first_loss)  # NaN is not


def describe(folder: Path) -> str:
    """Describe failures, losses and provenance of every line, in Markdown."""
    table = tables.read(folder / f"{NAME}.csv", _COLUMNS, grid=("line", "learning_rate", "seed"))
    rates = table["learning_rate"].unique()
    cells = {key: _cell(runs) for key, runs in table.groupby(["line", "learning_rate"])}
    rows = [
        [style.label(name), *(cells[name, rate] for rate in rates)]
        for name in table["line"].unique()
    ]
    lines = [
        "## Divergence",
        "",
        "Failed runs with Wilson's 95 % interval of their share, then the median of the last "
        "validation losses of the others with its interval (6 and more). Columns: learning rates.",
        "",
        *tables.markdown(["line", *(f"{rate:g}" for rate in rates)], rows),
    ]
    return "\n".join([*lines, "", *_EXPLANATION])


def _cell(runs: pd.DataFrame) -> str:
    last = runs["last_loss"][~_has_failed(runs["first_loss"], runs["last_loss"])]
    failed, n = len(runs) - len(last), len(runs)
    share = proportion_interval(failed, n)
    text = f"{failed} of {n} [{share.low:.2f}, {share.high:.2f}]"
    return f"{text}; {median_interval(last)}" if len(last) else text


_EXPLANATION = [
    "Where the gradient of a layer is of rank one, u wᵀ, a tangent a cᵀ of rank-one signs has "
    "∇f·v = (u·a)(w·c), a product of two sums of signs, so E[(∇f·v)⁴] is up to 3 · 3 = 9 times "
    "E[(∇f·v)²]². Of rank r it is 3 + 6/r, of dense signs up to 3. The second moment, and with it "
    "the noise that steps add to the parameters, is the same for all of them.",
]


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
    commands.start("experiments.quality.divergence")
