"""The full Jacobian by columns, by rows and numerically, over a grid of shapes.

The network is R^n → R^width → R^m. Columns take n forward passes, rows m backward passes, central
differences 2 n values; all passes of a kind are batched. Times are taken in turns, memory is XLA's
account.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from experiments.common import style, tables
from fwdgrad import jacobian, numerical_jacobian
from fwdgrad.measurement import interleaved_seconds, median_interval, significant
from fwdgrad.util.trees import Array

NAME = "jacobian_modes"
COLUMNS: tables.Columns = {
    "inputs": int, "outputs": int, "method": str, "seconds": float, "seconds_low": float,
    "seconds_high": float, "temp_bytes": float, "operations": float,
}  # fmt: skip
_GRID = ("inputs", "outputs", "method")
METHODS = {
    "columns": ("By columns (forward)", "#0072B2"),
    "rows": ("By rows (reverse)", "#000000"),
    "numerical": ("Central differences", "#D55E00"),
}


def measure(config: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return rows of `COLUMNS`.

    Args:
      config: `sizes` of inputs and of outputs; `width`; `rounds`, the number of timed turns.
    """
    return [
        row
        for inputs in config["sizes"]
        for outputs in config["sizes"]
        for row in _measure(inputs, outputs, config["width"], config["rounds"])
    ]


def _measure(inputs: int, outputs: int, width: int, rounds: int) -> list[tuple[Any, ...]]:
    keys = jax.random.split(jax.random.key(0), 3)
    first = jax.random.normal(keys[0], (width, inputs)) / inputs**0.5
    second = jax.random.normal(keys[1], (outputs, width)) / width**0.5
    x = jax.random.normal(keys[2], (inputs,))

    def by_mode(mode: str, first: Array, second: Array, x: Array) -> Array:
        return jacobian([lambda x: jnp.tanh(first @ x), lambda x: second @ x], x, mode=mode)

    def numerically(first: Array, second: Array, x: Array) -> Array:
        return numerical_jacobian(lambda x: second @ jnp.tanh(first @ x), x)

    functions: dict[str, Any] = {
        "columns": partial(by_mode, "forward"),
        "rows": partial(by_mode, "reverse"),
        "numerical": numerically,
    }
    arguments = (first, second, x)
    compiled = {name: jax.jit(f).lower(*arguments).compile() for name, f in functions.items()}
    seconds = interleaved_seconds(
        {name: partial(program, *arguments) for name, program in compiled.items()}, rounds=rounds
    )
    rows = []
    for name, program in compiled.items():
        median, low, high, _ = median_interval(seconds[name])
        memory: Any = program.memory_analysis()
        costs: Any = program.cost_analysis()
        quantities = (median, low, high, memory.temp_size_in_bytes, int(costs["flops"]))
        rows.append((inputs, outputs, name, *quantities))
    return rows


def draw(folder: Path) -> None:
    """Draw the figure from the table in `folder`: the fastest mode, and time along two cuts."""
    rows = tables.read(folder / f"{NAME}.csv", COLUMNS, grid=_GRID)
    sizes = sorted(rows["inputs"].unique())
    figure, (ratios, (tall, memory)) = plt.subplots(2, 2, figsize=(7.2, 6))
    for panel, quantity, label in zip(
        ratios, ("seconds", "temp_bytes"), ("time", "temporary memory"), strict=True
    ):
        _draw_ratio(panel, log_ratios(rows, quantity), sizes, label)
    middle = sizes[len(sizes) // 2]
    for name, (label, colour) in METHODS.items():
        line = rows[(rows["method"] == name) & (rows["inputs"] == middle)].set_index("outputs")
        tall.plot(1e3 * line["seconds"], color=colour, marker=".", ms=4, label=label)
        low, high = 1e3 * line["seconds_low"], 1e3 * line["seconds_high"]
        tall.fill_between(line.index, low, high, color=colour, alpha=0.2, lw=0)
        memory.plot(line["temp_bytes"] / 2**20, color=colour, marker=".", ms=4)
    for panel, label in ((tall, "time (ms)"), (memory, "temporary memory (MiB)")):
        panel.axvline(middle, color="#777777", lw=0.6, ls="--")
        panel.set(xlabel=f"outputs m, of {middle} inputs", ylabel=label)
        style.log_scale(panel, "xy")
        panel.xaxis.set_major_formatter("{x:g}")
    figure.legend(*tall.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    style.save(figure, folder, NAME)


def _draw_ratio(panel: Axes, ratios: np.ndarray, sizes: list[int], label: str) -> None:
    """Draw log₂ of a quantity by rows over that by columns, with the frontier at 0."""
    bound = max(np.abs(ratios).max(), 1e-3)
    exponents = np.log2(sizes)  # cells and frontier lie evenly on logarithmic axes
    mesh = panel.pcolormesh(
        exponents, exponents, ratios, cmap="PuOr", norm=TwoSlopeNorm(0, -bound, bound),
        shading="nearest",
    )  # fmt: skip
    if ratios.min() < 0 < ratios.max():
        panel.contour(exponents, exponents, ratios, levels=[0], colors="black", linewidths=1.2)
    panel.plot(exponents, exponents, color="black", ls=":", lw=0.9)
    panel.set(xlabel="inputs n", ylabel="outputs m")
    shown = exponents[:: -(-len(sizes) // 6)]
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_ticks(shown, [f"{2**e:g}" for e in shown])
    panel.set_title("solid: the same; dotted: m = n", loc="left")
    panel.grid(visible=False)
    panel.figure.colorbar(mesh, ax=panel, label=f"log₂ of {label}\nby rows over by columns")


def log_ratios(rows: pd.DataFrame, quantity: str = "seconds") -> np.ndarray:
    """Return log₂ of a quantity by rows over that by columns, an array (outputs, inputs)."""
    by_rows, by_columns = (
        rows[rows["method"] == method].pivot(index="outputs", columns="inputs", values=quantity)
        for method in ("rows", "columns")
    )
    return np.log2(by_rows.replace(0, 1) / by_columns.replace(0, 1)).to_numpy()  # of no byte, one


def describe(folder: Path) -> str:
    """Return this part of the report, in Markdown."""
    table = tables.read(folder / f"{NAME}.csv", COLUMNS, grid=_GRID)
    small, large = table["inputs"].min(), table["inputs"].max()
    table = table.set_index([*_GRID])
    rows = []
    for shape in ((small, large), (large, large), (large, small)):
        for name, (label, _) in METHODS.items():
            row = table.loc[(*shape, name)]
            ends = [significant(1e3 * row[f"seconds{end}"]) for end in ("", "_low", "_high")]
            time = "{} [{}, {}]".format(*ends)
            rows.append((*shape, label, time, significant(row["temp_bytes"] / 2**20)))
    lines = [
        "### Columns for tall Jacobians, rows for wide ones",
        "",
        f"![Time of the Jacobian]({NAME}.png)",
        "",
        "A network of two matrices with tanh between them. Forward mode has a pass for each input, "
        "a column of the Jacobian; reverse mode one for each output, a row; central differences "
        "two values for each input. Medians over turns of one process, with 95 % intervals over "
        "these turns; memory is XLA's account.",
        "",
        *tables.markdown(
            ("inputs", "outputs", "method", "time (ms)", "temporary memory (MiB)"), rows
        ),
    ]
    return "\n".join(lines)
