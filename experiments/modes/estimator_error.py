"""The error of the forward gradient against the number of tangents, beside theory.

The mean of K independent unbiased estimates has E‖g − ∇f‖² = (E‖g₁‖² − ‖∇f‖²)/K, and E‖g₁‖² is
(d + 2) ‖∇f‖² for normal tangents, d ‖∇f‖² for signs (dense or of rank one) and the sphere. So the
root-mean-square error relative to ‖∇f‖ is √((d + 1)/K), and √((d − 1)/K).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import fwdgrad
from experiments.common import style, tables
from fwdgrad.measurement import mean_interval, significant
from fwdgrad.util.trees import Array, PyTree

NAME = "estimator_error"
# The square of the error is relative to ‖∇f‖²; `theory` is its expectation.
COLUMNS: tables.Columns = {
    "estimator": str, "num_tangents": int, "n": int, "squared": float, "squared_low": float,
    "squared_high": float, "theory": float,
}  # fmt: skip
_GRID = ("estimator", "num_tangents")
DISTRIBUTIONS: dict[str, fwdgrad.TangentDistribution] = {
    "forward-normal": fwdgrad.Normal(),
    "forward-rademacher": fwdgrad.Rademacher(),
    "forward-sphere": fwdgrad.Sphere(),
    "forward-low_rank": fwdgrad.LowRank(),
}


def problem(width: int) -> tuple[Any, PyTree, Array]:
    """Return the loss of a small network of matrices, its parameters, and a minibatch."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = [
        jax.random.normal(keys[0], (width, width)) / width**0.5,
        jax.random.normal(keys[1], (width, width // 2)) / width**0.5,
    ]
    x = jax.random.normal(keys[2], (16, width))

    def loss(params: PyTree, x: Array) -> Array:
        return jnp.mean((jnp.tanh(x @ params[0]) @ params[1]) ** 2)

    return loss, params, x


def measure(config: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return rows of `COLUMNS`.

    Args:
      config: `width`; `numbers` of tangents; `repetitions` of each.
    """
    loss, params, x = problem(config["width"])
    exact = jax.grad(loss)(params, x)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = []
    for estimator, distribution in DISTRIBUTIONS.items():
        excess = size + (1 if estimator == "forward-normal" else -1)
        for number in config["numbers"]:
            estimate = fwdgrad.forward_value_and_grad(
                loss, tangents=distribution, num_tangents=number, chunk_size=min(number, 64)
            )

            @jax.jit
            def squared(keys: Array, estimate: Any = estimate) -> Array:
                return jax.lax.map(
                    lambda key: _squared_error(estimate(key, params, x)[1], exact), keys
                )

            keys = jax.random.split(jax.random.key(number), config["repetitions"])
            errors = np.asarray(squared(keys))
            mean, low, high, n = mean_interval(errors)
            rows.append((estimator, number, n, mean, low, high, excess / number))
    return rows


def _squared_error(found: PyTree, exact: PyTree) -> Array:
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
    squares = [jnp.sum((a - b) ** 2) for a, b in pairs]
    return sum(squares[1:], squares[0]) / sum(jnp.sum(b**2) for _, b in pairs)


def draw(folder: Path) -> None:
    """Draw the figure from the table in `folder`."""
    rows = tables.read(folder / f"{NAME}.csv", COLUMNS, grid=_GRID)
    figure, panel = plt.subplots(figsize=(3.6, 3.2))
    for i, estimator in enumerate(DISTRIBUTIONS):
        line = rows[rows["estimator"] == estimator]
        numbers = line["num_tangents"].to_numpy()
        value, low, high, theory = (
            np.sqrt(np.maximum(line[column].to_numpy(), 0)) for column in [*COLUMNS][3:]
        )
        colour = style.colour(estimator)
        panel.plot(numbers, theory, color=colour, lw=0.8)
        aside = numbers * 1.06 ** (i - 1.5)  # so that the bars stand side by side
        ends = np.maximum(np.nan_to_num((value - low, high - value)), 0)
        panel.errorbar(
            aside, value, ends, fmt=".", ms=4, lw=0.8, color=colour,
            label=style.label(estimator).removeprefix("Forward gradient, ").capitalize(),
        )  # fmt: skip
    panel.set(xlabel="tangents K")
    style.log_scale(panel, "xy")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_ylabel("root-mean-square error / ‖∇f‖")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    style.save(figure, folder, NAME)


def describe(folder: Path) -> str:
    """Return this part of the report, in Markdown."""
    table = tables.read(folder / f"{NAME}.csv", COLUMNS, grid=_GRID)
    numbers = sorted(table["num_tangents"].unique())
    shown = [numbers[0], numbers[len(numbers) // 2], numbers[-1]]
    table = table.set_index([*_GRID])
    rows = [
        [style.label(estimator), *(_cell(table.loc[estimator, number]) for number in shown)]
        for estimator in DISTRIBUTIONS
    ]
    size = round(numbers[0] * table.loc["forward-sphere", numbers[0]]["theory"]) + 1
    lines = [
        "### The forward gradient's error falls as 1/√K",
        "",
        f"![Error against the number of tangents]({NAME}.png)",
        "",
        "The error ‖g − ∇f‖ over ‖∇f‖ of the mean of K estimates, for a network of "
        f"d = {size:,} weights. "
        "Theory has the expected square (d + 1)/K for normal tangents and (d − 1)/K for the "
        f"others. The table has the mean square over {table['n'].iloc[0]} repetitions with its "
        "95 % interval (Student's t), and after the stroke its expectation.",
        "",
        *tables.markdown(["tangents", *(f"K = {k}" for k in shown)], rows),
    ]
    return "\n".join(lines)


def _cell(row: pd.Series) -> str:
    value, low, high, theory = (
        significant(row[name]) for name in ("squared", "squared_low", "squared_high", "theory")
    )
    return f"{value} [{low}, {high}] / {theory}"
