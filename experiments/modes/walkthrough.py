"""Both modes of a small network in numbers: python -m experiments.modes.walkthrough

A network of three layers small enough to print. Every value x^i, tangent, cotangent and Jacobian
J^i is printed and drawn: a tangent is pushed forward from the left, a cotangent is pulled back from
the right, and at every layer they have the same inner product, ⟨c, J v⟩ = ⟨Jᵀ c, v⟩. Leaves the
figure `walkthrough` and the same as text, `README.md`.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
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


_GAP = 0.9  # between vectors and matrices, in widths of a cell
_TITLES = (
    "The values, layer by layer",
    "Forward mode: a tangent is pushed from left to right, $v^{i+1} = J^i v^i$",
    "Reverse mode: a cotangent is pulled from right to left, $c^i = (J^i)^T c^{i+1}$",
)


def draw(walked: Walk, folder: Path) -> None:
    """Draw the values, then the vectors between the Jacobians that move them, a row each mode."""
    matrices = [np.asarray(m) for m in walked.layers]
    vectors = [
        [np.asarray(v)[:, None] for v in row]
        for row in (walked.forward.x, walked.forward.v, walked.reverse.v)
    ]
    bound = max(np.abs(m).max() for m in (*matrices, *(v for row in vectors for v in row)))
    shades = ScalarMappable(Normalize(-bound, bound), "PuOr")
    slots = [max(matrix.shape) for matrix in matrices]  # widths that a matrix and its transpose fit
    figure, axis = plt.subplots(figsize=(style.WIDTH, 6.6))
    height = max(len(v) for v in vectors[0]) + 2.2  # of a row
    for r, (row, title) in enumerate(zip(vectors, _TITLES, strict=True)):
        x, middle = 0.0, -r * height
        axis.text(0, middle + height / 2 - 0.35, title, fontsize=9, fontweight="bold", va="center")
        for i, vector in enumerate(row, start=1):
            _draw_matrix(axis, shades, f"{'xvc'[r]}^{i}", vector, x, middle)
            x += 1 + _GAP
            if i > len(matrices):
                break
            slot, matrix = slots[i - 1], matrices[i - 1]
            between = x + slot / 2
            if r == 0:
                axis.text(between, middle, LAYERS[i - 1], ha="center", va="center", fontsize=8.5)
            else:
                shown, name = (matrix, f"J^{i}") if r == 1 else (matrix.T, f"(J^{i})^T")
                _draw_matrix(axis, shades, name, shown, between - shown.shape[1] / 2, middle)
            for arrow in (x - _GAP / 2, x + slot + _GAP / 2):
                sign = "←" if r == 2 else "→"
                axis.text(arrow, middle, sign, ha="center", va="center", fontsize=11)
            x += slot + _GAP
    axis.set(xlim=(-0.1, x - _GAP + 0.1), ylim=(-2.5 * height + 0.4, height / 2))
    axis.set_axis_off()
    bar = figure.colorbar(
        shades, ax=axis, orientation="horizontal", shrink=0.4, aspect=40, pad=0.01
    )
    bar.set_label("colour of an entry")
    product = float(jnp.vdot(walked.reverse.v[0], walked.forward.v[0]))
    style.save(
        figure, folder, NAME,
        f"At every layer the product of cotangent and tangent is the same, c · v = {product:.3f}. "
        "One network at one input, n = 1; exact, no interval.",
    )  # fmt: skip


def _draw_matrix(
    axis: Axes, shades: ScalarMappable, name: str, entry: np.ndarray, x: float, middle: float
) -> None:
    """Draw a matrix of equal cells, its left end at x, around the height `middle`."""
    top = middle + len(entry) / 2
    for (j, k), number in np.ndenumerate(entry):
        colour = shades.to_rgba(number)
        axis.add_patch(Rectangle((x + k, top - j - 1), 1, 1, fc=colour, ec="white", lw=1))
        dark = np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5
        axis.text(
            x + k + 0.5, top - j - 0.5, f"{number:.2f}".replace("-", "−"), ha="center", va="center",
            fontsize=8, color="white" if dark else "black",
        )  # fmt: skip
    below = top - len(entry) - 0.15
    axis.text(x + entry.shape[1] / 2, below, f"${name}$", ha="center", va="top", fontsize=10)


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
