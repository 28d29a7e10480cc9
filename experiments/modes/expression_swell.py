"""The size of symbolic derivatives, beside the programs of automatic differentiation.

The function is the logistic map, l_{i+1} = 4 l_i (1 − l_i). Every layer uses its input twice, so
the formula of the derivative doubles with each layer, unless common subexpressions are shared. The
programs of both modes grow by the same number of operations with each layer.
Baydin, Pearlmutter, Radul, Siskind, Automatic differentiation in machine learning: a survey (2018),
table 1.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from experiments.common import style, tables
from fwdgrad import apply_chain, pull_back, push_forward
from fwdgrad.problems.symbolic import count_operations, expressions, symbolic_jacobian
from fwdgrad.util.jax_internals import called_jaxpr
from fwdgrad.util.trees import Array

NAME = "expression_swell"
COLUMNS: tables.Columns = {"depth": int, "kind": str, "operations": int}
KINDS = {
    "symbolic": ("symbolic derivative", "#D55E00"),
    "shared": ("symbolic, common subexpressions once", "#CC79A7"),
    "function": ("the function's formula", "#56B4E9"),
    "forward": ("forward mode's program", "#0072B2"),
    "reverse": ("reverse mode's program", "#000000"),
}


def layer(x: Array) -> Array:
    """Return the logistic map of x."""
    return 4 * x * (1 - x)


def measure(config: dict[str, Any]) -> list[tuple[int, str, int]]:
    """Return rows of `COLUMNS`.

    Args:
      config: `depth`, the greatest number of layers.
    """
    rows = []
    for depth in range(1, config["depth"] + 1):
        layers = [layer] * depth
        symbols, outputs = expressions(partial(apply_chain, layers), 1)
        derivative = symbolic_jacobian(symbols, outputs)
        counts = {
            "function": count_operations(outputs),
            "symbolic": count_operations(derivative),
            "shared": count_operations(derivative, common_subexpressions=True),
            "forward": _program(partial(push_forward, layers)),
            "reverse": _program(partial(pull_back, layers)),
        }
        rows += [(depth, kind, count) for kind, count in counts.items()]
    return rows


def _program(mode: Any) -> int:
    x = jnp.ones(1)
    return _operations(jax.make_jaxpr(mode)(x, x).jaxpr)


def _operations(jaxpr: Any) -> int:
    """Return the number of operations of a jaxpr on scalars, called jaxprs included."""
    bodies = [called_jaxpr(e) for e in jaxpr.eqns]
    return sum(
        e.outvars[0].aval.size if body is None else _operations(body.jaxpr)
        for e, body in zip(jaxpr.eqns, bodies, strict=True)
    )


def _read(folder: Path) -> pd.DataFrame:
    """The operations: a row for each depth, a column for each kind."""
    rows = tables.read(folder / f"{NAME}.csv", COLUMNS, grid=("depth", "kind"))
    return rows.pivot(index="depth", columns="kind", values="operations")


def draw(folder: Path) -> None:
    """Draw the figure from the table in `folder`."""
    counts = _read(folder)
    figure, panel = plt.subplots(figsize=(style.WIDTH, 3.8))
    for kind, (label, colour) in KINDS.items():
        # The programs of both modes are of one length.
        panel.plot(
            counts[kind], color=colour, ls="--" if kind == "reverse" else "-", marker="o", ms=4
        )
        style.label_ends(panel, [(label, colour)])
    panel.set(xlabel="layers n", ylabel="operations")
    panel.set_title("Derivative of the logistic map, $l_{i+1} = 4\\, l_i\\, (1 - l_i)$, $n$ times")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.log_scale(panel)
    style.save(figure, folder, NAME, "Counts of operations: exact, no sampling and no interval.")


def describe(folder: Path) -> str:
    """Return this part of the report, in Markdown."""
    counts = _read(folder)
    shown = [d for d in counts.index if d in (1, 2, 4, 8, counts.index[-1])]
    heading = ["operations", *(f"{d} layers" for d in shown)]
    rows = [[label, *(f"{x:,}" for x in counts[kind][shown])] for kind, (label, _) in KINDS.items()]
    lines = [
        "### Symbolic derivatives swell, programs do not",
        "",
        f"![Operations against depth]({NAME}.png)",
        "",
        "The function is the logistic map applied once a layer, l → 4 l (1 − l), which uses its "
        "input twice. So the formula of its derivative doubles with each layer; the programs of "
        "both modes grow by the same number of operations. The counts are exact.",
        "",
        *tables.markdown(heading, rows),
    ]
    return "\n".join(lines)
