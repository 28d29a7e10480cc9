"""The laboratory: bias, variance, cosine and cost of each estimator's gradient.

On minibatches of MNIST, at the start of the paper's MLP and along trainings by backprop, each
estimate is drawn many times and compared with the exact gradient ∇f and with the law of its
variance. The time of a step is measured beside backprop's, and the operations are counted. Part of
`reproduce`; alone:

    python -m experiments.quality.estimator_quality preset=quick

Leaves `estimator_quality.csv` (a row for each stage, line and quantity),
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

from experiments.common import commands, from_config, jobs, style, tables
from experiments.common.budget import measured_once
from experiments.common.costs import (
    operations_of_a_step,
    over_reference,
    samples_of,
    step_costs,
)
from experiments.common.targets import verdict
from experiments.common.timings import processes_of, write_timings
from experiments.quality.figure import quality_figure
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
    dense, records = _measured(cfg, experiment.reference, runs)
    configs = {name: _config(cfg, experiment.lines[name].overrides) for name in shown}
    timed = step_costs({"backprop": backprop, **configs}, runs, **experiment.costs)
    times = over_reference(samples_of(timed))
    bar = jobs.progress(shown, cfg, NAME)
    for name in bar:
        bar.set_postfix_str(name)
        counted, unit = (operations_of_a_step(c, runs) for c in (configs[name], backprop))
        measured, sources = _measured(cfg, name, runs)
        records += [counted, unit, *sources]
        costs = {
            "time": times[name],
            "operations": exact(counted["result"] / unit["result"]),
        }
        for stage in map(str, experiment.stages):
            found = _intervals(measured[stage], dense[stage])
            rows += [(stage, name, q, *interval) for q, interval in {**found, **costs}.items()]
    write_table(folder / f"{NAME}.csv", [*_COLUMNS, *tables.INTERVAL], rows)
    information = {
        **{
            key: {name: experiment.lines[name].get(key) for name in shown}
            for key in ("group", "derivatives", "learnt", "uncounted")
        },
        "wanted": jobs.to_plain(experiment.wanted),
        "guess_steps": experiment.guess_steps,
        "history": experiment.history,
        "processes": processes_of({(): timed}),
        **jobs.provenance_of([timed, *records]),
    }
    write_timings(folder / f"{NAME}_timings.csv", {(): timed})
    jobs.write_information(folder, NAME, [NAME, f"{NAME}_timings"], information)


def _config(cfg: DictConfig, overrides: Any, **values: Any) -> DictConfig:
    return jobs.compose_train(cfg, [*cfg.experiments[NAME].overrides, *overrides], **values)


def _measured(cfg: DictConfig, name: str, runs: Path) -> tuple[Samples, list[dict[str, Any]]]:
    """Return the measurements of a line, and their records.

    At the start those lines of which something is wanted have more seeds, and so has the reference.
    """
    experiment = cfg.experiments[NAME]
    of_all = _record(cfg, name, runs, list(experiment.stages), list(experiment.seeds))
    in_question = {experiment.reference, *(target.line for target in experiment.wanted)}
    if name not in in_question or not experiment.more_seeds:
        return of_all["result"], [of_all]
    more = _record(cfg, name, runs, [0], list(experiment.more_seeds))
    first, further = (record["result"]["0"] for record in (of_all, more))
    at_start = {quantity: [*first[quantity], *further[quantity]] for quantity in first}
    return {**of_all["result"], "0": at_start}, [of_all, more]


def _record(
    cfg: DictConfig, name: str, runs: Path, stages: list[int], seeds: list[int]
) -> dict[str, Any]:
    """Return a record whose result is of the type `Samples`."""
    experiment = cfg.experiments[NAME]
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
    """Draw the figure from the table in `folder`: quality against cost, and its frontier."""
    figure = quality_figure(_read(folder), read_json(folder / f"{NAME}.json"))
    style.save(figure, folder, NAME)


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the figure, targets, and tables."""
    stages, information = _read(folder), read_json(folder / f"{NAME}.json")
    text = [
        "## The estimators' quality and cost (not in the paper)",
        "",
        f"![Quality against cost]({NAME}.png)",
        "",
        "Names: *weights* or *activities* is the space of the tangents; the number at the end is "
        "K, the number of tangents. *split*: the noise of each layer is pushed forward by itself; "
        "*exact*: the last layer's derivative is exact; *layerwise*: both; else *joint*: the noise "
        "of all layers is pushed forward in one tangent. *blocks*: each tangent perturbs one of K "
        "groups of units; *momentum*, *guided*: with a control variate, a guess of the gradient. "
        "Derivatives are directional derivatives (JVPs) of an example in a step.",
        "",
        "Each estimate g is drawn many times and compared with the exact gradient ∇f. The columns: "
        "the mean cosine of all parameters, and of all but the last layer's; the root mean square "
        "of the cosine, and its theory, about (1 + error)^(−½), or √(K/d) for a projection; the "
        "slope ⟨g, ∇f⟩, 1 without bias; the bias ‖E g − ∇f‖², estimated without bias, so that it "
        "may be below zero and a large variance hides all but large ones; the variance "
        "E‖g − E g‖². The last three are over ‖∇f‖². The error, bias plus variance, is over its "
        "theory, for the number of weights or, for activities, of the units that are on. 'Over "
        "dense' is the ratio to the cosine of one dense tangent of all weights, for the hidden "
        "layers' cosine as well. Intervals are 95 % over seeds: a start, a training by backprop "
        "and a minibatch each. Evolution's steps have another scale, so that slope, bias and "
        "variance do not apply. Time and operations of a step are over backprop's. XLA counts only "
        "a part of the operations of sampling and factorising, and none of the QR of orthogonal "
        "tangents, so these lines are not on the frontier of operations. Dotted: the frontier of "
        "all lines but backprop, those that no cheaper line equals; backprop is better than every "
        "line that takes longer. Hollow, and not on the frontier: lines with a guess that was "
        f"learned for {information['guess_steps']} minibatches at these very parameters, better "
        "than in a training, where the parameters move.",
        "",
        *([information["history"], ""] if information["history"] else []),
        *_targets(stages, information["wanted"]),
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
    """Count the lines whose error agrees with theory."""
    ratios = [q["error_over_law"] for found in stages.values() for q in found.values()]
    known = [ratio for ratio in ratios if not math.isnan(ratio.low)]
    hold = sum(ratio.low <= 1 <= ratio.high for ratio in known)
    furthest = max((abs(ratio.value - 1) for ratio in known), default=math.nan)
    return (
        f"- Of {len(known)} lines and stages whose law is known, the interval of the error over "
        f"theory's holds 1 in {hold} (about 19 of 20 would if they were independent, but "
        "some share their draws, and a projection's cannot miss); the value furthest from 1 is "
        f"{100 * furthest:.2g} % off."
    )


def _targets(stages: dict[int, Any], wanted: list[dict[str, Any]]) -> list[str]:
    """Compare each target of the config with its quantity at the start."""
    text = []
    for target in wanted:
        if target["line"] not in stages.get(0, {}):
            continue
        found = stages[0][target["line"]][target["quantity"]]
        bounds = {side: target[side] for side in ("at_least", "at_most") if side in target}
        quantity = target["quantity"].replace("_", " ")
        text.append(
            f"- {style.label(target['line'])}, at the start: {quantity} {found}, n = {found.n}, "
            f"{verdict(found, **bounds)}."
        )
    return text


command = jobs.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.quality.estimator_quality")
