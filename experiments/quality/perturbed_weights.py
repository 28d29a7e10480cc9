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
both terms are backprop's. It is a law of small steps at the best rates: trained lines make another
number of steps to the same error, as a rate may have to be smaller than that of the best next step,
and noise leads away from backprop's path. At a stage where Q is not positive, as it may be at the
start, there is no best rate and no S_K; its neighbours stand for it. Sums of rates are compared as
well: if those of both are the same at equal errors, noise costs nothing but rate.

Rates fall along half a cosine: at a constant rate the noise, which grows with S_K, would hide what
more steps can reach. Each length is a training of its own.

Leaves `perturbed_weights.csv` (a row a run), `perturbed_weights_law.csv` (the law's terms at stages
of backprop's runs), `perturbed_weights_tuning.csv`, `perturbed_weights.json` and the figure
`perturbed_weights`.
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
    LAW_COLUMNS,
    follow,
    measurement,
    read,
)
from experiments.quality.perturbed_weights_report import draw_perturbed_weights, section
from fwdgrad.records import write_table
from fwdgrad.training import DivergedError, Programs

NAME = "perturbed_weights"


def run(cfg: DictConfig, folder: Path) -> None:
    """Tune and train every line at its lengths, follow backprop's runs, and write the tables."""
    experiment, runs = cfg.experiments[NAME], folder / "runs" / NAME
    lines: dict[tuple[str, int], Tuned] = {}
    failed = []
    for name in (bar := jobs.progress(list(experiment.shown or experiment.lines), cfg, NAME)):
        bar.set_postfix_str(name)
        for num_steps in experiment.lines[name].lengths:
            try:
                lines[name, num_steps] = _tune_and_train(cfg, name, num_steps, bar)
            except DivergedError as error:
                failed.append((name, num_steps))
                bar.write(f"{NAME}: {name}, {num_steps} steps: {error}")
    if not lines:
        raise DivergedError(f"every line fails at every rate of experiments.{NAME}.")
    paths = {
        (num_steps, seed): record
        for (name, num_steps), tuned in lines.items()
        if name == BASE
        for seed, record in _follow(cfg, num_steps, tuned, runs).items()
    }
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
        "published_error": experiment.published_error,
        "tuning": jobs.to_plain(experiment.tuning),
        "failed": failed,
        **jobs.provenance_of([*trials, *paths.values()]),
    }
    jobs.write_information(folder, NAME, [NAME, f"{NAME}_law", f"{NAME}_tuning"], information)


def train_line(cfg: DictConfig, folder: Path) -> None:
    """Tune and train the line `cfg.line`, and follow backprop's runs; `run` reads all back."""
    lengths = list(cfg.experiments[NAME].lines[cfg.line].lengths)
    for num_steps in (bar := jobs.progress(lengths, cfg, NAME)):
        try:
            tuned = _tune_and_train(cfg, cfg.line, num_steps, bar)
        except DivergedError as error:
            bar.write(f"{NAME}: {cfg.line}, {num_steps} steps: {error}")
            continue
        if cfg.line == BASE:
            _follow(cfg, num_steps, tuned, folder / "runs" / NAME)


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

    def config(rate: float, seed: int, is_tuning: bool) -> DictConfig:
        made = _config(cfg, name, num_steps, rate, seed)
        made.read_test_set = not is_tuning
        return made

    return tune_and_train(
        config,
        experiment.lines[name].first_rate,
        jobs.to_plain(experiment.tuning),
        jobs.to_plain(experiment.seeds),
        lambda text: bar.write(f"{NAME}: {name}, {num_steps} steps: {text}"),
        minimised=lambda final: 1 - final["valid_accuracy"],
    )


def _follow(cfg: DictConfig, num_steps: int, tuned: Tuned, runs: Path) -> dict[int, Any]:
    """Return seed -> the record of the law's terms along backprop's run of a length."""
    experiment = cfg.experiments[NAME]
    law, programs = jobs.to_plain(experiment.law), Programs()
    stages = law.pop("stages")
    measure = measurement(tuned.config, **law)
    found = {}
    for seed in experiment.seeds:
        config = _config(cfg, BASE, num_steps, tuned.config.learning_rate, seed)
        identity = {
            "run": from_config.identity_config(config), "seed": seed, "stages": stages, **law,
        }  # fmt: skip
        measured = partial(follow, config, stages, measure, programs)
        found[seed] = measured_once(runs / BASE, "law", identity, measured)
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
