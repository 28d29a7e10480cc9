"""The error of numerical differentiation against its step, beside automatic and symbolic.

The function is a small network of analytic layers, so that the complex step applies; the exact
Jacobian is its symbolic one, evaluated with thirty digits. The error is the largest error
of an entry over the largest entry.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import sympy

from experiments.common import style, tables
from fwdgrad import apply_chain, jacobian, numerical_jacobian
from fwdgrad.measurement import significant
from fwdgrad.problems.symbolic import evaluate, expressions, symbolic_jacobian
from fwdgrad.util.trees import Array, Layer

NAME = "step_sizes"
# `step` is nan of a method without one.
COLUMNS: tables.Columns = {"dtype": str, "method": str, "step": float, "error": float}
METHODS = {
    "forward": "forward difference",
    "central": "central difference",
    "complex": "complex step",
    "automatic, forward": "automatic, forward mode",
    "automatic, reverse": "automatic, reverse mode",
    "symbolic": "symbolic",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#56B4E9")


def chain(width: int, dtype: Any) -> tuple[list[Layer], Array]:
    """Return a network R³ → R² of three analytic layers, and the point of differentiation.

    The numbers are those of float32 in either dtype, so that both have the same exact derivative.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((width, 3), (width, width), (2, width))
    weights = [
        jax.random.normal(key, shape, jnp.float32) / shape[1] ** 0.5
        for key, shape in zip(keys, shapes, strict=True)
    ]
    first, second, third = (weight.astype(dtype) for weight in weights)
    layers = [
        lambda x: jnp.tanh(first @ x),
        lambda x: jnp.sin(second @ x),
        lambda x: jnp.exp(third @ x),
    ]
    return layers, jnp.array([0.5, -0.75, 1.25], dtype)


def measure(config: dict[str, Any]) -> list[tuple[str, str, float, float]]:
    """Return rows of `COLUMNS`: every method in both dtypes, at every step.

    Args:
      config: `width`, `num_steps`, and `smallest`, the smallest step as a power of ten.
    """
    rows = []
    with jax.enable_x64(True):
        layers, x = chain(config["width"], jnp.float64)
        symbols, outputs = expressions(partial(apply_chain, layers), len(x))
        derivatives = symbolic_jacobian(symbols, outputs)
        exact = evaluate(derivatives, symbols, np.asarray(x))
        compiled = sympy.lambdify([symbols], derivatives.tolist(), "numpy")
        for dtype in ("float32", "float64"):
            layers, x = chain(config["width"], jnp.dtype(dtype))
            function = partial(apply_chain, layers)
            for method in ("forward", "central", "complex"):
                numerical = jax.jit(partial(numerical_jacobian, function, method=method))
                for step in np.geomspace(10.0 ** config["smallest"], 1, config["num_steps"]):
                    if step > np.finfo(dtype).tiny * 1e3:
                        found = numerical(x, step=float(step))
                        rows.append((dtype, method, float(step), _error(found, exact)))
            for mode in ("forward", "reverse"):
                found = jacobian(layers, x, mode=mode)
                rows.append((dtype, f"automatic, {mode}", float("nan"), _error(found, exact)))
            found = np.array(compiled(np.asarray(x)), dtype)
            rows.append((dtype, "symbolic", float("nan"), _error(found, exact)))
    return rows


def _error(found: Any, exact: np.ndarray) -> float:
    return float(np.abs(np.asarray(found, np.float64) - exact).max() / np.abs(exact).max())


def draw(folder: Path) -> None:
    """Draw the figure from the table in `folder`: a panel for each dtype."""
    rows = tables.read(folder / f"{NAME}.csv", COLUMNS).set_index(["dtype", "method"])
    figure, panels = plt.subplots(1, 2, figsize=(style.WIDTH, 3.8), sharey=True)
    for panel, dtype in zip(panels, ("float32", "float64"), strict=True):
        for (method, label), colour in zip(METHODS.items(), _COLOURS, strict=True):
            chosen = rows.loc[[(dtype, method)]]
            # An error of 0 is drawn at a tenth of the dtype's precision.
            errors = np.maximum(chosen["error"], np.finfo(dtype).eps / 10)
            if len(chosen) > 1:
                panel.plot(chosen["step"], errors, color=colour)
            else:
                panel.plot([1e-16, 1], [errors.iloc[0]] * 2, color=colour, ls="--", lw=1)
            style.label_ends(panel, [(label, colour)])
        panel.set_title(dtype)
        panel.set(xlabel="step h")
        style.log_scale(panel, "xy")
        style.set_limits(panel, "y", 1e-18, 1e2)
    panels[0].set_ylabel("relative error of the Jacobian")
    style.save(
        figure, folder, NAME,
        "Jacobian of exp(W₃ sin(W₂ tanh(W₁ x))), R³ → R², at one point, against its symbolic "
        "derivative with thirty digits. n = 1 function; errors are exact, no interval.",
    )  # fmt: skip


def describe(folder: Path) -> str:
    """Return this part of the report, in Markdown."""
    table = tables.read(folder / f"{NAME}.csv", COLUMNS).set_index(["dtype", "method"])
    rows = []
    for dtype in ("float32", "float64"):
        for method, label in METHODS.items():
            chosen = table.loc[[(dtype, method)]]
            best = chosen.iloc[chosen["error"].argmin()]
            step = significant(best["step"]) if len(chosen) > 1 else "–"
            rows.append((dtype, label, significant(best["error"]), step))
    lines = [
        "### Differences have a best step, and lose digits at it; a complex step loses none",
        "",
        f"![Error against the step]({NAME}.png)",
        "",
        "The Jacobian of a network R³ → R² of three analytic layers (tanh, sin, exp). The error is "
        "the largest error of an entry over the largest entry; it is exact, so it has no interval. "
        "A difference of two values loses digits for a small step and is off by its curvature for "
        "a large one; a complex step subtracts nothing.",
        "",
        *tables.markdown(("dtype", "method", "least error", "at the step"), rows),
    ]
    return "\n".join(lines)
