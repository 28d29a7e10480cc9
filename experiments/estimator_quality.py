"""How good each estimator's gradient is, and what it costs: the laboratory.

On one minibatch of MNIST, at the start of the paper's MLP and along a training by backprop, each
estimate is drawn many times and held against the exact gradient ∇f and against the law of its
noise. Its cost is timed beside backprop's, and its operations are counted. Part of `reproduce`;
alone:

    python -m experiments.estimator_quality preset=quick

Leaves `estimator_quality.csv` (a row for each stage, line and quantity), `estimator_quality.json`
and the figure `estimator_quality`. What has been measured is not measured again.

Quantities, with their intervals over the draws g:

    cosine     ⟨g, ∇f⟩ / ‖g‖ ‖∇f‖, of all parameters; hidden_cosine, of all but the last layer's
    slope      ⟨g, ∇f⟩ / ‖∇f‖², of mean 1 if the estimate is unbiased
    error      ‖g − ∇f‖² / ‖∇f‖², the noise and the squared bias
    law        what the error's expectation is by theory, where that is known
    time       a step's over backprop's; operations, likewise
"""

import math
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from omegaconf import DictConfig, OmegaConf

import fwdgrad
from experiments import jobs, style, train
from experiments.costs import operations_of_a_step, step_costs
from experiments.paper import Finding
from fwdgrad.core.trees import Array, PyTree
from fwdgrad.work import Interval, exact, guided_optimizer, mean_interval
from fwdgrad.work.measurements import measured_once
from fwdgrad.work.records import read_json, read_table, write_json, write_table

NAME = "estimator_quality"
COLUMNS = ("stage", "line", "quantity", "value", "low", "high", "n")
_SEED = 0
_LAST_LEAVES = 2  # of the parameters: the last layer's weight and bias


def run(cfg: DictConfig, folder: Path) -> None:
    """Measures what has not been measured yet, and writes the tables."""
    experiment = cfg.experiments[NAME]
    runs = folder / "runs" / NAME
    backprop = _config(cfg, experiment.training)
    rows: list[tuple[Any, ...]] = []
    records = []
    shown = list(experiment.shown or experiment.lines)
    bar = jobs.progress(shown, cfg, NAME)
    for name in bar:
        bar.set_postfix_str(name)
        config = _config(cfg, experiment.lines[name].overrides)
        timed = step_costs({"backprop": backprop, name: config}, runs, **experiment.costs)
        counted, unit = (operations_of_a_step(c, runs) for c in (config, backprop))
        costs = {
            "time": timed["result"][name]["over_reference"],
            "operations": exact(counted["result"] / unit["result"])._asdict(),
        }
        records += [timed, counted, unit]
        for stage in experiment.stages:
            record = _measured(cfg, config, stage, runs)
            records.append(record)
            quantities = {**record["result"], **costs}
            rows += [(stage, name, q, *interval.values()) for q, interval in quantities.items()]
    write_table(folder / f"{NAME}.csv", COLUMNS, rows)
    information = {
        "groups": {name: experiment.lines[name].group for name in shown},
        "derivatives": {name: experiment.lines[name].derivatives for name in shown},
        **jobs.sources(records),
    }
    write_json(folder / f"{NAME}.json", information)


def _config(cfg: DictConfig, overrides: Any) -> DictConfig:
    return jobs.compose_train(cfg, [*cfg.experiments[NAME].overrides, *overrides])


def _measured(cfg: DictConfig, config: DictConfig, stage: int, runs: Path) -> dict[str, Any]:
    experiment = cfg.experiments[NAME]
    training = _config(cfg, experiment.training)
    lengths = {"draws": experiment.draws, "guess_steps": experiment.guess_steps}
    identity = {
        "line": train.identifying(config), "stage": stage, **lengths,
        "training": train.identifying(training),
    }  # fmt: skip

    def measure() -> dict[str, Any]:
        params = _trained(OmegaConf.to_yaml(training, resolve=True), stage)
        found = quality(config, params, **lengths)
        return {quantity: interval._asdict() for quantity, interval in found.items()}

    return measured_once(runs, "quality", identity, measure)


@lru_cache(maxsize=8)
def _trained(training: str, num_steps: int) -> PyTree:
    """The parameters after so many steps of a `train` config, given as YAML."""
    config: Any = OmegaConf.create(training)
    run = train.Training(config)
    run.advance(num_steps)
    return run.state.params


def quality(
    config: DictConfig, params: PyTree, *, draws: int, guess_steps: int
) -> dict[str, Interval]:
    """The quality of a config's estimator at parameters, on the first minibatch.

    Args:
      config: a `train` config.
      params: of its model.
      draws: how often the estimate is drawn.
      guess_steps: for how many minibatches a guess is learnt at these parameters first, if the
        estimator has one.
    """
    problem = train.problem(config)
    batch = jax.tree.map(lambda x: x[: config.batch_size], problem.train)
    value_and_grad = train.estimator(config)(problem.loss)
    target = jax.jit(jax.grad(problem.loss))(params, batch)
    at = params
    if (rate := config.estimator.get("guess_rate")) is not None:
        guided = value_and_grad.guide(params, batch)
        optimizer = guided_optimizer(optax.set_to_zero(), rate)
        learning = train.Training(config, init=lambda key: guided, transformation=optimizer)
        learning.advance(guess_steps)
        at = learning.state.params

    @jax.jit
    def samples(keys: Array, at: PyTree, batch: PyTree, target: PyTree) -> dict[str, Array]:
        def sample(key: Array) -> dict[str, Array]:
            found = value_and_grad(key, at, batch)[1]
            return _compared(found.params if isinstance(found, fwdgrad.Guided) else found, target)

        return jax.lax.map(sample, keys)

    found = samples(jax.random.split(jax.random.key(_SEED), draws), at, batch, target)
    intervals = {name: mean_interval(np.asarray(x, float)) for name, x in found.items()}
    intervals["law"] = exact(_law(config, sum(x.size for x in jax.tree.leaves(params))))
    return intervals


def _compared(found: PyTree, target: PyTree) -> dict[str, Array]:
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True))

    def product(pairs: list[tuple[Array, Array]]) -> Array:
        return sum((jnp.vdot(a, b) for a, b in pairs[1:]), jnp.vdot(*pairs[0]))

    def cosine(pairs: list[tuple[Array, Array]]) -> Array:
        squares = (product([(pair[i], pair[i]) for pair in pairs]) for i in (0, 1))
        return product(pairs) / jnp.sqrt(math.prod(squares))

    norm = product([(b, b) for _, b in pairs])
    return {
        "cosine": cosine(pairs),
        "hidden_cosine": cosine(pairs[:-_LAST_LEAVES] or pairs),
        "slope": product(pairs) / norm,
        "error": product([(a - b, a - b) for a, b in pairs]) / norm,
    }


def _law(config: DictConfig, size: int) -> float:
    """E‖g − ∇f‖² / ‖∇f‖² by theory, or nan if there is no law of the size alone."""
    arguments = train.estimator(config).keywords
    plain = not (set(arguments) & {"space", "aggregation"}) and "guess_rate" not in config.estimator
    if config.estimator.name == "backprop":
        return 0.0
    if config.estimator.name != "forward" or not plain:
        return math.nan
    return float(arguments["tangents"].noise(size, arguments["num_tangents"]))


def _read(folder: Path) -> dict[int, dict[str, dict[str, Interval]]]:
    """From stage, line and quantity to its interval."""
    found: dict[int, dict[str, dict[str, Interval]]] = {}
    for row in read_table(folder / f"{NAME}.csv"):
        value, low, high = (float(row[end]) for end in ("value", "low", "high"))
        of_line = found.setdefault(int(row["stage"]), {}).setdefault(row["line"], {})
        of_line[row["quantity"]] = Interval(value, low, high, int(row["n"]))
    return found


def draw(folder: Path) -> None:
    """Draws the figure from the table in `folder`: quality against cost, and its frontier."""
    stages, groups = _read(folder), read_json(folder / f"{NAME}.json")["groups"]
    figure, axes = plt.subplots(
        2, len(stages), figsize=(3.6 * len(stages), 6.4), sharey=True, squeeze=False
    )
    for column, (stage, found) in zip(axes.T, stages.items(), strict=True):
        title = "at the start" if stage == 0 else f"after {stage:,} steps of backprop"
        column[0].set_title(title, loc="left", fontweight="bold")
        for axis, cost in zip(column, ("time", "operations"), strict=True):
            _draw_costs(axis, found, groups, cost)
            axis.set_xlabel(f"{cost} of a step, over backprop's")
    for axis in axes[:, 0]:
        axis.set_ylabel("cosine with the gradient of the hidden layers")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7
    )
    style.save(figure, folder, NAME)


def _draw_costs(
    axis: Axes, found: dict[str, dict[str, Interval]], groups: dict[str, str], cost: str
) -> None:
    colours = plt.get_cmap("tab20")
    points = []
    for i, group in enumerate(dict.fromkeys(groups.values())):
        chosen = [found[name] for name in found if groups[name] == group]
        x = [quantities[cost].value for quantities in chosen]
        y = [quantities["hidden_cosine"] for quantities in chosen]
        points += [(a, b.value) for a, b in zip(x, y, strict=True)]
        ends = [[b.value - b.low for b in y], [b.high - b.value for b in y]]
        marker = "*" if group == "backprop" else "o"
        axis.errorbar(
            x, [b.value for b in y], np.maximum(np.nan_to_num(ends), 0), color=colours(i),
            marker=marker, ms=4, lw=0.8, elinewidth=0.6, label=group,
        )  # fmt: skip
    frontier = _frontier(points)
    axis.step(*zip(*frontier, strict=True), where="post", color="black", lw=0.8, ls=":", zorder=0)
    axis.set(xscale="log", yscale="log")


def _frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that nothing cheaper is as good as.

    >>> _frontier([(2.0, 0.5), (1.0, 0.2), (3.0, 0.4)])
    [(1.0, 0.2), (2.0, 0.5)]
    """
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def describe(folder: Path) -> str:
    """The report's section: the figure, and a table, in Markdown."""
    derivatives = read_json(folder / f"{NAME}.json")["derivatives"]
    text = [
        "## The estimators' quality and cost (not in the paper)",
        "",
        f"![Quality against cost]({NAME}.png)",
        "",
        "Each estimate drawn many times for one minibatch and held against the exact gradient ∇f: "
        "the cosine of all parameters and of all but the last layer's; the slope ⟨g, ∇f⟩/‖∇f‖², 1 "
        "in the mean if the estimate is unbiased; the squared error over ‖∇f‖², and what it is by "
        "theory. 95 % intervals of the means (Student's t). Time and operations of a step are over "
        "backprop's. Dotted: the frontier, what nothing cheaper is as good as.",
    ]
    for stage, found in _read(folder).items():
        after = "At the start" if stage == 0 else f"After {stage:,} steps of backprop"
        text += [
            "",
            f"{after}:",
            "",
            "| estimator | derivatives | cosine | of the hidden layers | slope | error | by theory "
            "| time | operations |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, q in found.items():
            law = "–" if math.isnan(q["law"].value) else f"{q['law'].value:.4g}"
            numbers = " | ".join(str(q[k]) for k in ("cosine", "hidden_cosine", "slope", "error"))
            text.append(
                f"| {style.name(name)} | {derivatives[name]} | {numbers} | {law} "
                f"| {q['time']} | {q['operations']} |"
            )
    return "\n".join(text)


def findings(folder: Path) -> list[Finding]:
    """The paper has no such numbers."""
    return []


@hydra.main(version_base="1.3", config_path="../configs", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    jobs.alone(cfg, sys.modules[__name__])


if __name__ == "__main__":
    main()
