"""Time and memory of a training step, beside the loss alone: python -m experiments.cost.step_cost

For each model of the paper: the loss, backprop, checkpointed backprop, and forward gradients with
dense normal and with low-rank tangents. Each is tried in several forms (steps in one compiled
call, XLA's options) and timed in its fastest, all in turns in one process, on minibatches in
memory, with parameters donated and updated by SGD, without compilation. The choice and the timing
are separate measurements, so that the choice does not bias the time.

Leaves in `output.root`: `step_cost.csv` (a row for each model and estimator: medians with 95 %
intervals; `relative_cost` is R, over the loss alone, a median of the ratios of each turn, and
`relative_to_backprop` the same over the fastest backprop), `step_cost_forms.csv` (the time of each
form), `step_cost.json` (the share of drawing the tangents, provenance), the figure `step_cost`,
and README.md.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jax import Array
from matplotlib.axes import Axes
from omegaconf import DictConfig, OmegaConf

import fwdgrad
from experiments.common import commands, from_config, settings, style, tables
from experiments.cost import pytorch_step
from fwdgrad.measurement import (
    Interval,
    Step,
    StepProgram,
    interleaved_seconds,
    loss_step,
    median_interval,
    sgd_step,
)
from fwdgrad.records import atomic_write, hold, provenance, read_json, write_json, write_table
from fwdgrad.training import TrainableProblem
from fwdgrad.util.trees import PyTree

NAME = "step_cost"
ESTIMATORS = ("loss", "backprop", "backprop_checkpointed", "forward_dense", "forward_lowrank")
_COLUMNS: tables.Columns = {
    "model": str, "estimator": str, "batch_size": int, **dict.fromkeys(("seconds", "seconds_low",
    "seconds_high", "relative_cost"), float), **dict.fromkeys(("relative_to_backprop", "temp_bytes",
    "compile_seconds"), float),
}  # fmt: skip
# Of the report's table.
_SHOWN = (
    "model", "estimator", "ms a step", "R", "over the best backprop", "temporary MiB",
    "compilation (s)",
)  # fmt: skip
_FORM_COLUMNS = ("model", "estimator", "steps_per_call", "form", "seconds", "chosen")


def _steps(problem: TrainableProblem) -> dict[str, Step]:
    """Return the step of each estimator, and drawing the tangents alone."""
    forward = partial(fwdgrad.forward_value_and_grad, problem.loss)
    backprop = fwdgrad.backprop_value_and_grad
    low_rank: Any = forward(tangents=fwdgrad.LowRank())

    return {
        "loss": loss_step(problem.loss),
        "backprop": sgd_step(backprop(problem.loss)),
        "backprop_checkpointed": sgd_step(backprop(jax.checkpoint(problem.loss))),
        "forward_dense": sgd_step(forward(tangents=fwdgrad.Normal())),
        "forward_lowrank": sgd_step(low_rank),
        "drawing": Step(_Drawing(low_rank), lambda params, _: params),
    }


class _Drawing:
    """The tangents of an estimator, drawn and summed, with the protocol of an estimator."""

    draws_ahead = True

    def __init__(self, value_and_grad: Any):
        self.draw = value_and_grad.draw

    def init(self, params: PyTree, batch: PyTree) -> PyTree:
        return params

    def along(self, drawn: PyTree, params: PyTree, batch: PyTree) -> tuple[Array, None]:
        return sum(x.sum() for x in jax.tree.leaves(drawn)), None

    def __call__(self, key: Array, params: PyTree, batch: PyTree) -> tuple[Array, None]:
        return self.along(self.draw(key, params, batch), params, batch)


def run(cfg: DictConfig) -> None:
    """Time every model and write the tables."""
    folder = settings.root(cfg)
    rows, form_rows = [], []
    shares: dict[str, dict] = {}
    ratios: dict[str, dict[str, dict]] = {}
    pytorch: dict[str, dict] = {}
    for model, of_model in cfg.models.items():
        forms: Any = OmegaConf.to_container(of_model.forms, resolve=True)
        problem, programs, tried = _fastest(cfg, of_model.overrides, forms)
        form_rows += [(model, *row) for row in tried]
        torch = _pytorch(problem, cfg.batch_size) if of_model.pytorch else {}
        timed = interleaved_seconds({**programs, **torch}, rounds=of_model.rounds)
        seconds = {name: programs[name].seconds_per_step(timed[name]) for name in programs}
        for name in torch:
            ratio = median_interval(seconds["forward_lowrank"] / timed[name])
            pytorch[name] = {
                "seconds": median_interval(timed[name])._asdict(),
                "lowrank_over_it": ratio._asdict(),
            }
        best = min(("backprop", "backprop_checkpointed"), key=lambda n: np.median(seconds[n]))
        for name in ESTIMATORS:
            value, low, high, _ = median_interval(seconds[name])
            relative = np.median(seconds[name] / seconds["loss"])
            to_backprop = median_interval(seconds[name] / seconds[best])
            ratios.setdefault(model, {})[name] = to_backprop._asdict()
            program = programs[name]
            costs = (program.temp_bytes, program.compile_seconds)
            rows.append(
                (model, name, cfg.batch_size, value, low, high, relative, to_backprop.value, *costs)
            )
            print(f"{model:10} {name:22} {1e3 * value:9.4g} ms  R {relative:5.3g}  {to_backprop}")
        share = median_interval(seconds["drawing"] / seconds["forward_lowrank"])
        shares[model] = share._asdict()
    write_table(folder / f"{NAME}.csv", _COLUMNS, rows)
    write_table(folder / f"{NAME}_forms.csv", _FORM_COLUMNS, form_rows)
    rounds = {model: of_model.rounds for model, of_model in cfg.models.items()}
    information = {
        "drawing_share": shares,
        "relative_to_backprop": ratios,
        "pytorch": pytorch,
        "rounds": rounds,
        "provenance": [provenance()],
    }
    write_json(folder / f"{NAME}.json", information)


def _fastest(
    cfg: DictConfig, overrides: list[str], forms: list[dict[str, Any]]
) -> tuple[TrainableProblem, dict[str, StepProgram], list[tuple[Any, ...]]]:
    """Return the problem, each estimator's fastest program, and the times of all forms."""
    problems = []
    for form in forms:
        config = hydra.compose("train", overrides=[*overrides, *form.get("overrides", ())])
        OmegaConf.update(config, "dataset", cfg.dataset)
        problems.append(from_config.problem(config))
    generator = np.random.default_rng(cfg.seed)
    examples = problems[0].train
    chosen = generator.integers(0, len(examples[1]), (cfg.num_batches, cfg.batch_size))
    batches = jax.tree.map(lambda x: x[chosen], examples)
    programs, rows = {}, []
    for name in _steps(problems[0]):
        candidates = [
            StepProgram(
                _steps(problem)[name],
                problem.init(jax.random.key(0)),
                batches,
                steps_per_call=form["steps_per_call"],
                compiler_options=form["compiler_options"],
            )
            for problem, form in zip(problems, forms, strict=True)
        ]
        timed = interleaved_seconds(dict(enumerate(candidates)), rounds=cfg.selection_rounds)
        seconds = [np.median(candidates[i].seconds_per_step(x)) for i, x in timed.items()]
        fastest = int(np.argmin(seconds))
        programs[name] = candidates[fastest]
        for i, form in enumerate(forms):
            options = [f"{k}={v!r}" for k, v in form["compiler_options"].items()]
            described = " ".join([*form.get("overrides", ()), *options])
            rows.append((name, form["steps_per_call"], described, seconds[i], int(i == fastest)))
    return problems[0], programs, rows


def _pytorch(problem: TrainableProblem, batch_size: int) -> dict[str, Callable[[], float]]:
    if not pytorch_step.is_installed():
        return {}
    images, labels = (np.asarray(x[:batch_size]) for x in problem.train)
    return pytorch_step.cnn_steps(images, labels)


def draw(folder: Path) -> None:
    """Draw the figure from the table in `folder`: time and memory, a column for each model."""
    rows = tables.read(folder / f"{NAME}.csv", _COLUMNS, grid=("model", "estimator"))
    models = rows.groupby("model", sort=False)
    figure, axes = plt.subplots(
        2, len(models), figsize=(7.2, 3.4), squeeze=False, sharey=True, sharex="row"
    )
    for i, (model, line) in enumerate(models):
        of_model = line[::-1]
        axes[0, i].set_title(model, loc="left", fontweight="bold")
        _bars(axes[0, i], of_model, "time")
        _bars(axes[1, i], of_model, "memory")
        axes[0, i].set_xlabel("R: time over the loss alone")
        axes[1, i].set_xlabel("temporary memory (MiB)")
    style.set_limits(axes[0, 0], "x", 0, 1.7 * rows["relative_cost"].max())
    memory = rows["temp_bytes"] / 2**20
    style.log_scale(axes[1, 0], "x")
    least = min(memory[memory > 0], default=0.0)
    style.set_limits(axes[1, 0], "x", least / 3, memory.max() * 8)
    style.save(figure, folder, NAME)


def _bars(axes: Axes, rows: pd.DataFrame, quantity: str) -> None:
    base = rows["seconds"][rows["estimator"] == "loss"].iloc[0] or np.nan
    for i, row in enumerate(rows.itertuples()):
        if quantity == "time":
            value = float(style.finite(row.relative_cost))
            low, high = row.seconds_low / base, row.seconds_high / base
            error = np.maximum(style.finite([[value - low], [high - value]]), 0)
            text, end = f"{value:.2f}  ({1e3 * row.seconds:.3g} ms)", max(value, high)
        else:
            value, error = float(style.finite(row.temp_bytes)) / 2**20, None
            text, end = f"{value:.3g}", value
        colour = style.colour(_LABELS[row.estimator])
        axes.barh(i, value, color=colour, height=0.7, xerr=error, error_kw={"lw": 0.8})
        axes.annotate(text, (end, i), (3, 0), textcoords="offset points", va="center", fontsize=6)
    axes.set_yticks(range(len(rows)), [_NAMES[name] for name in rows["estimator"]])
    axes.grid(axis="y", visible=False)


_LABELS = {
    "loss": "",
    "backprop": "backprop",
    "backprop_checkpointed": "backprop-checkpointed",
    "forward_dense": "forward-normal",
    "forward_lowrank": "forward-low_rank",
}
_NAMES = {name: style.label(label) if label else "Loss alone" for name, label in _LABELS.items()}


def describe(folder: Path) -> str:
    """Return the table in Markdown, with the share of drawing tangents and the provenance."""
    information = read_json(folder / f"{NAME}.json")
    table = tables.read(folder / f"{NAME}.csv", _COLUMNS, grid=("model", "estimator"))
    rows = [
        (r.model, r.estimator,
         f"{1e3 * r.seconds:.4g} [{1e3 * r.seconds_low:.4g}, {1e3 * r.seconds_high:.4g}]",
         f"{r.relative_cost:.2f}",
         Interval(**information["relative_to_backprop"][r.model][r.estimator]),
         f"{r.temp_bytes / 2**20:.3g}", f"{r.compile_seconds:.2f}")
        for r in table.itertuples()
    ]  # fmt: skip
    lines = [
        "## The cost of a training step",
        "",
        f"![Time and memory of a step]({NAME}.png)",
        "",
        "Medians with 95 % intervals, timed in turns in one process; R is the median of the ratios "
        "to the loss alone of the same turn. Each estimator in its fastest form "
        f"([{NAME}_forms.csv]({NAME}_forms.csv)).",
        "",
        *tables.markdown(_SHOWN, rows),
    ]
    shares = [
        f"{model} {s['value']:.1%} [{s['low']:.1%}, {s['high']:.1%}] (n = {s['n']})"
        for model, s in information["drawing_share"].items()
    ]
    lines += ["", f"Drawing low-rank tangents takes, of a low-rank step: {'; '.join(shares)}."]
    for name, measured in information["pytorch"].items():
        milliseconds, ratio = (Interval(**measured[k]) for k in ("seconds", "lowrank_over_it"))
        lines.append(
            f"\nA step of backprop of the CNN in PyTorch ({name}) takes "
            f"{1e3 * milliseconds.value:.4g} ms [{1e3 * milliseconds.low:.4g}, "
            f"{1e3 * milliseconds.high:.4g}]; a low-rank step over it: {ratio}."
        )
    return "\n".join(lines)


@commands.with_config("step_cost")
def command(cfg: DictConfig) -> None:
    folder = settings.root(cfg)
    with hold(folder):
        run(cfg)
        draw(folder)
        with atomic_write(folder / "README.md") as file:
            file.write(f"{describe(folder)}\n")


if __name__ == "__main__":
    commands.start("experiments.cost.step_cost")
