"""Perturbed weights: the steps that a few directional derivatives need, and a law that says why.

With tangents of all weights and one directional derivative a step, an MLP learns slowly. Is it the
time, the rate, or the number K of tangents? And does it beat the control, whose hidden layers stay
as they were initialised? Part of `reproduce`; alone, and a line in a process of its own:

    python -m experiments.quality.perturbed_weights preset=quick shown=[perturbed_weights]
    python -m experiments.quality.perturbed_weights -m preset=paper line=backprop,weights-low_rank

**The law.** To second order a step of SGD with an unbiased estimate g changes the loss L in the
mean by −η ‖∇L‖² + η²/2 E[gᵀ H g]. The best rate is ‖∇L‖²/E[gᵀ H g], and the decrease then
‖∇L‖⁴/(2 E[gᵀ H g]). Of backprop g is the gradient on a minibatch, with M = E‖g‖² and
Q = E[gᵀ H g]. Of K normal tangents around it E[g gᵀ] is (1 + 1/K) times backprop's, plus M/K times
the identity, so that

    E[gᵀ H g] = S_K Q,    S_K = 1 + 1/K + M tr H / (K Q).

A step with K tangents has 1/S_K of the decrease of a step of backprop, at a rate S_K times smaller.
Not d decides, but an effective number of dimensions, tr H over the curvature Q/M along gradients.
Then n = ∫ S_K dm steps, along backprop's path of m steps, lead to the same loss. The same follows
for any schedule of rates: with rates S_K times smaller and S_K times as many steps, the sums of
both terms are backprop's. At a stage where Q is not positive, as it may be at the start, there is
no best rate and no S_K; its neighbours stand for it.

It is a law of small steps, and takes its terms from backprop's path. Three ratios to backprop's
runs at equal errors say how it fails: of the steps to those of the law; of the sums of rates, 1 if
noise costs nothing but rate; and of M tr H at the ends, 1 if noise does not lead to places where
noise costs more.

Rates fall along half a cosine: at a constant rate the noise, which grows with S_K, would hide what
more steps can reach. Each length is a training of its own.

Leaves `perturbed_weights.csv` (a row a run), `perturbed_weights_law.csv` (the law's terms at stages
of backprop's runs, and at the ends of the others), `perturbed_weights_tuning.csv`,
`perturbed_weights.json` and the figure `perturbed_weights`.
"""

from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.common import alone, commands, from_config, jobs, tuning
from experiments.common.budget import measured_once
from experiments.common.tuning import Tuned, tune_and_train
from experiments.quality.perturbed_weights_law import (
    BASE,
    COLUMNS,
    CONTROL,
    LAW_COLUMNS,
    Measurement,
    follow,
    measurement,
    read,
)
from experiments.quality.perturbed_weights_report import draw_perturbed_weights, section
from fwdgrad.records import write_table
from fwdgrad.training import DivergedError, Programs

NAME = "perturbed_weights"


def run(cfg: DictConfig, folder: Path) -> None:
    """Tune, train and follow every line at its lengths, and write the tables."""
    experiment, runs = cfg.experiments[NAME], folder / "runs" / NAME
    measure = _measurement(cfg)
    lines: dict[tuple[str, int], Tuned] = {}
    paths: dict[tuple[str, int, int], dict[str, Any]] = {}
    failed = []
    for name in (bar := jobs.progress(list(experiment.shown or experiment.lines), cfg, NAME)):
        bar.set_postfix_str(name)
        for num_steps in experiment.lines[name].lengths:
            try:
                lines[name, num_steps] = tuned = _tune_and_train(cfg, name, num_steps, bar)
            except DivergedError as error:
                failed.append((name, num_steps))
                bar.write(f"{NAME}: {name}, {num_steps} steps: {error}")
                continue
            followed = _follow(cfg, name, num_steps, tuned, measure, runs)
            paths |= {(name, num_steps, seed): record for seed, record in followed.items()}
    if not lines:
        raise DivergedError(f"every line fails at every rate of experiments.{NAME}.")
    write_table(
        folder / f"{NAME}.csv",
        COLUMNS,
        [
            (*key, seed, tuned.config.learning_rate, *(of.info["final"][x] for x in [*COLUMNS][4:]))
            for key, tuned in lines.items()
            for seed, of in tuned.runs.items()
        ],
    )
    write_table(
        folder / f"{NAME}_law.csv",
        LAW_COLUMNS,
        [(*key, *row) for key, record in paths.items() for row in record["result"]],
    )
    write_table(
        folder / f"{NAME}_tuning.csv",
        {"num_steps": int, **tuning.COLUMNS},
        [(n, line, *trial.row) for (line, n), tuned in lines.items() for trial in tuned.trials],
    )
    trials = [trial.info for tuned in lines.values() for trial in tuned.trials]
    information = {
        "num_tangents": {
            name: line.num_tangents
            for name, line in experiment.lines.items()
            if "num_tangents" in line
        },
        "momentum": {name: tuned.config.optimizer.momentum for (name, _), tuned in lines.items()},
        "published_error": experiment.published_error,
        "tuning": jobs.to_plain(experiment.tuning),
        "failed": failed,
        **jobs.provenance_of([*trials, *paths.values()]),
    }
    jobs.write_information(folder, NAME, [NAME, f"{NAME}_law", f"{NAME}_tuning"], information)


def train_line(cfg: DictConfig, folder: Path) -> None:
    """Tune, train and follow the line `cfg.line`; `run` reads all back."""
    lengths, measure = list(cfg.experiments[NAME].lines[cfg.line].lengths), _measurement(cfg)
    for num_steps in (bar := jobs.progress(lengths, cfg, NAME)):
        try:
            tuned = _tune_and_train(cfg, cfg.line, num_steps, bar)
        except DivergedError as error:
            bar.write(f"{NAME}: {cfg.line}, {num_steps} steps: {error}")
            continue
        _follow(cfg, cfg.line, num_steps, tuned, measure, folder / "runs" / NAME)


def _config(cfg: DictConfig, name: str, num_steps: int, rate: float, seed: int) -> DictConfig:
    """Return the `train` config of a line."""
    experiment = cfg.experiments[NAME]
    line = experiment.lines[name]
    tangents = [f"estimator.value_and_grad.num_tangents={line.get('num_tangents')}"]
    return jobs.compose_train(
        cfg,
        [*experiment.overrides, *line.overrides, *(tangents if "num_tangents" in line else [])],
        learning_rate=rate, seed=seed, num_steps=num_steps, eval_every=num_steps,
    )  # fmt: skip


def _tune_and_train(cfg: DictConfig, name: str, num_steps: int, bar: Any) -> Tuned:
    experiment = cfg.experiments[NAME]
    return tune_and_train(
        lambda rate, seed, is_tuning: _config(cfg, name, num_steps, rate, seed),
        experiment.lines[name].first_rate,
        jobs.to_plain(experiment.tuning),
        jobs.to_plain(experiment.seeds),
        lambda text: bar.write(f"{NAME}: {name}, {num_steps} steps: {text}"),
        minimised=lambda final: 1 - final["valid_accuracy"],
    )


def _measurement(cfg: DictConfig) -> Measurement:
    """Return `measurement` of backprop's model, which is that of all lines but the control."""
    law = jobs.to_plain(cfg.experiments[NAME].law)
    del law["stages"]
    return measurement(_config(cfg, BASE, 1, 1.0, 0), **law)


def _follow(
    cfg: DictConfig, name: str, num_steps: int, tuned: Tuned, measure: Measurement, runs: Path
) -> dict[int, dict[str, Any]]:
    """Return seed -> the record of the law's terms along a line's run; none for the control."""
    if name == CONTROL:
        return {}
    law, programs = jobs.to_plain(cfg.experiments[NAME].law), Programs()
    stages = law.pop("stages") if name == BASE else []  # else at the end alone
    found = {}
    for seed in cfg.experiments[NAME].seeds:
        config = _config(cfg, name, num_steps, tuned.config.learning_rate, seed)
        identity = {
            "run": from_config.identity_config(config), "seed": seed, "stages": stages, **law,
        }  # fmt: skip
        # A folder for each length: one process at a time measures in a folder.
        measured = partial(follow, config, stages, measure, programs)
        found[seed] = measured_once(runs / f"{name}-{num_steps}", "law", identity, measured)
    return found


def draw(folder: Path) -> None:
    """Draw the figure from the tables in `folder`."""
    draw_perturbed_weights(read(folder, NAME), folder, NAME)


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the figure, the findings, and a table."""
    return section(read(folder, NAME), NAME)


command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.quality.perturbed_weights")
