"""Figure 6 of the paper: time and memory of a step against depth, and minibatch size.

A network of `depth` linear layers of one width, without biases. Part of `reproduce`; alone:

    python -m experiments.paper.depth_scaling preset=quick

Time is measured in turns in several fresh processes. Memory is measured twice: by XLA's account of
the compiled step, and as the peak resident memory of a process that runs it. Leaves
`depth_scaling_timings.csv` (a row for each point, program, process and turn), `depth_scaling.csv`
(a row for each point and estimator, its times computed from the former), `depth_scaling.json` and
the figure `depth_scaling`. Each point is measured once.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from experiments.common import alone, budget, commands, jobs, style, tables, timings
from experiments.common.costs import costs_of, repaid_after, samples_of
from experiments.common.paper_facts import Finding, compare
from experiments.common.verdicts import PROCESSES
from experiments.paper import deep_network
from experiments.paper.deep_network import ESTIMATORS
from experiments.paper.depth_scaling_figure import draw_scaling
from fwdgrad.measurement import Interval, exact, significant
from fwdgrad.records import read_json, write_table

NAME = "depth_scaling"
_OF_PAPER = (1, 10, 100)  # depths of which the paper has numbers
_QUANTITIES = ("seconds", "relative_cost", "over_reference")
_BYTES = ("parameter_bytes", "temp_bytes", "total_bytes", "peak_bytes")
_TIMES = [f"{quantity}{end}" for quantity in _QUANTITIES for end in ("", "_low", "_high")]
_COLUMNS: tables.Columns = {
    "axis": str, "depth": int, "batch_size": int, "width": int, "estimator": str,
    **dict.fromkeys(_TIMES, float), "n": int, "compile_seconds": float,
    **dict.fromkeys(_BYTES[:3], float), "peak_bytes": tables.gaps,  # not known on every system
}  # fmt: skip
_POINT: tables.Columns = {"depth": int, "batch_size": int}
# Of the report's table.
_SHOWN = (
    "layers", "minibatch", "estimator", "R", "over backprop", "compilation (s)",
    "repaid after (steps)", "temporaries (MiB)", "total (MiB)",
)  # fmt: skip


def run(cfg: DictConfig, folder: Path) -> None:
    """Measure every point, or read it back, and write the tables after each.

    The depths of the paper's numbers come first; of all points the largest, whose time bounds that
    of the others.
    """
    experiment: Any = OmegaConf.to_container(cfg.experiments[NAME], resolve=True)
    points = [("depth", depth, experiment["batch_size"]) for depth in experiment["depths"]]
    points += [("batch_size", experiment["depth"], size) for size in experiment["batch_sizes"]]
    names = ("width", "processes", "rounds", "max_seconds", "products_per_call")
    shared = {name: experiment[name] for name in names}
    if not experiment["resident"]:
        shared["resident"] = False
    weights = {point: point[1] + experiment["fixed_cost"] for point in points}
    records: dict[tuple[int, int], dict[str, Any]] = {}  # the point on both axes is one record
    bar = jobs.progress(sorted(points, key=lambda p: (_level(p), -p[1] * p[2])), cfg, NAME)
    for point in bar:
        axis, depth, batch_size = point
        bar.set_postfix_str(f"depth {depth}, minibatch {batch_size}")
        config = {"depth": depth, "batch_size": batch_size, **shared}
        part, item = ("depth", depth) if axis == "depth" else ("minibatch", batch_size)
        share = weights[point] / sum(weights.values())
        with budget.present().job(part, item, level=_level(point), share=share):
            records[depth, batch_size] = budget.measured_once(
                folder / "runs" / NAME, NAME, config, partial(deep_network.measure, config)
            )
            _write_tables(points, shared["width"], records, folder)
    if not records:
        raise budget.LeftOut(NAME)
    _write_tables(points, shared["width"], records, folder)


def _level(point: tuple[str, int, int]) -> int:
    """Return the importance of a point (axis, depth, minibatch) for `budget.Budget.job`."""
    axis, depth, _ = point
    return 0 if axis == "depth" and depth in _OF_PAPER else 1


def _write_tables(
    points: Iterable[tuple[str, int, int]],
    width: int,
    records: Mapping[tuple[int, int], dict[str, Any]],
    folder: Path,
) -> None:
    """Write the tables of the points of which there is a record."""
    times = {point: costs_of(samples_of(record)) for point, record in records.items()}
    rows = []
    for axis, depth, batch_size in points:
        point = depth, batch_size
        if point not in records:
            continue
        result, of_point = records[point]["result"], times[point]
        for name, memory in result["memory"].items():
            compiling = result["facts"][name]["compile_seconds"]
            costs = (*_numbers(of_point[name]), compiling, *(memory[b] for b in _BYTES))
            rows.append((axis, *point, width, name, *costs))
    timings.write_timings(folder / f"{NAME}_timings.csv", records, list(_POINT))
    write_table(folder / f"{NAME}.csv", _COLUMNS, rows)
    information = {
        "processes": timings.processes_of(records),
        **jobs.provenance_of(records.values()),
    }
    jobs.write_information(folder, NAME, [NAME, f"{NAME}_timings"], information)


def _numbers(times: Mapping[str, Interval]) -> list[float]:
    """Return the values of the columns `_TIMES` and n."""
    ends = [getattr(times[q], end) for q in _QUANTITIES for end in ("value", "low", "high")]
    return [*ends, times["seconds"].n]


def _read(folder: Path) -> pd.DataFrame:
    """Return a row for each point and estimator, with times computed from the raw ones."""
    table = tables.read(folder / f"{NAME}.csv", _COLUMNS)
    raw = timings.read_timings(folder / f"{NAME}_timings.csv", _POINT)
    times = {key: costs_of(samples) for key, samples in raw.items()}
    rows = zip(table["depth"], table["batch_size"], table["estimator"], strict=True)
    table[[*_TIMES, "n"]] = [_numbers(times[depth, size][name]) for depth, size, name in rows]
    return table.astype({"n": int})


def draw(folder: Path) -> None:
    """Draw the figure from the tables in `folder`."""
    draw_scaling(_read(folder), folder, NAME)


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the figure, and a table of the ends."""
    points = _read(folder)
    backprop = points[points["estimator"] == "backprop"].set_index(["depth", "batch_size"])
    backprop = backprop[~backprop.index.duplicated()]  # a point may be on both axes
    of_depth, sizes = points["axis"] == "depth", points["batch_size"]
    depths = points["depth"][of_depth]
    at_ends = of_depth & points["depth"].isin([depths.min(), depths.max()])
    shown = points[at_ends | (~of_depth & (sizes == sizes[~of_depth].max()))]
    rows = [
        (row["depth"], f"{row['batch_size']:,}", style.label(row["estimator"]),
         _interval(row, "relative_cost"), _interval(row, "over_reference"),
         _known(row["compile_seconds"]),
         _repaid(row, backprop.loc[(row["depth"], row["batch_size"])]),
         significant(row["temp_bytes"] / 2**20), significant(row["total_bytes"] / 2**20))
        for _, row in shown.iterrows()
    ]  # fmt: skip
    lines = [
        "## Scaling with depth and minibatch (the paper's figure 6)",
        "",
        f"![Scaling with depth and minibatch]({NAME}.png)",
        "",
        "A step of derivative and update by SGD, on one minibatch. R is the ratio to the loss "
        f"alone in the same turn, with its 95 % interval over n = {points['n'].max()} processes. "
        "Compilation is repaid when a faster step has saved the seconds by which it compiles "
        "longer than backprop. Memory is XLA's account, which does not vary; the total has the "
        "parameters in it. Checkpointed backprop keeps the ends of √depth segments."
        f"{timings.note_on_sharing(read_json(folder / f'{NAME}.json'))}",
        "",
        *tables.markdown(_SHOWN, rows),
    ]
    return "\n".join(lines)


def _interval(row: pd.Series, quantity: str) -> Interval:
    value, low, high = (float(row[f"{quantity}{end}"]) for end in ("", "_low", "_high"))
    return Interval(value, low, high, int(row["n"]))


def _known(number: float) -> str:
    return significant(number) if math.isfinite(number) else "–"


def _repaid(row: pd.Series, backprop: pd.Series) -> str:
    names = ("seconds", "compile_seconds")
    return _known(repaid_after(*(float(x[name]) for x in (row, backprop) for name in names)))


def findings(folder: Path) -> list[Finding]:
    """Compare the table with the paper's numbers."""
    table = _read(folder)
    of_paper = {"width": 1024, "batch_size": 64}
    found: list[Finding | None] = []
    for depth, rows in table[table["axis"] == "depth"].groupby("depth"):
        by_name = rows.set_index("estimator")
        backprop, checkpointed, dense, low_rank = (by_name.loc[name] for name in ESTIMATORS)
        changed = [f"{k} {backprop[k]}, not {v}" for k, v in of_paper.items() if backprop[k] != v]
        forward = (dense, low_rank)
        numbers: dict[str, list[Interval]] = {
            "R_f": [_interval(row, "relative_cost") for row in forward],
            "R_b": [_interval(backprop, "relative_cost")],
            "R_ratio": [_interval(row, "over_reference") for row in forward],
            "bytes": [exact(row["total_bytes"]) for row in forward],
            "memory": [exact(row["total_bytes"] / backprop["total_bytes"]) for row in forward],
            "checkpointed": [
                exact(checkpointed["temp_bytes"] / row["temp_bytes"]) for row in forward
            ],
        }
        found += [
            compare(f"depth.{quantity}.{depth}", *ours, of=PROCESSES, differs="; ".join(changed))
            for quantity, ours in numbers.items()
            if quantity != "checkpointed"
        ]
        over_low_rank = significant(numbers["checkpointed"][1].value)
        found.append(
            compare(
                f"depth.checkpointed.{depth}", *numbers["checkpointed"], of=PROCESSES,
                differs="; ".join(changed), note=f"over low-rank tangents {over_low_rank}",
            )
        )  # fmt: skip
    return [f for f in found if f is not None]


command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.paper.depth_scaling")
