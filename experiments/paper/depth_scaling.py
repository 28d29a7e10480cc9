"""Figure 6 of the paper: time and memory of a step against depth, and minibatch size.

A network of `depth` linear layers of one width, without biases. Part of `reproduce`; alone:

    python -m experiments.paper.depth_scaling preset=quick

Time is measured in turns in one process, and relative to the loss alone in the same turn. Memory is
measured twice: by XLA's account of the compiled step, and as the peak resident memory of a process
that runs it. Leaves `depth_scaling.csv` (a row for each point and estimator),
`depth_scaling.json` and the figure `depth_scaling`. Each point is measured once.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from experiments.common import budget, commands, jobs, style, tables
from experiments.common.paper_facts import Finding, compare
from experiments.common.verdicts import TURNS
from experiments.paper import deep_network
from experiments.paper.deep_network import ESTIMATORS
from experiments.paper.depth_scaling_figure import draw_scaling
from fwdgrad.measurement import Interval, exact, significant
from fwdgrad.records import write_table

NAME = "depth_scaling"
_OF_PAPER = (1, 10, 100)  # depths of which the paper has numbers
_QUANTITIES = ("seconds", "relative_cost", "over_reference")
_BYTES = ("parameter_bytes", "temp_bytes", "peak_bytes")
_COLUMNS: tables.Columns = {
    "axis": str, "depth": int, "batch_size": int, "width": int, "estimator": str,
    **{f"{quantity}{end}": float for quantity in _QUANTITIES for end in ("", "_low", "_high")},
    "rounds": int, "parameter_bytes": float, "temp_bytes": float,
    "peak_bytes": tables.gaps,  # not known on every system
}  # fmt: skip
# Of the report's table.
_SHOWN = (
    "layers", "minibatch", "estimator", "R", "over backprop", "temporaries (MiB)", "total (MiB)",
)  # fmt: skip


def run(cfg: DictConfig, folder: Path) -> None:
    """Measure every point, or read it back, and write the tables after each.

    The depths of the paper's numbers come first; of all points the largest, whose time bounds that
    of the others.
    """
    experiment: Any = OmegaConf.to_container(cfg.experiments[NAME], resolve=True)
    points = [("depth", depth, experiment["batch_size"]) for depth in experiment["depths"]]
    points += [("batch_size", experiment["depth"], size) for size in experiment["batch_sizes"]]
    shared = {k: experiment[k] for k in ("width", "rounds", "max_seconds", "products_per_call")}
    if not experiment["resident"]:
        shared["resident"] = False
    records: dict[tuple[int, int], dict[str, Any]] = {}  # the point on both axes is one record
    bar = jobs.progress(sorted(points, key=lambda p: (_level(p), -p[1] * p[2])), cfg, NAME)
    for point in bar:
        axis, depth, batch_size = point
        bar.set_postfix_str(f"depth {depth}, minibatch {batch_size}")
        config = {"depth": depth, "batch_size": batch_size, **shared}
        part, item = ("depth", depth) if axis == "depth" else ("minibatch", batch_size)
        with budget.present().job(part, item, level=_level(point), share=1 / len(points)):
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
    rows = []
    for axis, depth, batch_size in points:
        if (depth, batch_size) not in records:
            continue
        for name, values in records[depth, batch_size]["result"].items():
            ends = [values[q][end] for q in _QUANTITIES for end in ("value", "low", "high")]
            rounds, memory = values["seconds"]["n"], [values[b] for b in _BYTES]
            rows.append((axis, depth, batch_size, width, name, *ends, rounds, *memory))
    write_table(folder / f"{NAME}.csv", _COLUMNS, rows)
    jobs.write_information(folder, NAME, [NAME], jobs.provenance_of(records.values()))


def draw(folder: Path) -> None:
    """Draw the figure from the table in `folder`."""
    draw_scaling(tables.read(folder / f"{NAME}.csv", _COLUMNS), folder, NAME)


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the figure, and a table of the ends."""
    points = tables.read(folder / f"{NAME}.csv", _COLUMNS)
    of_depth, sizes = points["axis"] == "depth", points["batch_size"]
    depths = points["depth"][of_depth]
    at_ends = of_depth & points["depth"].isin([depths.min(), depths.max()])
    shown = points[at_ends | (~of_depth & (sizes == sizes[~of_depth].max()))]
    rows = [
        (row["depth"], f"{row['batch_size']:,}", style.label(row["estimator"]),
         _interval(row, "relative_cost"), _interval(row, "over_reference"),
         significant(row["temp_bytes"] / 2**20), significant(_used(row) / 2**20))
        for _, row in shown.iterrows()
    ]  # fmt: skip
    lines = [
        "## Scaling with depth and minibatch (the paper's figure 6)",
        "",
        f"![Scaling with depth and minibatch]({NAME}.png)",
        "",
        "A step of derivative and update by SGD, on one minibatch. R is the median of the ratios "
        f"to the loss alone in the same turn, over {points['rounds'].max()} turns of one process, "
        "with its 95 % interval. Memory is XLA's account, which does not vary; the total has the "
        "parameters in it. Checkpointed backprop keeps the ends of √depth segments.",
        "",
        *tables.markdown(_SHOWN, rows),
    ]
    return "\n".join(lines)


def _interval(row: pd.Series, quantity: str) -> Interval:
    value, low, high = (float(row[f"{quantity}{end}"]) for end in ("", "_low", "_high"))
    return Interval(value, low, high, int(row["rounds"]))


def findings(folder: Path) -> list[Finding]:
    """Compare the table with the paper's numbers."""
    table = tables.read(folder / f"{NAME}.csv", _COLUMNS)
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
            "bytes": [exact(_used(row)) for row in forward],
            "memory": [exact(_used(row) / _used(backprop)) for row in forward],
            "checkpointed": [
                exact(checkpointed["temp_bytes"] / row["temp_bytes"]) for row in forward
            ],
        }
        found += [
            compare(f"depth.{quantity}.{depth}", *ours, of=TURNS, differs="; ".join(changed))
            for quantity, ours in numbers.items()
            if quantity != "checkpointed"
        ]
        over_low_rank = significant(numbers["checkpointed"][1].value)
        found.append(
            compare(
                f"depth.checkpointed.{depth}", *numbers["checkpointed"], of=TURNS,
                differs="; ".join(changed), note=f"over low-rank tangents {over_low_rank}",
            )
        )  # fmt: skip
    return [f for f in found if f is not None]


def _used(row: pd.Series) -> float:
    return row["parameter_bytes"] + row["temp_bytes"]


command = jobs.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.paper.depth_scaling")
