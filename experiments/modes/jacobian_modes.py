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
from matplotlib.colors import LinearSegmentedColormap

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
    "columns": ("by columns\n(forward mode)", "#0072B2"),
    "rows": ("by rows\n(reverse mode)", "#000000"),
    "numerical": ("central\ndifferences", "#D55E00"),
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
    """Draw the figure from the table in `folder`: the cheaper mode, and one cut."""
    rows = tables.read(folder / f"{NAME}.csv", COLUMNS, grid=_GRID)
    sizes = sorted(rows["inputs"].unique())
    figure, (ratios, lines) = plt.subplots(2, 2, figsize=(style.WIDTH, 7.6), height_ratios=(3, 2))
    _draw_ratio(ratios[0], log_ratios(rows), _intervals_overlap(rows), sizes)
    by_memory = log_ratios(rows, "temp_bytes")
    _draw_ratio(ratios[1], by_memory, by_memory == 0, sizes)
    middle = sizes[len(sizes) // 2]
    for name, (label, colour) in METHODS.items():
        line = rows[(rows["method"] == name) & (rows["inputs"] == middle)].set_index("outputs")
        time, low, high = (1e3 * line[f"seconds{end}"] for end in ("", "_low", "_high"))
        style.band(lines[0], line.index, low, high, style.FEWEST, colour)
        for panel, y in zip(lines, (time, line["temp_bytes"] / 2**20), strict=True):
            panel.plot(line.index, y, color=colour, marker="o", ms=4)
            style.label_ends(panel, [(label, colour)])
    for panel, label in zip(lines, ("time (ms)", "temporary memory (MiB)"), strict=True):
        panel.set(xlabel=f"outputs m, of {middle} inputs", ylabel=label)
        style.log_scale(panel, "x", base=2)
        style.log_scale(panel)
    ratios[0].set_title("time of the Jacobian")
    ratios[1].set_title("temporary memory")
    style.save(
        figure, folder, NAME,
        "Numbers: how many times the dearer way costs the cheaper one. Blue: by columns (forward "
        "mode) is cheaper, grey: by rows (reverse mode), white: the same, or the intervals of both "
        "times overlap, as of calls of 0.1 ms, whose time is that of starting them. Times: medians "
        "of n = 7 turns or more of one process; bands: 95 % intervals. Memory by XLA's account, "
        "which does not vary.",
    )  # fmt: skip


def _intervals_overlap(rows: pd.DataFrame) -> np.ndarray:
    """Return whether the times by rows and by columns cannot be told apart, (outputs, inputs)."""
    (row_low, row_high), (column_low, column_high) = (
        [_by_shape(rows, method, f"seconds_{end}").to_numpy() for end in ("low", "high")]
        for method in ("rows", "columns")
    )
    return (row_low <= column_high) & (column_low <= row_high)


def _by_shape(rows: pd.DataFrame, method: str, quantity: str) -> pd.DataFrame:
    return rows[rows["method"] == method].pivot(index="outputs", columns="inputs", values=quantity)


def _draw_ratio(panel: Axes, ratios: np.ndarray, same: np.ndarray, sizes: list[int]) -> None:
    """Draw log₂ of a quantity by rows over that by columns, and the ratio as a number."""
    bound = max(np.abs(ratios).max(), 1e-3)
    colours = LinearSegmentedColormap.from_list("modes", ["#777777", "white", "#56A8DD"])
    panel.imshow(
        np.where(same, 0, ratios), cmap=colours, vmin=-bound, vmax=bound, origin="lower",
        aspect="auto",
    )  # fmt: skip
    for (i, j), ratio in np.ndenumerate(ratios):
        times = 2 ** abs(ratio)
        text = "=" if same[i, j] else f"{times:.0f}" if times >= 10 else f"{times:.1f}"
        panel.text(j, i, text, ha="center", va="center", fontsize=8)
    panel.set(xlabel="inputs n", ylabel="outputs m")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_ticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    panel.grid(visible=False)


def log_ratios(rows: pd.DataFrame, quantity: str = "seconds") -> np.ndarray:
    """Return log₂ of a quantity by rows over that by columns, an array (outputs, inputs)."""
    by_rows, by_columns = (_by_shape(rows, method, quantity) for method in ("rows", "columns"))
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
            rows.append(
                (*shape, " ".join(label.split()), time, significant(row["temp_bytes"] / 2**20))
            )
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
