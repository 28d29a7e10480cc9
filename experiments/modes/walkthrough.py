"""Both modes of a small network in numbers: python -m experiments.modes.walkthrough

A network of three layers small enough to print. Every value x^i, tangent, cotangent and Jacobian
J^i is printed and drawn: a tangent is pushed forward from the left, a cotangent is pulled back from
the right, and at every layer they have the same inner product, ⟨c, J v⟩ = ⟨Jᵀ c, v⟩. Leaves the
figure `walkthrough` and the same as text, `README.md`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from omegaconf import DictConfig

from experiments.common import commands, settings, style, tables
from fwdgrad import Pass, jacobian, layer_jacobians, pull_back, push_forward
from fwdgrad.records import atomic_write, hold
from fwdgrad.util.trees import Array, Layer

NAME = "walkthrough"
LAYERS = ("x² = tanh(W¹ x¹)", "x³ = W² x²", "x⁴ = softplus(x³)")


class Walk(NamedTuple):
    """The values, Jacobians, tangents and cotangents of both modes.

    Attributes:
      forward: the values and the tangents v^1 … v^4.
      reverse: the values and the cotangents c^1 … c^4.
      layers: the Jacobians J^1, J^2, J^3.
      whole: J = J^3 J^2 J^1.
    """

    forward: Pass
    reverse: Pass
    layers: list[Array]
    whole: Array


def network() -> tuple[list[Layer], Array]:
    """Return three layers R³ → R⁴ → R² → R², and an input."""
    first = jnp.array([[0.5, -1.0, 0.3], [0.2, 0.8, -0.5], [-0.7, 0.1, 0.9], [0.4, 0.4, 0.4]])
    second = jnp.array([[1.0, -0.5, 0.3, 0.8], [-0.6, 0.9, 0.7, -0.2]])
    return [lambda x: jnp.tanh(first @ x), lambda x: second @ x, jax.nn.softplus], jnp.array(
        [1.0, 0.5, -0.5]
    )


def walk(layers: list[Layer], x: Array, tangent: Array, cotangent: Array) -> Walk:
    """Push the tangent forward and pull the cotangent back."""
    *_, forward = push_forward(layers, x, tangent, record=True)
    *_, reverse = pull_back(layers, x, cotangent, record=True)
    return Walk(forward, reverse, layer_jacobians(layers, x), jacobian(layers, x))


def describe(walked: Walk) -> str:
    """Describe the walk in words and numbers, in Markdown."""
    forward, reverse = walked.forward, walked.reverse
    products = [float(jnp.vdot(c, v)) for c, v in zip(reverse.v, forward.v, strict=True)]
    columns = (forward.x, forward.v, reverse.v)
    vectors = zip(*(map(_text, column) for column in columns), strict=True)
    rows = [
        (i, *texts, f"{product:.5f}")
        for i, (texts, product) in enumerate(zip(vectors, products, strict=True), start=1)
    ]
    lines = [
        "# Both modes, layer by layer",
        "",
        f"![Both modes, layer by layer]({NAME}.png)",
        "",
        "The tangent goes down the table, v^{i+1} = J^i v^i; the cotangent comes up it, "
        "c^i = (J^i)ᵀ c^{i+1}. Their product is the same number wherever they meet.",
        "",
        *tables.markdown(("i", "x^i", "tangent v^i ↓", "cotangent c^i ↑", "⟨c^i, v^i⟩"), rows),
    ]
    for i, (name, matrix) in enumerate(zip(LAYERS, walked.layers, strict=True), start=1):
        lines += ["", f"Layer {i}, {name}, has the Jacobian J^{i} =", "", *_matrix(matrix)]
    lines += [
        "",
        "The whole network's, J = J³ J² J¹, a column for each pass forward or a row for each "
        "pass back:",
        "",
        *_matrix(walked.whole),
    ]
    return "\n".join(lines) + "\n"


def _text(vector: Array) -> str:
    return ", ".join(f"{float(x):.3f}" for x in vector)


def _matrix(matrix: Array) -> list[str]:
    rows = [" ".join(f"{float(x):8.4f}" for x in row) for row in matrix]
    return ["```text", *rows, "```"]


def draw(walked: Walk, folder: Path) -> None:
    """Draw the values, then the vectors between the Jacobians that move them, a row each mode."""
    matrices = [np.asarray(m) for m in walked.layers]
    tangents = [np.asarray(v)[:, None] for v in walked.forward.v]
    cotangents = [np.asarray(v)[:, None] for v in walked.reverse.v]
    values = [np.asarray(x)[:, None] for x in walked.forward.x]
    rows: list[list[tuple[str, Any]]] = [[], [], []]
    for i, matrix in enumerate(matrices, start=1):
        rows[0] += [(f"x^{i}", values[i - 1]), (f"L^{i}", None)]
        rows[1] += [(f"v^{i}", tangents[i - 1]), (f"J^{i}", matrix)]
        rows[2] += [(f"c^{i}", cotangents[i - 1]), (f"(J^{i})^T", matrix.T)]
    for row, name, vectors in zip(rows, "xvc", (values, tangents, cotangents), strict=True):
        row.append((f"{name}^{len(vectors)}", vectors[-1]))
    bound = max(np.abs(entry).max() for row in rows for _, entry in row if entry is not None)
    widths = [entry.shape[1] + 0.6 for _, entry in rows[1]]
    figure, panels = plt.subplots(
        3, len(rows[0]), figsize=(8.5, 5.2), gridspec_kw={"width_ratios": widths}
    )
    titles = ("The values, layer by layer",
              "Forward mode: a tangent is pushed from left to right",
              "Reverse mode: a cotangent is pulled from right to left")  # fmt: skip
    for axes, row, title in zip(panels, rows, titles, strict=True):
        for axis, (name, entry) in zip(axes, row, strict=True):
            if entry is None:
                layer = LAYERS[int(name[-1]) - 1]
                axis.text(0.5, 0.5, f"{layer}\n→", ha="center", va="center", fontsize=6)
                axis.set_axis_off()
            else:
                _draw_matrix(axis, name, entry, bound)
        axes[0].set_title(title, loc="left", fontweight="bold", pad=14)
    style.save(figure, folder, NAME)


def _draw_matrix(axis: Axes, name: str, entry: np.ndarray, bound: float) -> None:
    axis.imshow(entry, cmap="PuOr", vmin=-bound, vmax=bound)
    for (j, k), number in np.ndenumerate(entry):
        dark = abs(number) > 0.7 * bound
        axis.text(
            k, j, f"{number:.2f}", ha="center", va="center", fontsize=5,
            color="white" if dark else "black",
        )  # fmt: skip
    axis.set_xlabel(f"${name}$")
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)


def run(cfg: DictConfig) -> Walk:
    """Compute both modes, draw them and write the report."""
    layers, x = network()
    tangent, cotangent = (jnp.array(list(v), jnp.float32) for v in (cfg.tangent, cfg.cotangent))
    walked = walk(layers, x, tangent, cotangent)
    folder = settings.root(cfg)
    draw(walked, folder)
    with atomic_write(folder / "README.md") as file:
        file.write(describe(walked))
    return walked


@commands.with_config(NAME)
def command(cfg: DictConfig) -> None:
    with hold(settings.root(cfg)):
        walked = run(cfg)
    print(describe(walked))


if __name__ == "__main__":
    commands.start("experiments.modes.walkthrough")
