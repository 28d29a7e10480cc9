"""Scaling laws: errors of estimates, and losses after equal work, against size and number.

Power laws in the width, the depth, the number of parameters d, the number of tangents K and their
rank, with theory's beside them, and the K or the width at which an estimator would meet backprop.
Part of `reproduce`; alone:

    python -m experiments.quality.scaling_laws preset=quick shown=[scaling_laws]

Leaves `scaling_laws.csv` (a row for each estimate's error at one seed), `scaling_laws_fits.csv`,
`scaling_laws.json` and the figure `scaling_laws`; of the part `training` besides
`scaling_laws_training.csv` (a row an evaluation), `scaling_laws_tuning.csv`,
`scaling_laws_timings.csv` and the figure `scaling_laws_training`. Each measurement is made once.

The part `errors` measures E‖g − ∇f‖²/‖∇f‖² at the start of an MLP. A seed is a start, a minibatch
and draws. The part `training` trains lines for equal operations, each at its best rate.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
from omegaconf import DictConfig

from experiments.common import alone, commands, costs, from_config, jobs, tables, timings, tuning
from experiments.common.budget import measured_once
from experiments.common.curves import write_curves
from experiments.common.tuning import Tuned, tune_and_train
from experiments.quality.gradient_quality import quality, trained
from experiments.quality.scaling_figure import draw_scaling
from experiments.quality.scaling_fits import COLUMNS, fits_of, read
from experiments.quality.scaling_report import section
from fwdgrad.records import write_table
from fwdgrad.training import DivergedError

NAME = "scaling_laws"
_FITS: tables.Columns = {"axis": str, "line": str, "quantity": str, **tables.INTERVAL}


def run(cfg: DictConfig, folder: Path) -> None:
    """Measure and train what `parts` names, or read it back, and write the tables."""
    experiment = cfg.experiments[NAME]
    runs = folder / "runs" / NAME
    shown = list(experiment.shown or experiment.lines)
    bar = jobs.progress(shown, cfg, NAME)
    rows: list[tuple[Any, ...]] = []
    records: dict[str, Any] = {}  # a point may be on several axes
    if "errors" in experiment.parts:
        for name in bar:
            bar.set_postfix_str(name)
            for axis, x, config, record in _errors(cfg, name, runs):
                base = _config(cfg, "errors", "backprop", axis, x)
                counted, unit = (costs.operations_of_a_step(c, runs) for c in (config, base))
                size = _num_parameters(config)
                operations = counted["result"] / unit["result"]
                found = zip(record["result"]["error"], record["result"]["law"], strict=True)
                rows += [
                    (axis, name, x, size, seed, float(error), float(law), operations)
                    for seed, (error, law) in zip(experiment.errors.seeds, found, strict=True)
                ]
                records |= {str(r["config"]): r for r in (record, counted, unit)}
    write_table(folder / f"{NAME}.csv", COLUMNS, rows)
    written = [NAME]
    trained_records: list[Any] = []
    information: dict[str, Any] = {
        "parts": list(experiment.parts),
        **{key: experiment[key] for key in ("width", "depth")},
        **{key: experiment.errors[key] for key in ("standard_error", "guess_steps")},
    }
    if "training" in experiment.parts:
        names = [name for name in shown if "first_rate" in experiment.lines[name]]
        information["training"], trained_records = _train(cfg, names, folder, bar)
        written += [f"{NAME}_{table}" for table in ("training", "tuning", "timings")]
    write_table(folder / f"{NAME}_fits.csv", _FITS, fits_of(read(folder, NAME, information)))
    information |= jobs.provenance_of([*records.values(), *trained_records])
    jobs.write_information(folder, NAME, [*written, f"{NAME}_fits"], information)


def train_line(cfg: DictConfig, folder: Path) -> None:
    """Measure the errors of the line `cfg.line` and train it; `run` reads both back."""
    experiment, runs = cfg.experiments[NAME], folder / "runs" / NAME
    if "errors" in experiment.parts:
        for axis, x, *_ in (bar := jobs.progress([*_errors(cfg, cfg.line, runs)], cfg, NAME)):
            bar.set_postfix_str(f"{axis} {x}")
    if "training" in experiment.parts and "first_rate" in experiment.lines[cfg.line]:
        for width in (bar := jobs.progress(list(experiment.training.widths), cfg, NAME)):
            _tune_and_train(cfg, cfg.line, width, runs, bar)


def _config(
    cfg: DictConfig, part: str, name: str, axis: str = "", x: int = 0, **values: Any
) -> DictConfig:
    """Return the `train` config of a line, with one setting changed: the value `x` of an axis."""
    experiment = cfg.experiments[NAME]
    width = x if axis == "width" else experiment.width
    depth = x if axis == "depth" else experiment.depth
    changed = {
        "num_tangents": [f"estimator.value_and_grad.num_tangents={x}"],
        "rank": [f"tangents.distribution.rank={x}"],
    }
    overrides = [
        *experiment.overrides, f"model.make.widths={[width] * depth}", *experiment[part].overrides,
        *experiment.lines[name].overrides,
        *(changed.get(axis, []) if name != "backprop" else []),
    ]  # fmt: skip
    return jobs.compose_train(cfg, overrides, **values)


def _num_parameters(config: DictConfig) -> int:
    params = jax.eval_shape(from_config.problem(config).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(params))


def num_draws(standard_error: float, num_tangents: int, num_examples: int) -> int:
    """Return the number of estimates from which an error has this relative standard error.

    The error of an estimate is about d/K Σ_k s_k² / K ‖∇f‖², with s_k the derivatives along the
    tangents. Of a normal s_k the square has the relative variance 2, so the mean of n estimates of
    K tangents has 2/(n K); and 2/(n K N) with noise that is independent between N examples of
    about equal gradients. (The square of a low-rank derivative varies more, by 2 + 6/r at most.)

    >>> num_draws(0.1, 1, 1), num_draws(0.1, 16, 1), num_draws(0.1, 1, 64)
    (200, 13, 4)
    """
    return max(2, math.ceil(round(2 / (standard_error**2 * num_tangents * num_examples), 6)))


def _errors(
    cfg: DictConfig, name: str, runs: Path
) -> Iterator[tuple[str, int, DictConfig, dict[str, Any]]]:
    """Yield axis, value, config and record of each of a line's errors."""
    experiment = cfg.experiments[NAME]
    errors, seeds = experiment.errors, list(experiment.errors.seeds)
    line = experiment.lines[name]
    for axis in line.axes:
        most = line.get("most", {}).get(axis, math.inf)
        for x in (x for x in errors.axes[axis] if x <= most):
            config = _config(cfg, "errors", name, axis, x)
            number = config.estimator.value_and_grad.num_tangents
            examples = config.batch_size if config.space.name == "activities" else 1
            lengths = {
                "draws": num_draws(errors.standard_error, number, examples),
                "guess_steps": errors.guess_steps,
            }
            identity = {"line": from_config.identity_config(config), "seeds": seeds, **lengths}

            make_start = partial(_config, cfg, "errors", "backprop", axis, x)
            measure = partial(_quality, config, make_start, seeds, **lengths)
            # A folder for each line: one process at a time measures in a folder.
            yield axis, x, config, measured_once(runs / name, "error", identity, measure)


def _quality(
    config: DictConfig, make_start: Callable[..., DictConfig], seeds: list[int], **lengths: int
) -> dict[str, list[float]]:
    starts = {seed: trained(make_start(seed=seed), 0) for seed in seeds}
    return quality(config, starts, draws=lengths["draws"], guess_steps=lengths["guess_steps"])


def _train(
    cfg: DictConfig, names: list[str], folder: Path, bar: Any
) -> tuple[dict[str, Any], list[Any]]:
    """Train lines at every width and write their tables; return information and records."""
    training, runs = cfg.experiments[NAME].training, folder / "runs" / NAME
    lines: dict[tuple[str, str], Tuned] = {}
    timed: dict[tuple[str], dict[str, Any]] = {}
    operations: dict[str, dict[str, float]] = {}
    counts, failed = [], []
    for width in training.widths:
        panel = f"width {width}"
        for name in names:
            try:
                lines[panel, name], counted = _tune_and_train(cfg, name, width, runs, bar)
            except DivergedError as error:
                failed.append((panel, name))
                bar.write(f"{NAME}: {panel}, {name}: {error}")
                continue
            operations.setdefault(panel, {})[name] = counted["result"]
            counts.append(counted)
        configs = {name: tuned.config for (of, name), tuned in lines.items() if of == panel}
        if configs:
            timed[panel,] = costs.training_costs(configs, runs, **training.timing)
    if not lines:
        raise DivergedError(f"every line fails at every rate of experiments.{NAME}.")
    write_curves(
        folder / f"{NAME}_training.csv",
        ((*key, seed, run) for key, tuned in lines.items() for seed, run in tuned.runs.items()),
    )
    write_table(
        folder / f"{NAME}_tuning.csv",
        {"panel": str, **tuning.COLUMNS},
        [(*key, *trial.row) for key, tuned in lines.items() for trial in tuned.trials],
    )
    timings.write_timings(folder / f"{NAME}_timings.csv", timed, ["panel"])
    trials = [trial.info for tuned in lines.values() for trial in tuned.trials]
    information = {
        "operations": training.operations,
        "operations_per_step": operations,
        "failed": failed,
        "tuning": jobs.to_plain(training.tuning),
        "processes": timings.processes_of(timed),
    }
    return information, [*trials, *counts, *timed.values()]


def _tune_and_train(
    cfg: DictConfig, name: str, width: int, runs: Path, bar: Any
) -> tuple[Tuned, dict[str, Any]]:
    """Tune and train a line at a width; return the operations of a step, too."""
    experiment = cfg.experiments[NAME]
    training = experiment.training

    def config(rate: float, seed: int, is_tuning: bool, num_steps: int = 1) -> DictConfig:
        rows = 1 if is_tuning else training.num_rows
        return _config(
            cfg, "training", name, "width", width, learning_rate=rate, seed=seed,
            num_steps=num_steps, eval_every=max(1, num_steps // rows),
        )  # fmt: skip

    counted = costs.operations_of_a_step(config(1e-4, 0, True), runs / name)
    num_steps = max(1, round(training.operations / counted["result"]))
    tuned = tune_and_train(
        partial(config, num_steps=num_steps),
        experiment.lines[name].first_rate,
        jobs.to_plain(training.tuning),
        jobs.to_plain(training.seeds),
        lambda text: bar.write(f"{NAME}: width {width}, {name}: {text}"),
    )
    return tuned, counted


def draw(folder: Path) -> None:
    """Draw the figures from the tables in `folder`."""
    draw_scaling(read(folder, NAME), folder, NAME)


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the figures, the findings, and tables."""
    return section(read(folder, NAME), NAME)


command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.quality.scaling_laws")
