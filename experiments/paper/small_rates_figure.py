"""The figure of `small_rates`: rates, losses, norms, gradients, and T_f/T_b by length."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.common import style
from experiments.common.curves import plot
from experiments.paper.small_rates_predictions import (
    DENSE,
    LOW_RANK,
    NAME,
    Paths,
    read_paths,
    read_rates,
    steps_ratio,
)
from fwdgrad.records import read_json

_SHORT = {
    "backprop": "backprop",
    DENSE: "forward gradient,\ndense normal",
    LOW_RANK: "forward gradient,\nlow-rank",
    "backprop-noise": "backprop + noise",
    "noise": "noise alone",
    "backprop-grown": "backprop,\nnorms grown",
    "backprop-held": "backprop,\nnorms held",
    f"{LOW_RANK}-held": "low-rank,\nnorms held",
}
_OF_NOISE = ("backprop", DENSE, "backprop-noise", "noise")
_OF_NORMS = ("backprop", LOW_RANK, "backprop-grown", "backprop-held", f"{LOW_RANK}-held")
_OF_GRADIENTS = ("backprop", DENSE, "backprop-noise", "backprop-grown")


def draw_small_rates(folder: Path) -> None:
    """Draw six panels from the tables in a folder, or five if a budget has left out the rates."""
    paths, about = read_paths(folder), read_json(folder / f"{NAME}.json")
    size = (style.WIDTH, 6.6)
    figure, axes = plt.subplots(2, 3, figsize=size)
    (noise, norms, length), (gradients, ratios, rates) = axes
    if by_rate := read_rates(folder):
        _draw_rates(rates, by_rate)
        rates.set_title("Rates")
    else:
        rates.remove()
    about_rates = (
        "Rates: geometric means at the end, fewer seeds; crosses: a training diverged; colours as "
        "in the other panels, which are at the rate "
        if by_rate
        else "At the rate "
    )
    for axis, lines, title in (
        (noise, _OF_NOISE, "Noise of other directions"),
        (norms, _OF_NORMS, "Norms grown or held"),
    ):
        _draw_curves(axis, paths, "valid_loss", lines)
        axis.set(xlabel="iteration", ylabel="validation loss (nats)", title=title)
    _draw_curves(length, paths, _widest(paths), _OF_NOISE, relative=True)
    length.set(
        xlabel="iteration",
        ylabel="norm over that at the start",
        title="The norm of a hidden matrix",
    )
    _draw_gradients(gradients, paths)
    _draw_ratios(ratios, paths)
    for axis in (noise, norms, length):
        axis.xaxis.set_major_locator(plt.MaxNLocator(3))
        axis.xaxis.set_major_formatter("{x:,.0f}")
    numbers = [len(line["seed"]) for line in paths["valid_loss"].values()]
    kind = "bands: 95 % intervals (Student's t)"
    style.save(
        figure, folder, NAME,
        f"{about['title']}. Means, {style.samples(numbers, 'seeds', kind)}. {about_rates}"
        f"{about['learning_rate']:g}. Dashed: matrices scaled back to their first norms. L: the "
        f"loss on {about['examples']} fixed minibatches.",
    )  # fmt: skip


def _draw_rates(axis: Axes, losses: dict[str, dict[float, np.ndarray]]) -> None:
    """Draw the final loss at each rate, and a cross below for a rate at which a run diverged."""
    for i, (line, by_rate) in enumerate(losses.items()):
        rates = [*by_rate]
        logs = [np.log(style.finite(x, positive=True)) for x in by_rate.values()]
        means = [float(np.exp(x.mean())) for x in logs]
        look: dict[str, Any] = {"color": style.colour(line), "ls": style.dashes(line)}
        axis.plot(rates, means, marker="o", ms=3, **look)
        if line == "backprop":  # the others end beside its middle: no room for labels
            style.label_ends(axis, [(_SHORT[line], style.colour(line))])
        failed = [rate for rate, mean in zip(rates, means, strict=True) if not np.isfinite(mean)]
        heights = [0.04 + 0.05 * i] * len(failed)
        where = axis.get_xaxis_transform()
        axis.plot(failed, heights, "x", ms=4, color=style.colour(line), transform=where)
    axis.set(xlabel="learning rate", ylabel="final validation loss (nats)")
    style.log_scale(axis, "xy")


def _draw_curves(
    axis: Axes, paths: Paths, quantity: str, lines: Iterable[str], *, relative: bool = False
) -> None:
    for line in (x for x in lines if x in paths[quantity]):
        of_line = paths[quantity][line]
        values = of_line["value"]
        if relative:
            values = values / style.finite(values[:, :1], positive=True)
        plot(axis, of_line["step"][0], values, line)
        style.label_ends(axis, [(_SHORT[line], style.colour(line))])


def _widest(paths: Paths) -> str:
    """Return the name of the norm of the second matrix, or of the only one."""
    return "norm_2" if "norm_2" in paths else "norm_1"


def _draw_gradients(axis: Axes, paths: Paths) -> None:
    """Draw the squared gradient against the loss, which falls to the right."""
    for line in (x for x in _OF_GRADIENTS if x in paths["loss"]):
        losses, squares = (paths[x][line]["value"].mean(0) for x in ("loss", "squared_gradient"))
        shown = style.finite(squares, positive=True)
        look: dict[str, Any] = {"color": style.colour(line), "ls": style.dashes(line)}
        axis.plot(losses, shown, marker="o", ms=2.5, **look)
        style.label_ends(axis, [(_SHORT[line], style.colour(line))])
    axis.invert_xaxis()
    axis.set(xlabel="loss L (nats)", ylabel="‖∇L‖²", title="Gradients at equal loss")
    style.log_scale(axis)


def _draw_ratios(axis: Axes, paths: Paths) -> None:
    """Draw T_f/T_b in iterations against the length of the run."""
    if "backprop" not in paths["valid_loss"]:
        return
    steps = paths["valid_loss"]["backprop"]["step"][0]
    for line in (x for x in (DENSE, LOW_RANK, "backprop-noise") if x in paths["valid_loss"]):
        lengths = steps[1:]
        found = [steps_ratio(paths, line, "backprop", n / steps[-1]) for n in lengths]
        values = np.array([getattr(x, "value", np.nan) for x in found])
        axis.plot(lengths, style.finite(values), color=style.colour(line), ls=style.dashes(line))
        low, high = (np.array([getattr(x, end, np.nan) for x in found]) for end in ("low", "high"))
        style.band(axis, lengths, low, high, found[0].n, style.colour(line))
        style.label_ends(axis, [(_SHORT[line], style.colour(line))])
    axis.set(xlabel="length of the run (iterations)", ylabel="$T_f/T_b$ in iterations")
    axis.set_title("$T_f/T_b$ by length")
    axis.xaxis.set_major_locator(plt.MaxNLocator(3))
    axis.xaxis.set_major_formatter("{x:,.0f}")
