"""Figure 2 of the paper: descent on test functions, forward gradients and backprop.

One row of panels for each function: value against iterations, value against time, time against
iterations, and the paths over a contour plot (for a function of more than two variables: the
distance from the minimum). Part of `reproduce`; alone:

    python -m experiments.paper.trajectories preset=quick

Other functions are an option: `experiments.trajectories.figures.trajectories_more=[sphere_10]`.

Leaves `<figure>.csv` (a row for each recorded point), `<figure>.json` and a figure for each of
the config's `figures`. Each descent is made once.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import jax.numpy as jnp
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.common import alone, commands, jobs, style, tables
from experiments.common.budget import measured_once
from experiments.common.paper_facts import Finding, compare
from experiments.common.verdicts import CONFIDENCE, SEEDS
from experiments.paper.trajectories_figure import draw_trajectories
from fwdgrad.measurement import (
    Interval,
    exact,
    mean_interval,
    median_interval,
    significant,
)
from fwdgrad.problems import TEST_FUNCTIONS
from fwdgrad.records import read_json, write_table
from fwdgrad.training import make_descend

NAME = "trajectories"
_MORE = f"{NAME}_more"  # the figure of other functions than the paper's, if there is one
_SETTINGS = ("function", "start", "learning_rate", "num_steps")
_NUM_ROWS = 60  # that are recorded of a path, and as many again, close at its start
# Of each recorded point: x and y are its first two entries, distance is that from the minimum.
_RECORDED = ("step", "seconds", "value", "x", "y", "distance")
_COLUMNS: tables.Columns = {
    "function": str, "estimator": str, "seed": int, "step": int,
    **dict.fromkeys(_RECORDED[1:], float),
}  # fmt: skip
_SHOWN = (
    "function", "estimator", "runs", "final value − minimum", "time (ms)", "time over backprop's",
)  # fmt: skip


def run(cfg: DictConfig, folder: Path) -> None:
    """Descend on every function, or read descents back, and write the tables."""
    experiment: Any = OmegaConf.to_container(cfg.experiments[NAME], resolve=True)
    estimators: dict[str, Any] = {
        line: OmegaConf.to_container(
            hydra.compose("train", overrides).estimator.value_and_grad, resolve=True
        )
        for line, overrides in experiment["lines"].items()
    }
    records: dict[str, dict[str, Any]] = {}
    bar = jobs.progress([n for names in experiment["figures"].values() for n in names], cfg, NAME)
    for name in bar:
        bar.set_postfix_str(name)
        settings = {key: experiment["functions"][name][key] for key in _SETTINGS}
        config = {**settings, "estimators": estimators, "num_seeds": experiment["num_seeds"]}
        measure = partial(_descend, config)
        records[name] = measured_once(folder / "runs" / NAME, name, config, measure)
    for figure, names in experiment["figures"].items():
        if not names:
            continue
        rows = [
            (name, line, seed, *row)
            for name in names
            for line, seeds in records[name]["result"].items()
            for seed, columns in enumerate(seeds)
            for row in zip(*columns, strict=True)
        ]
        write_table(folder / f"{figure}.csv", _COLUMNS, rows)
        chosen = {name: experiment["functions"][name] for name in names}
        sources = jobs.provenance_of(records[name] for name in names)
        jobs.write_information(folder, figure, [figure], {"functions": chosen, **sources})


def _descend(config: dict[str, Any]) -> dict[str, list[list[list[float]]]]:
    """Return, for each line and seed, the columns `_RECORDED`; the lines take turns."""
    objective = TEST_FUNCTIONS[config["function"]]
    descends = {
        line: make_descend(
            objective.function,
            jnp.array(config["start"], jnp.float32),
            instantiate(estimator, _convert_="all"),
            **{key: config[key] for key in ("learning_rate", "num_steps")},
        )
        for line, estimator in config["estimators"].items()
    }
    n = config["num_steps"]
    spaced = (np.linspace(0, n, _NUM_ROWS + 1), np.geomspace(1, n, _NUM_ROWS))
    recorded = np.unique(np.concatenate(spaced).round().astype(int))
    result: dict[str, list[list[list[float]]]] = {line: [] for line in descends}
    for seed in range(config["num_seeds"]):
        for line, descend in descends.items():
            path = descend(seed)
            distances = np.linalg.norm(path.points - np.array(objective.argmin), axis=1)
            columns = (path.seconds, path.values, *path.points.T[:2], distances)
            rows = [recorded, *(column[recorded] for column in columns)]
            result[line].append([row.tolist() for row in rows])
    return result


# From function, estimator and column to an array (seeds, rows).
_Paths = dict[str, dict[str, dict[str, np.ndarray]]]


def _read(folder: Path, figure: str) -> _Paths:
    return tables.read_lines(folder / f"{figure}.csv", "function", _COLUMNS)


def _figures(folder: Path) -> list[str]:
    return [NAME, _MORE] if (folder / f"{_MORE}.csv").exists() else [NAME]


def draw(folder: Path) -> None:
    """Draw the figures from the tables in `folder`."""
    for name in _figures(folder):
        functions = read_json(folder / f"{name}.json")["functions"]
        minima = {function: _minimum(settings) for function, settings in functions.items()}
        draw_trajectories(_read(folder, name), functions, minima, folder, name)


def _minimum(settings: dict[str, Any]) -> float:
    objective = TEST_FUNCTIONS[settings["function"]]
    argmin = np.broadcast_to(objective.argmin, len(settings["start"]))
    return float(objective.function(jnp.asarray(argmin, jnp.float32)))


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the figures, and a table of the ends."""
    text = ["## Test functions (the paper's figure 2)", ""]
    rows = []
    for name in _figures(folder):
        text += [f"![Descent on test functions]({name}.png)", ""]
        functions = read_json(folder / f"{name}.json")["functions"]
        for function, lines in _read(folder, name).items():
            rows += [
                (functions[function]["title"], style.label(estimator), len(line["value"]),
                 _shown_gap(line, functions[function]),
                 mean_interval(1e3 * line["seconds"][:, -1]), _time_ratio(lines, estimator))
                for estimator, line in lines.items()
            ]  # fmt: skip
    text += [
        "Single runs are thin, their means thick. The table has the median over the runs of the "
        "final value above the minimum, and the time of all iterations; the ratio to backprop's "
        "time of the same run is a geometric mean. Intervals are 95 %: of order statistics for the "
        "median, else Student's t.",
        "",
        *tables.markdown(_SHOWN, rows),
    ]
    return "\n".join(text)


def _final_gap(
    line: dict[str, np.ndarray], settings: dict[str, Any], confidence: float = 0.95
) -> Interval:
    """Return the median of the final values above the minimum.

    A geometric mean would be one of runs that end at the minimum, to the last bit of a float32.
    """
    gaps = line["value"][:, -1] - _minimum(settings)
    return _exact_if_equal(gaps) or median_interval(gaps, confidence)


def _shown_gap(line: dict[str, np.ndarray], settings: dict[str, Any]) -> str:
    """Return the final gap, or the bound below which float32 does not tell it from 0."""
    gap, last_bit = _final_gap(line, settings), float(np.spacing(np.float32(_minimum(settings))))
    return f"at most {significant(abs(last_bit))}" if gap.value <= abs(last_bit) else str(gap)


def _time_ratio(
    lines: dict[str, dict[str, np.ndarray]], estimator: str, confidence: float = 0.95
) -> Interval:
    """Return the geometric mean of the time of all iterations over that of backprop."""
    seconds = {name: lines[name]["seconds"][:, -1] for name in (estimator, "backprop")}
    ratios = seconds[estimator] / seconds["backprop"]
    if equal := _exact_if_equal(ratios):
        return equal
    mean, low, high, n = mean_interval(np.log(ratios), confidence)
    return Interval(math.exp(mean), math.exp(low), math.exp(high), n)


def _exact_if_equal(samples: np.ndarray) -> Interval | None:
    """Return the number that all samples are, as every seed's of backprop, or None."""
    return exact(float(samples[0])) if len(samples) > 1 and np.ptp(samples) == 0 else None


def findings(folder: Path) -> list[Finding]:
    """Compare the tables with the paper's numbers."""
    found = []
    for name in _figures(folder):
        functions = read_json(folder / f"{name}.json")["functions"]
        for function, lines in _read(folder, name).items():
            if "forward-normal" not in lines:
                continue
            settings = functions[function]
            differs = jobs.differences(settings) if "full" in settings else ""
            numbers = {
                "final": _final_gap(lines["forward-normal"], settings, CONFIDENCE),
                "time": _time_ratio(lines, "forward-normal", CONFIDENCE),
            }
            found += [
                compare(f"{function}.{key}", ours, of=SEEDS, differs=differs)
                for key, ours in numbers.items()
            ]
    return [f for f in found if f is not None]


command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.paper.trajectories")
