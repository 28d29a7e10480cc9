"""Figures 3 and 4 of the paper: learning curves on MNIST, forward gradients beside backprop.

One row of panels for each model: loss against iterations, loss against time, time against
iterations, accuracy against time. Part of `reproduce`; alone:

    python -m experiments.learning_curves preset=quick

Leaves in the preset's folder `learning_curves.csv` (a row an evaluation),
`learning_curves_runs.csv` (a row a run) and the figure `learning_curves`.
"""

from pathlib import Path

import hydra
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig
from tqdm import tqdm

from experiments import style, train
from fwdgrad.work import Metrics, RunRecord, mean_interval
from fwdgrad.work.records import read_json, read_table, write_json, write_table

NAME = "learning_curves"
_RUN_COLUMNS = (
    "panel",
    "estimator",
    "seed",
    "num_steps",
    "seconds",
    "milliseconds_per_step",
    "compile_seconds",
    "train_loss",
    "valid_loss",
    "valid_accuracy",
    "test_accuracy",
)


def run(cfg: DictConfig, folder: Path) -> None:
    """Trains every panel, line and seed that has no finished run yet, and writes the tables."""
    experiment = cfg.experiments[NAME]
    jobs = [
        (panel, line, seed)
        for panel in experiment.panels
        for seed in experiment.seeds
        for line in experiment.lines
    ]
    records: list[tuple[str, str, int, RunRecord]] = []
    bar = tqdm(jobs, desc=NAME, unit="run", disable=_hidden(cfg.output.progress))
    for panel, line, seed in bar:
        bar.set_postfix_str(f"{panel} {line} seed {seed}")
        record = train.run(_train_config(cfg, panel, line, seed))
        records.append((panel, line, seed, record))
        bar.write(f"{NAME}: {train.summary(record)}")
    titles = {panel: experiment.panels[panel].title for panel in experiment.panels}
    _write_tables(records, titles, folder)


def _hidden(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


def _train_config(cfg: DictConfig, panel: str, line: str, seed: int) -> DictConfig:
    experiment = cfg.experiments[NAME]
    settings = experiment.panels[panel]
    return hydra.compose(
        "train",
        overrides=[
            *settings.overrides,
            *experiment.lines[line],
            f"num_steps={settings.num_steps}",
            f"eval_every={settings.eval_every}",
            f"seed={seed}",
            f"output.root={cfg.output.root}/runs",
            f"output.progress={'null' if cfg.output.progress is None else cfg.output.progress}",
            f"output.checkpoint_seconds={cfg.output.checkpoint_seconds}",
        ],
    )


def _write_tables(
    records: list[tuple[str, str, int, RunRecord]], titles: dict[str, str], folder: Path
) -> None:
    write_table(
        folder / f"{NAME}.csv",
        ("panel", "estimator", "seed", *Metrics._fields),
        [(*names, *row) for *names, record in records for row in record.metrics],
    )
    runs = []
    for *names, record in records:
        final = record.info["final"]
        values = {
            "num_steps": final["step"],
            "milliseconds_per_step": 1e3 * final["seconds"] / final["step"],
            "compile_seconds": record.info["compile_seconds"],
            **final,
        }
        runs.append((*names, *(values[column] for column in _RUN_COLUMNS[3:])))
    write_table(folder / f"{NAME}_runs.csv", _RUN_COLUMNS, runs)
    sources = [{k: r.info[k] for k in ("code", "versions", "hardware")} for *_, r in records]
    unique = [s for i, s in enumerate(sources) if s not in sources[:i]]
    write_json(folder / f"{NAME}.json", {"titles": titles, "provenance": unique})


def draw(folder: Path) -> None:
    """Draws the figure from the tables in `folder`."""
    curves, titles = _read_curves(folder), read_json(folder / f"{NAME}.json")["titles"]
    figure, axes = plt.subplots(len(curves), 4, figsize=(11, 2.6 * len(curves)), squeeze=False)
    for row, (panel, lines) in zip(axes, curves.items(), strict=True):
        _draw_row(row, lines)
        row[0].set_title(titles[panel], loc="left", fontweight="bold")
    handles, labels = axes[0, 2].get_legend_handles_labels()
    for label, ls in (("validation", "-"), ("training", ":")):
        handles.append(Line2D([], [], color="#777777", ls=ls))
        labels.append(label)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    style.save(figure, folder, NAME)


def describe(folder: Path) -> str:
    """The report's section: the figure, and a table of its final numbers, in Markdown."""
    curves, titles = _read_curves(folder), read_json(folder / f"{NAME}.json")["titles"]
    runs = read_table(folder / f"{NAME}_runs.csv")
    lines = [
        "## Learning curves (the paper's figures 3 and 4)",
        "",
        f"![Learning curves]({NAME}.png)",
        "",
        "Means over the seeds, with 95 % intervals (Student's t) shaded in the figure and in "
        "brackets below. Time is training time alone: compilation, evaluation and logging are "
        "off the clock. The training loss is the mean over the minibatches since the evaluation "
        "before, so it lags by half that distance. T is the time at which the mean validation "
        "loss reaches backprop's lowest, T_b for backprop itself.",
        "",
        "| model | estimator | seeds | steps | ms a step | T / T_b | validation loss "
        "| test accuracy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for panel, by_estimator in curves.items():
        target = by_estimator["backprop"]["valid_loss"].mean(0).min()
        for estimator, line in by_estimator.items():
            chosen = [r for r in runs if (r["panel"], r["estimator"]) == (panel, estimator)]
            samples = {c: [float(r[c]) for r in chosen] for c in _RUN_COLUMNS[3:]}
            time, reference = _time_to(target, line), _time_to(target, by_estimator["backprop"])
            ratio = f"{time / reference:.3f}" if time is not None and reference else "not reached"
            lines.append(
                f"| {titles[panel]} | {style.name(estimator)} | {len(chosen)} "
                f"| {chosen[0]['num_steps']} "
                f"| {mean_interval(samples['milliseconds_per_step'])} "
                f"| {ratio} "
                f"| {mean_interval(samples['valid_loss'])} "
                f"| {mean_interval(samples['test_accuracy'])} |"
            )
    return "\n".join(lines)


def _read_curves(folder: Path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """From panel, estimator and column of `metrics.csv` to an array (seeds, rows)."""
    runs: dict[tuple[str, str, str], list[list[float]]] = {}
    for row in read_table(folder / f"{NAME}.csv"):
        key = (row["panel"], row["estimator"], row["seed"])
        runs.setdefault(key, []).append([float(row[column]) for column in Metrics._fields])
    curves: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for panel, estimator in dict.fromkeys(key[:2] for key in runs):
        table = np.stack([np.array(v) for k, v in runs.items() if k[:2] == (panel, estimator)])
        columns = {column: table[:, :, i] for i, column in enumerate(Metrics._fields)}
        curves.setdefault(panel, {})[estimator] = columns
    return curves


def _time_to(loss: float, line: dict[str, np.ndarray]) -> float | None:
    """When the mean validation loss first falls to `loss`, between rows interpolated."""
    seconds, losses = line["seconds"].mean(0), line["valid_loss"].mean(0)
    reached = np.flatnonzero(losses <= loss)
    if len(reached) == 0:
        return None
    i = reached[0]
    if i == 0:
        return float(seconds[0])
    return float(np.interp(loss, losses[[i, i - 1]], seconds[[i, i - 1]]))


def _draw_row(axes: np.ndarray, lines: dict[str, dict[str, np.ndarray]]) -> None:
    by_step, by_time, cost, accuracy = axes
    target = lines["backprop"]["valid_loss"].mean(0).min()
    for estimator, line in lines.items():
        steps, seconds = line["step"][0], line["seconds"].mean(0)
        _plot(by_step, steps, line["valid_loss"], estimator)
        # The first row is the loss of one minibatch, the others means over many.
        trained = line["train_loss"].mean(0)[1:]
        by_step.plot(steps[1:], trained, color=style.colour(estimator), ls=":", lw=0.9)
        _plot(by_time, seconds, line["valid_loss"], estimator)
        _plot(cost, steps, line["seconds"], estimator)
        _plot(accuracy, seconds, line["valid_accuracy"], estimator)
        if (time := _time_to(target, line)) is not None:
            by_time.plot(time, target, "o", ms=4, color=style.colour(estimator))
    by_time.axhline(target, color=style.colour("backprop"), lw=0.6, ls="--")
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(5))
    by_step.set(xlabel="iteration", ylabel="loss (nats)")
    by_time.set(xlabel="training time (s)", ylabel="validation loss (nats)")
    cost.set(xlabel="iteration", ylabel="training time (s)")
    accuracy.set(xlabel="training time (s)", ylabel="validation accuracy")


def _plot(axis: Axes, x: np.ndarray, samples: np.ndarray, estimator: str) -> None:
    """The mean over the first axis of `samples` against x, its interval shaded."""
    intervals = [mean_interval(column) for column in samples.T]
    mean, low, high = (np.array([i[k] for i in intervals]) for k in range(3))
    axis.plot(x, mean, color=style.colour(estimator), label=style.name(estimator))
    axis.fill_between(x, low, high, color=style.colour(estimator), alpha=0.2, lw=0)


@hydra.main(version_base="1.3", config_path="../configs", config_name="reproduce")
def main(cfg: DictConfig) -> None:
    folder = Path(cfg.output.root)
    if not cfg.draw_only:
        run(cfg, folder)
    draw(folder)
    print(f"{folder / NAME}.png")


if __name__ == "__main__":
    main()
