"""The laboratory: bias, variance, cosine and cost of each estimator's gradient.

On minibatches of MNIST, at the start of the paper's MLP and along trainings by backprop, each
estimate is drawn many times and compared with the exact gradient ∇f and with the law of its
variance. The time of a step is measured beside backprop's, and the operations are counted. Part of
`reproduce`; alone:

    python -m experiments.quality.estimator_quality preset=quick

Leaves `estimator_quality.csv` (a row for each stage, line and quantity),
`estimator_quality_samples.csv` (a row for each seed besides),
`estimator_quality_timings.csv` (a row a turn), `estimator_quality.json` and the figure
`estimator_quality`. Each measurement is made once.

Quantities, besides those of `gradient_quality`, with 95 % intervals over the seeds,
each of which is a start, a training and a minibatch:

    error_over_law         the error over its expectation in theory (`laws`)
    law_cosine             the root of the mean squared cosine by theory
    cosine_over_dense      the cosine over that of one dense tangent of the weights (`reference`)
    hidden_over_dense      that of the hidden layers over the same, the reference's of all layers
    time                   of a step over backprop's, over fresh processes
    operations             of a step, over backprop's
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments.common import alone, commands, from_config, jobs, style, tables
from experiments.common.budget import measured_once
from experiments.common.costs import (
    operations_of_a_step,
    over_reference,
    samples_of,
    step_costs,
)
from experiments.common.timings import processes_of, write_timings
from experiments.quality.figure import quality_caption, quality_figure
from experiments.quality.gradient_quality import quality, trained
from fwdgrad.measurement import Interval, exact, mean_interval
from fwdgrad.records import read_json, write_table

NAME = "estimator_quality"
_COLUMNS: tables.Columns = {"stage": int, "line": str, "quantity": str}
# Of the report's tables.
_SHOWN = (
    "estimator", "seeds", "derivatives", "cosine", "of the hidden layers", "root mean square",
    "by theory", "slope", "bias", "variance", "error over theory's", "time", "operations",
)  # fmt: skip
# stage -> quantity -> a number for each seed
Samples = dict[str, dict[str, list[float]]]


def run(cfg: DictConfig, folder: Path) -> None:
    """Measure every line, or read it back, and write the tables."""
    experiment = cfg.experiments[NAME]
    runs = folder / "runs" / NAME
    backprop = _config(cfg, experiment.training)
    shown = list(experiment.shown or experiment.lines)
    rows: list[tuple[Any, ...]] = []
    samples: list[tuple[Any, ...]] = []
    reference = _record(cfg, experiment.reference, runs)
    dense, records = reference["result"], [reference]
    configs = {name: _config(cfg, experiment.lines[name].overrides) for name in shown}
    timed = step_costs({"backprop": backprop, **configs}, runs, **experiment.costs)
    times = over_reference(samples_of(timed))
    bar = jobs.progress(shown, cfg, NAME)
    for name in bar:
        bar.set_postfix_str(name)
        counted, unit = (operations_of_a_step(c, runs) for c in (configs[name], backprop))
        record = _record(cfg, name, runs)
        measured = record["result"]
        records += [counted, unit, record]
        costs = {
            "time": times[name],
            "operations": exact(counted["result"] / unit["result"]),
        }
        for stage in map(str, experiment.stages):
            found = _intervals(measured[stage], dense[stage])
            rows += [(stage, name, q, *interval) for q, interval in {**found, **costs}.items()]
            samples += [
                (stage, name, quantity, seed, value)
                for quantity, values in measured[stage].items()
                for seed, value in zip(experiment.seeds, values, strict=True)
            ]
    write_table(folder / f"{NAME}.csv", [*_COLUMNS, *tables.INTERVAL], rows)
    write_table(folder / f"{NAME}_samples.csv", [*_COLUMNS, "seed", "value"], samples)
    information = {
        **{
            key: {name: experiment.lines[name].get(key) for name in shown}
            for key in ("group", "derivatives", "learnt", "uncounted")
        },
        "guess_steps": experiment.guess_steps,
        "processes": processes_of({(): timed}),
        **jobs.provenance_of([timed, *records]),
    }
    write_timings(folder / f"{NAME}_timings.csv", {(): timed})
    jobs.write_information(folder, NAME, [NAME, f"{NAME}_samples", f"{NAME}_timings"], information)


def _config(cfg: DictConfig, overrides: Any, **values: Any) -> DictConfig:
    return jobs.compose_train(cfg, [*cfg.experiments[NAME].overrides, *overrides], **values)


def _record(cfg: DictConfig, name: str, runs: Path) -> dict[str, Any]:
    """Return the record of a line, whose result is of the type `Samples`."""
    experiment = cfg.experiments[NAME]
    stages, seeds = list(experiment.stages), list(experiment.seeds)
    line = experiment.lines[name]
    config, training = _config(cfg, line.overrides), _config(cfg, experiment.training)
    lengths = {"draws": line.get("draws", experiment.draws), "guess_steps": experiment.guess_steps}
    identity = {
        "line": from_config.identity_config(config),
        "training": from_config.identity_config(training),
        "stages": stages, "seeds": seeds, **lengths,
    }  # fmt: skip

    def measure() -> Samples:
        def at(stage: int) -> dict[str, list[float]]:
            trainings = {seed: _config(cfg, experiment.training, seed=seed) for seed in seeds}
            starts = {seed: trained(training, stage) for seed, training in trainings.items()}
            return quality(config, starts, **lengths)

        return {str(stage): at(stage) for stage in stages}

    return measured_once(runs, "quality", identity, measure)


def _intervals(found: dict[str, list[float]], dense: dict[str, list[float]]) -> dict[str, Interval]:
    """Return the intervals of measurements, and of their ratios to one dense tangent by seed."""
    samples = {name: np.array([float(x) for x in values]) for name, values in found.items()}
    reference = np.array([float(x) for x in dense["cosine"]])[: len(samples["cosine"])]
    samples["cosine_over_dense"] = samples["cosine"] / reference
    samples["hidden_over_dense"] = samples["hidden_cosine"] / reference
    samples["law_cosine"] = samples.pop("squared_cosine_law") ** 0.5
    known = samples["law"] > 0  # backprop has neither error nor law
    samples["error_over_law"] = samples["error"] / np.where(known, samples["law"], np.nan)
    return {name: mean_interval(values) for name, values in samples.items()}


def _read(folder: Path) -> dict[int, dict[str, dict[str, Interval]]]:
    """Return stage -> line -> quantity -> interval."""
    return tables.read_intervals(folder / f"{NAME}.csv", _COLUMNS)


def draw(folder: Path) -> None:
    """Draw the figure from the table in `folder`: quality against cost at the first stage."""
    stage, found = next(iter(_read(folder).items()))
    style.save(quality_figure(stage, found), folder, NAME, quality_caption(found))


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the figure, targets, and tables."""
    stages, information = _read(folder), read_json(folder / f"{NAME}.json")
    text = [
        "## The estimators' quality and cost (not in the paper)",
        "",
        f"![Quality against cost]({NAME}.png)",
        "",
        "Tangents are of the weights (*forward gradient*) or of pre-activations (*activities*): "
        "*joint*, the noise of all layers in one tangent, or *layer-wise*, each layer's noise by "
        "itself; *exact last*: the last layer's derivative is exact. K is the number of tangents; "
        "with *blocks* each perturbs its own group of units. A *control variate* is a guess of the "
        "gradient, learned from the steps before. Derivatives are directional derivatives (JVPs) "
        "of an example in a step.",
        "",
        "Each estimate g is drawn many times and compared with the exact gradient ∇f, on a "
        "minibatch for each seed: a start and a training by backprop. Intervals are 95 % over the "
        "seeds (Student's t). The columns are",
        "",
        "- the mean cosine of g and ∇f, of all parameters and of all but the last layer's;",
        "- the root mean square of the cosine, and its theory: (1 + error)^(−½), or √(K/d) for a "
        "projection;",
        "- slope ⟨g, ∇f⟩, which is 1 without bias, bias ‖E g − ∇f‖² and variance E‖g − E g‖², all "
        "over ‖∇f‖². The estimate of the bias has no bias of its own, so it may be below zero. "
        "Steps of evolution strategies have another scale, so these three do not apply;",
        "- the error, bias plus variance, over its theory for the number of weights, or of the "
        "units that are on;",
        "- time and operations of a step over backprop's. XLA counts a part of the operations of "
        "sampling, and none of a QR factorisation.",
        "",
        "Control variates were learned for "
        f"{information['guess_steps']} minibatches at these very parameters, which is better than "
        "in a training, where the parameters move.",
        "",
        _of_laws(stages),
    ]
    for stage, found in stages.items():
        after = "At the start" if stage == 0 else f"After {stage:,} steps of backprop"
        rows = []
        for name, q in found.items():
            value, low, high = (max(x, 0.0) ** 0.5 for x in q["squared_cosine"][:3])
            root = Interval(value, low, high, q["squared_cosine"].n)
            laws = [_or_dash(q[law]) for law in ("law_cosine", "error_over_law")]
            rows.append([
                style.label(name), q["cosine"].n, information["derivatives"][name], q["cosine"],
                q["hidden_cosine"], root, laws[0], q["slope"], q["bias"], q["variance"], laws[1],
                q["time"], q["operations"],
            ])  # fmt: skip
        text += ["", f"{after}:", "", *tables.markdown(_SHOWN, rows)]
    return "\n".join(text)


def _or_dash(interval: Interval) -> str:
    return "–" if math.isnan(interval.value) else str(interval)


def _of_laws(stages: dict[int, Any]) -> str:
    """Count the lines whose error agrees with theory; a projection's cannot miss its own."""
    ratios = [
        q["error_over_law"]
        for found in stages.values()
        for name, q in found.items()
        if "projected" not in name
    ]
    known = [ratio for ratio in ratios if not math.isnan(ratio.low)]
    hold = sum(ratio.low <= 1 <= ratio.high for ratio in known)
    furthest = max((abs(ratio.value - 1) for ratio in known), default=math.nan)
    return (
        f"Of {len(known)} lines and stages whose error has a theory, the 95 % interval of error "
        f"over theory holds 1 in {hold} (if they were independent, 19 of 20 would; some share "
        f"their draws). The value furthest from 1 is {100 * furthest:.2g} % off."
    )


command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.quality.estimator_quality")
