"""Why the forward gradient descends faster than backprop at equal small rates (figure 4).

In the paper's figure 4 at the rate 2e-4 the forward gradient descends faster than backprop, though
it is the same gradient with noise. Part of `reproduce`; alone, and a line in a process of its own:

    python -m experiments.paper.small_rates preset=quick shown=null
    python -m experiments.paper.small_rates -m preset=paper line=backprop,noise

**The hypothesis**, written before the runs of the preset `paper`, after a pilot on a smaller
network: a step of the forward gradient is noise of √d times the gradient's length. It is
independent of the weights, so it lengthens each matrix: ‖W‖² grows by m η² ‖∇f‖², m the number of
its entries. Longer matrices scale up the activations of a ReLU network and the errors that come
back, and so the gradient. The descent per unit of η grows: the noise acts as a larger learning
rate.

Each prediction has a number and its range, and so the outcome that would refute it (`PREDICTIONS`).
The *advantage* of a line is the logarithm of backprop's final validation loss over its own, seed by
seed.

1. Directions do not matter: noise of the same covariance, drawn independently of the gradient and
   added to it, has 0.8 to 1.2 of the forward gradient's advantage.
2. Noise does not learn: the same noise without the gradient lowers no loss by more than 5 %.
3. With each matrix scaled back to its first norm after every step, at most 0.2 of the advantage
   is left, over backprop whose matrices are scaled back too.
4. Backprop whose matrices are scaled as the noise would lengthen them has at least 0.5 of the
   advantage, without any noise.
5. To second order a step changes the loss, for normal tangents, in the mean by

       −η ‖∇f‖² + η²/2 (‖∇f‖² tr H + 2 ∇fᵀ H ∇f),

   since E[g gᵀ] = ‖∇f‖² I + 2 ∇f ∇fᵀ. Noise could thus help at once where tr H < 0. But the
   logits of a ReLU network are piecewise linear in each weight alone, so almost everywhere tr H is
   the trace of the Gauss–Newton matrix, which is not negative: the sum of the second-order terms
   along the path is positive, and noise helps through the first term alone.
6. So the greater descent is that of the first-order terms −η ‖∇f‖² along the path: at least 0.8
   of the difference from backprop. (Above 1: the second-order terms take some of it back.)

Leaves in the preset's folder `small_rates.csv` (quantities of `small_rates_path` along the paths),
`small_rates_rates.csv` (a row for each training at other rates), `small_rates.json` and the figure
`small_rates`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from experiments.common import alone, budget, commands, from_config, jobs
from experiments.common.budget import measured_once
from experiments.paper.small_rates_figure import draw_small_rates
from experiments.paper.small_rates_path import Stages, follow
from experiments.paper.small_rates_predictions import COLUMNS, NAME, RATE_COLUMNS
from experiments.paper.small_rates_report import describe as describe
from fwdgrad.records import write_table
from fwdgrad.training import DivergedError

_FEW_SEEDS = 3  # an interval needs as many


class _Job(NamedTuple):
    """A training with a seed, followed along its path; or those of all `rate_seeds` at a rate."""

    line: str
    seed: int | None = None
    rate: float | None = None


def run(cfg: DictConfig, folder: Path) -> None:
    """Make every training, or read it back, and write the tables."""
    experiment, limit = cfg.experiments[NAME], budget.present()
    due = list(_jobs(experiment, experiment.shown or list(experiment.lines)))
    done: dict[_Job, list[dict[str, Any]]] = {}
    bar = jobs.progress(due, cfg, NAME)
    for job in bar:
        line, seed, rate = job
        part, item = (f"{line}, seed", seed) if rate is None else (f"{line} at", f"{rate:g}")
        bar.set_postfix_str(f"{part} {item}")
        is_extra = seed in list(experiment.seeds)[_FEW_SEEDS:]
        level = 2 * is_extra if rate is None else 1
        with limit.job(part, item, level=level, share=1 / len(due)):
            done[job] = _train(cfg, job, folder)
    if not any(job.rate is None and job.line == "backprop" for job in done):
        raise budget.LeftOut(NAME)
    _write_tables(cfg, done, folder)


def train_line(cfg: DictConfig, folder: Path) -> None:
    """Make the trainings of the line `cfg.line`, and write no table."""
    for job in _jobs(cfg.experiments[NAME], [cfg.line]):
        _train(cfg, job, folder)


def _jobs(experiment: DictConfig, lines: list[str]) -> Iterator[_Job]:
    """Yield the trainings in the order of their importance: a seed of every line, then others."""
    for seed in experiment.seeds:
        yield from (_Job(line, seed) for line in lines)
    if experiment.rate_seeds:
        for line in lines:
            yield from (_Job(line, rate=rate) for rate in experiment.rates.get(line, ()))


def _train(cfg: DictConfig, job: _Job, folder: Path) -> list[dict[str, Any]]:
    """Return the records of trainings: of `measured_once`, or the `run.json` of each run."""
    experiment = cfg.experiments[NAME]

    def config_of(seed: int) -> DictConfig:
        return jobs.compose_train(
            cfg, [*experiment.overrides, *experiment.lines[job.line]],
            learning_rate=experiment.learning_rate if job.rate is None else job.rate, seed=seed,
            num_steps=experiment.num_steps, eval_every=experiment.stages.loss_every,
        )  # fmt: skip

    if job.seed is None:
        configs = [config_of(seed) for seed in experiment.rate_seeds]
        found = zip(configs, from_config.run_seeds(configs), strict=True)
        return [
            from_config.recorded_info(config) if isinstance(run, DivergedError) else run.info
            for config, run in found
        ]
    config = config_of(job.seed)
    stages = Stages(**experiment.stages)
    identity = {
        "run": from_config.identity_config(config),
        "seed": job.seed,
        "stages": stages._asdict(),
    }
    # A folder of its own, since a process holds it.
    of_path = folder / "runs" / NAME / f"{job.line}-{job.seed}"
    return [measured_once(of_path, "path", identity, lambda: follow(config, stages))]


def _write_tables(cfg: DictConfig, done: dict[_Job, list[dict[str, Any]]], folder: Path) -> None:
    experiment = cfg.experiments[NAME]
    rows: dict[str, list[tuple[Any, ...]]] = {}
    diverged, rates = [], []
    for (line, seed, rate), (record, *others) in done.items():
        if rate is not None:
            for of_seed in (record, *others):
                final = of_seed.get("final", {})
                losses = (final.get(name, "nan") for name in ("valid_loss", "valid_accuracy"))
                rates.append((line, rate, of_seed["seed"], *losses))
        elif record["result"]["valid_loss"][-1][0] < experiment.num_steps:
            diverged.append((line, seed))
        else:
            for quantity, values in record["result"].items():
                of = rows.setdefault(quantity, [])
                of += [(quantity, line, seed, *row) for row in values]
    order = [*experiment.lines]
    table = [
        row for of in rows.values() for row in sorted(of, key=lambda x: (order.index(x[1]), x[2]))
    ]
    write_table(folder / f"{NAME}.csv", COLUMNS, table)
    write_table(folder / f"{NAME}_rates.csv", RATE_COLUMNS, rates)
    information = {
        "title": experiment.title,
        "learning_rate": experiment.learning_rate,
        "examples": experiment.stages.minibatches,
        "diverged": diverged,
        **jobs.provenance_of([record for of_job in done.values() for record in of_job]),
    }
    jobs.write_information(folder, NAME, [NAME, f"{NAME}_rates"], information)


def draw(folder: Path) -> None:
    """Draw the figure from the tables in `folder`."""
    draw_small_rates(folder)


command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.paper.small_rates")
