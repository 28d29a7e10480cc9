"""The tables of `small_rates`, and the predictions beside what was measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common import style, tables
from experiments.common.curves import Curve, mean_ratio, paired
from fwdgrad.measurement import Interval, mean_interval
from fwdgrad.records import read_json, read_table

NAME = "small_rates"
COLUMNS: tables.Columns = {
    "quantity": str, "estimator": str, "seed": int, "step": int, "value": float,
}  # fmt: skip
RATE_COLUMNS: tables.Columns = {
    "estimator": str, "learning_rate": float, "seed": int, "valid_loss": float,
    "valid_accuracy": float,
}  # fmt: skip
DENSE, LOW_RANK = "forward-normal", "forward-low_rank"
# quantity -> line -> its seeds and steps, arrays (seeds, rows)
Paths = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]


def read_paths(folder: Path) -> Paths:
    """Return quantity -> line -> `seed`, `step` and `value`, an array (seeds, rows) of each."""
    path, about = folder / f"{NAME}.csv", read_json(folder / f"{NAME}.json")
    quantities = tables.read(path, {"quantity": str})["quantity"].unique()
    diverged = [(name, *run) for name in quantities for run in about["diverged"]]
    return tables.read_lines(path, "quantity", COLUMNS, diverged)


def read_rates(folder: Path) -> dict[str, dict[float, np.ndarray]]:
    """Return line -> rate -> the final validation losses, nan where a training diverged."""
    path = folder / f"{NAME}_rates.csv"
    if not read_table(path):  # a budget has left them out
        return {}
    rows = tables.read(path, RATE_COLUMNS)
    return {
        line: {
            rate: runs["valid_loss"].to_numpy()
            for rate, runs in of_line.groupby("learning_rate", sort=True)
        }
        for line, of_line in rows.groupby("estimator", sort=False)
    }


def curve(paths: Paths, line: str) -> Curve:
    """Return the validation losses of a line."""
    of_line = paths["valid_loss"][line]
    return {"seed": of_line["seed"], "step": of_line["step"], "valid_loss": of_line["value"]}


def steps_ratio(paths: Paths, line: str, reference: str, length: float = 1.0) -> Any:
    """Return T_f/T_b in iterations, for runs of a part of the length: `curves.mean_ratio`."""
    own, other = paired(curve(paths, line), curve(paths, reference))
    kept = other["step"][0] <= length * other["step"][0, -1]
    return mean_ratio(own, {name: x[:, kept] for name, x in other.items()}, "step")


class Prediction(NamedTuple):
    """A number that the hypothesis predicts.

    Attributes:
      text: the meaning of the number.
      holds, fails: the finding if the number is in the range, and if it is not; {} is the number.
      low, high: the range that is predicted.
      lines: needed for it.
      samples: the paths -> the number for each seed.
    """

    text: str
    holds: str
    fails: str
    low: float
    high: float
    lines: tuple[str, ...]
    samples: Callable[[Paths], np.ndarray]

    def verdict(self, found: Interval) -> str:
        """Return whether an interval lies within the range, outside of it, or neither."""
        if math.isnan(found.low) or found.n < style.FEWEST:
            return "not decided"
        if self.low <= found.low and found.high <= self.high:
            return "as predicted"
        return "refuted" if found.high < self.low or found.low > self.high else "not decided"


def of_common_seeds(paths: Paths, lines: Sequence[str]) -> Paths:
    """Return the paths of lines, with the seeds that all of them have, in one order."""
    found = [paths["valid_loss"][line]["seed"][:, 0].tolist() for line in lines]
    common = [seed for seed in found[0] if all(seed in seeds for seeds in found)]
    rows = {
        line: [own.index(seed) for seed in common] for line, own in zip(lines, found, strict=True)
    }
    return {
        quantity: {
            line: {name: values[rows[line]] for name, values in of_line[line].items()}
            for line in lines
        }
        for quantity, of_line in paths.items()
    }


def _share(
    line: str, reference: str = "backprop"
) -> tuple[tuple[str, ...], Callable[[Paths], np.ndarray]]:
    """Return the lines, and the function to a line's advantage over the forward gradient's."""
    lines = tuple(dict.fromkeys(("backprop", DENSE, line, reference)))

    def samples(paths: Paths) -> np.ndarray:
        logs = {x: np.log(paths["valid_loss"][x]["value"][:, -1]) for x in lines}
        return (logs[reference] - logs[line]) / (logs["backprop"] - logs[DENSE])

    return lines, samples


def _fall_of_noise(paths: Paths) -> np.ndarray:
    values = paths["valid_loss"]["noise"]["value"]
    return values.min(1) / values[:, 0]


# Of E[gᵀ H g], the coefficients of ‖∇f‖² tr H and ∇fᵀ H ∇f.
_MOMENTS = {"backprop": (0, 1), DENSE: (1, 2), "backprop-noise": (1, 2)}


def orders(paths: Paths, line: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the change of L along a line, and its two terms by theory, arrays (seeds,).

    The terms are the sums of −η ‖∇L‖² and of η²/2 E[gᵀ H g], nan where that is not known, by the
    trapezoidal rule between the stages; ‖∇f‖² is that of a minibatch, ∇fᵀ H ∇f is of L.
    """
    of = {name: paths[name][line]["value"] for name in paths}
    is_late = np.isin(paths["loss"][line]["step"][0], paths["trace"][line]["step"][0])
    of_size, of_gradient = _MOMENTS.get(line, (math.nan, math.nan))
    by_size = of["squared_minibatch_gradient"][:, is_late] * of["trace"]
    second = of_size * by_size + of_gradient * of["along_gradient"]
    return (
        of["loss"][:, -1] - of["loss"][:, 0],
        -_integral(of["rate_sum"], of["squared_gradient"]),
        _integral(of["squared_rate_sum"][:, is_late], second) / 2,
    )


def _integral(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.diff(x, axis=1) * (y[:, 1:] + y[:, :-1]) / 2).sum(1)


def _share_of_first_order(paths: Paths) -> np.ndarray:
    (change, first, _), (of_backprop, first_of_backprop, _) = (
        orders(paths, line) for line in (DENSE, "backprop")
    )
    return (first - first_of_backprop) / (change - of_backprop)


PREDICTIONS = (
    Prediction(
        "advantage of backprop with independent noise of the same covariance, over that of the "
        "forward gradient",
        "Noise that is drawn independently of the gradient gives backprop the same advantage, {} "
        "of it: the directions of the estimate do not matter.",
        "Noise that is drawn independently of the gradient gives backprop another advantage, {} of "
        "it: the directions of the estimate matter.",
        0.8, 1.2, *_share("backprop-noise"),
    ),
    Prediction(
        "lowest loss under noise alone, over the loss at the start",
        "Noise alone learns nothing: its lowest loss is {} of that at the start.",
        "Noise alone lowers the loss, to {} of that at the start.",
        0.95, math.inf, ("noise",), _fall_of_noise,
    ),
    Prediction(
        "advantage of low-rank tangents over backprop, both with norms held, over the same",
        "With all norms held low-rank tangents have {} of the advantage: without longer weights "
        "noise does not help.",
        "With all norms held low-rank tangents have {} of the advantage: noise helps without "
        "longer weights too.",
        -math.inf, 0.2, *_share("forward-low_rank-held", "backprop-held"),
    ),
    Prediction(
        "advantage of backprop with norms grown as by noise, over that of the forward gradient",
        "Backprop whose norms grow as under noise has {} of the advantage, without any noise.",
        "Backprop whose norms grow as under noise has only {} of the advantage.",
        0.5, math.inf, *_share("backprop-grown"),
    ),
    Prediction(
        "sum of the second-order terms of the forward gradient (nats)",
        "The curvature does not help: the second-order terms of the noise add {} nats to the loss.",
        "The curvature helps: the second-order terms of the noise change the loss by {} nats.",
        0.0, math.inf, (DENSE,), lambda paths: orders(paths, DENSE)[2],
    ),
    Prediction(
        "difference of the first-order terms from backprop's, over that of the losses",
        "The larger gradient along the path explains {} of the difference (above 1: curvature "
        "takes a part of it back).",
        "The larger gradient along the path explains only {} of the difference.",
        0.8, math.inf, ("backprop", DENSE), _share_of_first_order,
    ),
)  # fmt: skip


def checked(paths: Paths) -> list[tuple[int, Prediction, Interval, str]]:
    """Return the predictions whose lines there are: place, prediction, measurement, verdict."""
    found = []
    for i, prediction in enumerate(PREDICTIONS, 1):
        if set(prediction.lines) <= set(paths["valid_loss"]):
            with np.errstate(all="ignore"):  # two losses may be equal
                samples = prediction.samples(of_common_seeds(paths, prediction.lines))
            interval = mean_interval(samples) if len(samples) else _NOTHING
            found.append((i, prediction, interval, prediction.verdict(interval)))
    return found


_NOTHING = Interval(math.nan, math.nan, math.nan, 0)
