"""The law of `perturbed_weights`: its terms along a training, and the steps it predicts."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.flatten_util import ravel_pytree
from omegaconf import DictConfig

from experiments.common import from_config, tables
from experiments.common.curvature import hessian, trace
from experiments.common.unrecorded import Training
from fwdgrad.records import read_json
from fwdgrad.training import Programs, first_examples
from fwdgrad.util.trees import Array, PyTree

Measurement = Callable[[PyTree], dict[str, Array]]  # parameters -> the terms of the law
BASE, CONTROL = "backprop", "control-last-layer"
COLUMNS: tables.Columns = {
    "line": str, "num_steps": int, "seed": int, "learning_rate": float,
    **dict.fromkeys(("valid_loss", "valid_accuracy", "test_accuracy"), float),
}  # fmt: skip
TERMS = ("squared_gradient", "minibatch_square", "minibatch_curvature", "trace")
LAW_COLUMNS: tables.Columns = {
    "line": str, "num_steps": int, "seed": int, "step": int, **dict.fromkeys(TERMS, float),
}  # fmt: skip


def slowdown(terms: Any, num_tangents: int) -> Any:
    """Return S_K = 1 + 1/K + M tr H / (K Q); nan where Q is not positive.

    Args:
      terms: a mapping of `TERMS` to arrays or columns.
      num_tangents: K.
    """
    square, along, of_all = (np.asarray(terms[name], float) for name in TERMS[1:])
    along = np.where(along > 0, along, np.nan)
    return 1 + 1 / num_tangents + square * of_all / along / num_tangents


def measurement(
    config: DictConfig, minibatches: int, curvature_minibatches: int, probes: int
) -> Measurement:
    """Return a compiled function from parameters to the terms of the law.

    Args:
      config: a `train` config.
      minibatches: the number of minibatches of which each gives a gradient g.
      curvature_minibatches: the number of other ones whose mean loss has the Hessian H.
      probes: the number of random signs for the trace.

    Returns:
      params -> ‖∇L‖², by two halves of the minibatches, without the bias of their noise; the mean M
      of ‖g‖²; the mean Q of gᵀ H g; and tr H.
    """
    made, size = from_config.problem(config), config.batch_size
    examples = first_examples(made.train, (curvature_minibatches + minibatches) * size)
    of_curvature = jax.tree.map(lambda x: x[: curvature_minibatches * size], examples)
    batches = jax.tree.map(
        lambda x: x[curvature_minibatches * size :].reshape(-1, size, *x.shape[1:]), examples
    )

    def terms(params: PyTree) -> dict[str, Array]:
        flat, product = hessian(lambda x: made.loss(x, of_curvature), params)

        def add(total: Array, batch: PyTree) -> tuple[Array, Array]:
            g = ravel_pytree(jax.grad(made.loss)(params, batch))[0]
            return total + g, jnp.stack([g @ g, g @ product(g)])

        halves = [jax.tree.map(lambda x, i=i: x[i::2], batches) for i in (0, 1)]
        (one, first), (other, second) = (
            jax.lax.scan(add, jnp.zeros_like(flat), half) for half in halves
        )
        of_gradients = jnp.concatenate([first, second]).mean(0)
        values = (
            one @ other / (len(first) * len(second)), *of_gradients,
            trace(product, flat, jax.random.key(0), probes),
        )  # fmt: skip
        return dict(zip(TERMS, values, strict=True))

    return jax.jit(terms)


def follow(
    config: DictConfig, stages: Iterable[int], measure: Measurement, programs: Programs
) -> list[list[float]]:
    """Return [step, *terms] at the stages of a training, and at its start and its end.

    Args:
      config: a `train` config.
      stages: steps; those beyond the end are left out.
      measure: of `measurement`.
      programs: shared with trainings of other seeds.
    """
    training = Training(config, programs=programs)
    rows, step = [], 0
    for stage in sorted({0, config.num_steps, *(x for x in stages if x < config.num_steps)}):
        training.advance(stage - step)
        step = stage
        found = measure(training.state.params)
        rows.append([step, *(float(found[name]) for name in TERMS)])
    return rows


class AtErrors(NamedTuple):
    """Values that belong to the ends of backprop's runs, by their test errors: (seeds, lengths).

    Attributes:
      values: steps of the law, for instance.
      errors: in %.
    """

    values: np.ndarray
    errors: np.ndarray

    def at(self, errors: np.ndarray) -> np.ndarray:
        """Return the value at an error of each seed, (seeds,); nan where backprop has none such."""
        every = zip(errors, self.values, self.errors, strict=True)
        return np.array([_first_at(*of_seed) for of_seed in every])


def _first_at(error: float, values: np.ndarray, errors: np.ndarray) -> float:
    """Return the value at which errors first fall to `error`, in logarithms between points."""
    i = int(np.argmax(errors <= error))
    ends = np.array([values[[i - 1, i]], errors[[i - 1, i]]])
    if i == 0 or not (np.isfinite(ends) & (ends > 0)).all():  # never, or before the first point
        return math.nan
    (first, last), (high, low) = np.log(ends)
    return math.exp(np.interp(-math.log(error), [-high, -low], [first, last]))


def _integral(x: np.ndarray, y: np.ndarray) -> float:
    known = np.isfinite(y)
    return float(np.trapezoid(np.interp(x, x[known], y[known]), x)) if known.any() else math.nan


class Measured(NamedTuple):
    """All that is measured.

    Attributes:
      runs: line -> number of steps -> a row for each seed, with `COLUMNS`.
      paths: line -> number of steps -> for each seed rows with `LAW_COLUMNS`.
      num_tangents: line -> K, of lines that perturb weights.
      about: the content of the JSON file.
    """

    runs: dict[str, dict[int, pd.DataFrame]]
    paths: dict[str, dict[int, list[pd.DataFrame]]]
    num_tangents: dict[str, int]
    about: Mapping[str, Any]

    @property
    def lengths(self) -> list[int]:
        """Return the numbers of steps of backprop's runs; none without their paths."""
        return sorted(self.runs.get(BASE, ())) if BASE in self.paths else []

    def errors(self, line: str, num_steps: int) -> np.ndarray:
        """Return the test errors of a line's runs in %, (seeds,)."""
        return 100 * (1 - self.runs[line][num_steps]["test_accuracy"].to_numpy())

    def last(self, line: str) -> tuple[int, np.ndarray]:
        """Return the greatest number of steps of a line, and its test errors."""
        num_steps = max(self.runs[line])
        return num_steps, self.errors(line, num_steps)

    def slowdowns(self, num_steps: int, num_tangents: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the stages of backprop's paths of a length, and S_K at them, (seeds, stages)."""
        paths = self.paths[BASE][num_steps]
        values = np.stack([slowdown(path, num_tangents) for path in paths])
        return paths[0]["step"].to_numpy(float), values

    def law(self, num_tangents: int) -> AtErrors:
        """Return the steps of the law for K tangents, n = ∫₀^m S_K dm' along backprop's m steps.

        Between stages, and at those without S_K, the nearest ones are interpolated.
        """
        columns = []
        for num_steps in self.lengths:
            stages, values = self.slowdowns(num_steps, num_tangents)
            columns.append(np.array([_integral(stages, of_seed) for of_seed in values]))
        return self._at_errors(columns)

    def sums_of_rates(self) -> AtErrors:
        """Return backprop's numbers of steps times their rates."""
        rates = (self.runs[BASE][m]["learning_rate"].to_numpy() * m for m in self.lengths)
        return self._at_errors([*rates])

    def noises(self) -> AtErrors:
        """Return M tr H at the ends of backprop's runs."""
        return self._at_errors([self.noise(BASE, m) for m in self.lengths])

    def noise(self, line: str, num_steps: int) -> np.ndarray:
        """Return M tr H at the ends of a line's runs, (seeds,)."""
        ends = [path.iloc[-1] for path in self.paths[line][num_steps]]
        return np.array([end["minibatch_square"] * end["trace"] for end in ends])

    def _at_errors(self, columns: list[np.ndarray]) -> AtErrors:
        errors = [self.errors(BASE, num_steps) for num_steps in self.lengths]
        return AtErrors(np.stack(columns, axis=1), np.stack(errors, axis=1))


def read(folder: Path, name: str) -> Measured:
    """Read the tables."""
    about = read_json(folder / f"{name}.json")
    table = tables.read(folder / f"{name}.csv", COLUMNS)
    runs: dict[str, dict[int, pd.DataFrame]] = {}
    for (line, num_steps), rows in table.groupby(["line", "num_steps"], sort=False):
        runs.setdefault(line, {})[num_steps] = rows.sort_values("seed")
    paths: dict[str, dict[int, list[pd.DataFrame]]] = {}
    if set(runs) - {CONTROL}:
        law = tables.read(folder / f"{name}_law.csv", LAW_COLUMNS)
        for (line, num_steps, _), rows in law.groupby(["line", "num_steps", "seed"]):
            paths.setdefault(line, {}).setdefault(num_steps, []).append(rows)
    tangents = {line: k for line, k in about["num_tangents"].items() if line in runs}
    return Measured(runs, paths, tangents, about)
