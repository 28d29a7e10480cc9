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
    """Draw the figure from the table in `folder`: the error over theory's, a panel for each."""
    rows = tables.read(folder / f"{NAME}.csv", COLUMNS, grid=_GRID)
    figure, panels = plt.subplots(
        1, len(DISTRIBUTIONS), figsize=(style.WIDTH, 2.8), sharex=True, sharey=True
    )
    for panel, estimator in zip(panels, DISTRIBUTIONS, strict=True):
        line = rows[rows["estimator"] == estimator]
        theory = style.finite(line["theory"], positive=True)
        value, low, high = (line[f"squared{end}"] / theory for end in ("", "_low", "_high"))
        panel.axhline(1, color="black", lw=0.8)
        style.bars(
            panel, line["num_tangents"], value, [low, high], line["n"],
            color=style.colour(estimator), ls="-", lw=0.8,
        )  # fmt: skip
        panel.set_title(style.label(estimator).removeprefix("forward gradient, "))
        panel.set_xlabel("tangents K")
    style.log_scale(panels[0], "x", base=2)
    panels[0].set_ylabel("squared error over theory's")
    first = rows[rows["estimator"] == "forward-normal"].iloc[0]
    size = first["theory"] * first["num_tangents"] - 1
    kind = "bars: 95 % intervals (Student's t)"
    style.save(
        figure, folder, NAME,
        f"Mean of ‖g − ∇f‖², {style.samples(rows['n'], 'estimates', kind)}, over its expectation "
        f"(d ± 1)/K · ‖∇f‖² (+ for normal tangents), d = {size:,.0f} parameters of a small "
        "network of matrices.",
    )  # fmt: skip


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
        "95 % interval (Student's t), and after the stroke its expectation; the figure has their "
        "ratio.",
        "",
        *tables.markdown(["tangents", *(f"K = {k}" for k in shown)], rows),
    ]
    return "\n".join(lines)


def _cell(row: pd.Series) -> str:
    value, low, high, theory = (
        significant(row[name]) for name in ("squared", "squared_low", "squared_high", "theory")
    )
    return f"{value} [{low}, {high}] / {theory}"
