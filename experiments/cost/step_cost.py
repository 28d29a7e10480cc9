"""R: time, memory and compilation of a training step, beside the loss alone.

For each model of the paper and two minibatches: the loss, backprop with and without checkpointing,
forward gradients with dense and with low-rank tangents, activity perturbation, and backprop once
more under another name, whose ratio to backprop must be 1. Derivative and update by SGD are timed,
on minibatches in memory. On a CPU each program is tried in several forms, and timed in its fastest.
Part of `reproduce`; alone:

    python -m experiments.cost.step_cost preset=quick

Leaves `step_cost_timings.csv` (a row a turn), `step_cost.csv` (a row for each panel, program and
quantity, computed from it), `step_cost_forms.csv` (the seconds of each form), `step_cost.json` and
the figure `step_cost`. Other experiments take R from these tables.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from omegaconf import DictConfig

from experiments.common import commands, costs, jobs, style, tables, timings
from experiments.common.paper_facts import FACTS, Finding, compare
from fwdgrad.measurement import Interval, Sample, exact
from fwdgrad.records import read_json, write_table

NAME = costs.STEP_COST
_AGAIN = "backprop-again"
_FACTS = ("compile_seconds", "temp_bytes", "total_bytes", "operations")
_FORM_COLUMNS = ("panel", "estimator", "steps_per_call", "form", "seconds", "chosen")
# Of the report's table.
_SHOWN = (
    "program", "ms a step", "R", "over backprop", "compilation (s)", "repaid after (steps)",
    "temporaries (MiB)", "total (MiB)",
)  # fmt: skip
Quantities = dict[str, dict[str, Interval]]  # line -> quantity -> interval


def run(cfg: DictConfig, folder: Path) -> None:
    """Choose forms, time every panel, or read the times back, and write the tables."""
    experiment = cfg.experiments[NAME]
    runs = folder / "runs" / NAME
    records: dict[timings.Key, dict[str, Any]] = {}
    sources, form_rows = [], []
    bar = jobs.progress(list(experiment.shown), cfg, NAME)
    for panel in bar:
        bar.set_postfix_str(panel)
        configs, rows, tried = _fastest(cfg, panel, runs)
        records[panel,] = costs.step_costs(
            configs,
            runs,
            processes=experiment.processes,
            rounds=experiment.panels[panel].rounds,
            max_seconds=experiment.max_seconds,
        )
        form_rows += rows
        sources += [*tried, records[panel,]]
    panels = {
        panel: {
            "title": experiment.panels[panel].title,
            "step": costs.step_of(_config(cfg, panel, "backprop")),
            "paper": list(experiment.panels[panel].paper),
            "changed": jobs.differences(experiment.panels[panel]),
            "facts": records[panel,]["result"]["facts"],
        }
        for panel in experiment.shown
    }
    timings.write_timings(folder / f"{NAME}_timings.csv", records, ["panel"])
    write_table(folder / f"{NAME}_forms.csv", _FORM_COLUMNS, form_rows)
    write_table(
        folder / f"{NAME}.csv",
        ["panel", "estimator", "quantity", *tables.INTERVAL],
        [
            (panel, line, quantity, *interval)
            for panel in panels
            for line, found in quantities(
                costs.samples_of(records[panel,]), panels[panel]["facts"]
            ).items()
            for quantity, interval in found.items()
        ],
    )
    jobs.write_information(
        folder,
        NAME,
        [NAME, f"{NAME}_timings", f"{NAME}_forms"],
        {
            "panels": panels,
            "processes": timings.processes_of(records),
            **jobs.provenance_of(sources),
        },
    )


def _config(cfg: DictConfig, panel: str, line: str, form: Any = None) -> DictConfig:
    experiment = cfg.experiments[NAME]
    overrides = [*experiment.panels[panel].overrides, *experiment.lines[line]]
    if form is None:
        return jobs.compose_train(cfg, overrides)
    overrides += form.get("overrides", [])
    return jobs.compose_train(
        cfg, overrides, steps_per_call=form.steps_per_call, compiler_options=form.compiler_options
    )


def _fastest(
    cfg: DictConfig, panel: str, runs: Path
) -> tuple[dict[str, DictConfig], list[tuple[Any, ...]], list[dict[str, Any]]]:
    """Return each line's config in its fastest form, the times of all forms, and their records.

    Each form is timed in a process of its own. With one form nothing is timed.
    """
    experiment = cfg.experiments[NAME]
    of_panel = experiment.panels[panel]
    forms = of_panel.forms.get(jax.default_backend(), of_panel.forms.other)
    lines = [line for line in experiment.lines if line not in of_panel.without]
    configs = [{line: _config(cfg, panel, line, form) for line in lines} for form in forms]
    records, seconds = [], [dict.fromkeys(lines, math.nan)]
    if len(forms) > 1:
        records = [
            costs.step_costs(
                {line: config for line, config in of_form.items() if line != _AGAIN},
                runs,
                processes=1,
                rounds=experiment.selection_rounds,
                max_seconds=experiment.max_seconds,
            )
            for of_form in configs
        ]
        of_forms = [costs.seconds(costs.samples_of(record)) for record in records]
        seconds = [{line: x.value for line, x in found.items()} for found in of_forms]
    chosen, rows = {}, []
    for line in lines:
        of_line = [found["backprop" if line == _AGAIN else line] for found in seconds]
        fastest = int(np.argmin(of_line))
        chosen[line] = configs[fastest][line]
        for i, form in enumerate(forms):
            options = [f"{k}={v!r}" for k, v in (form.compiler_options or {}).items()]
            text = " ".join([*form.get("overrides", []), *options])
            rows.append((panel, line, form.steps_per_call, text, of_line[i], int(i == fastest)))
    return chosen, rows, records


def quantities(samples: Sequence[Sample], facts: Mapping[str, Mapping[str, float]]) -> Quantities:
    """Return line -> quantity -> interval.

    The quantities are those of `costs.costs_of`, the facts of a compiled step, and `repaid_after`:
    the steps after which a program that is faster than backprop has saved the time by which it took
    longer to compile; inf if it is not faster.
    """
    found = costs.costs_of(samples)
    seconds_of_backprop = found["backprop"]["seconds"].value
    for line, of_line in found.items():
        of_line |= {fact: exact(facts[line][fact]) for fact in _FACTS}
        if line not in (costs.LOSS, "backprop", _AGAIN):
            saved = seconds_of_backprop - of_line["seconds"].value
            more = facts[line]["compile_seconds"] - facts["backprop"]["compile_seconds"]
            steps = math.ceil(max(0, more) / saved) if saved > 0 else math.inf
            of_line["repaid_after"] = exact(steps)
    return found


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Quantities]]:
    """Return the panels' information, and their quantities computed from the raw times."""
    about = read_json(folder / f"{NAME}.json")["panels"]
    samples = timings.read_timings(folder / f"{NAME}_timings.csv", {"panel": str})
    return about, {panel: quantities(samples[panel,], about[panel]["facts"]) for panel in about}


def draw(folder: Path) -> None:
    """Draw R and the total memory of each program, a row of panels for each model."""
    about, found = _read(folder)
    columns = {"relative_cost": 1, "total_bytes": 2**20}  # and their units
    figure, axes = plt.subplots(
        len(found), 2, figsize=(7.2, 0.4 + 1.6 * len(found)), squeeze=False, sharey="row"
    )
    for row, (panel, of_panel) in zip(axes, found.items(), strict=True):
        row[0].set_title(about[panel]["title"], loc="left", fontweight="bold")
        lines = [line for line in of_panel if line != costs.LOSS][::-1]
        for axis, (quantity, unit) in zip(row, columns.items(), strict=True):
            _dots(axis, [of_panel[line][quantity] for line in lines], unit, lines)
        row[0].set_yticks(range(len(lines)), [style.label(line) for line in lines])
        row[0].axvline(1, color=style.colour(costs.LOSS), lw=0.8)
        for name in about[panel]["paper"]:
            for line, key in (("backprop", "R_b"), ("forward-normal", "R_f")):
                if (fact := FACTS.get(f"{name}.{key}")) and line in lines:
                    row[0].plot(fact.low, lines.index(line), "|", color="#777777", ms=9, mew=2)
    for axis in axes[:, 0]:
        axis.set_xlim(0)
    for axis in axes[:, 1]:
        style.log_scale(axis, "x")
    axes[-1, 0].set_xlabel("R: time over the loss alone")
    axes[-1, 1].set_xlabel("parameters, gradients, temporaries (MiB)")
    n = max(interval["seconds"].n for of_panel in found.values() for interval in of_panel.values())
    measured = f"measured (mean and 95 % interval over {n} processes)" if n > 2 else "measured"
    handles = [
        Line2D([], [], color="#000000", ls="", marker="o", ms=4, label=measured),
        Line2D([], [], color="#777777", ls="", marker="|", ms=9, mew=2, label="the paper (GPU)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    style.save(figure, folder, NAME)


def _dots(axis: Axes, intervals: list[Interval], unit: float, lines: list[str]) -> None:
    """Draw a dot at each height, with the interval if it has one, and its number."""
    for height, (interval, line) in enumerate(zip(intervals, lines, strict=True)):
        value, low, high = (float(style.finite(x)) / unit for x in interval[:3])
        error = np.maximum(np.nan_to_num([[value - low], [high - value]]), 0)
        axis.errorbar(value, height, xerr=error, fmt="o", color=style.colour(line), ms=4, lw=1)
        axis.annotate(
            f"{value:.3g}", (value, height), (0, 4), textcoords="offset points", ha="center"
        )
    axis.set_ylim(-0.6, len(lines) - 0.2)
    axis.grid(axis="y", visible=False)


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the figure, and a table for each panel."""
    about, found = _read(folder)
    information = read_json(folder / f"{NAME}.json")
    processes = {tuple(x["of"]): 0 for x in information["processes"]}
    for x in information["processes"]:
        processes[tuple(x["of"])] += 1
    text = [
        "## The cost of a training step: R",
        "",
        f"![R and memory of a step]({NAME}.png)",
        "",
        f"Each program is timed in n = {max(processes.values())} fresh processes, all programs of "
        "a panel in turns within each. A process gives the median over its turns; shown are "
        "geometric means over processes, with 95 % intervals (Student's t of the logarithms) from "
        "three processes on. R is the ratio to the loss alone in the same turn. Compilation is "
        "repaid when a faster step has saved the seconds by which it compiles longer than "
        "backprop; – where it is not faster. Temporaries are by XLA's account of the compiled "
        "call; the total has parameters, gradients and state in it too. *A second time* is "
        "backprop compiled once more under another name: the null test.",
    ]
    for panel, of_panel in found.items():
        rows = [
            (style.label(line), _three(q["seconds"], 1e3), _three(q["relative_cost"]),
             _three(q["over_reference"]), f"{q['compile_seconds'].value:.3g}",
             _steps(q.get("repaid_after")), *(f"{q[b].value / 2**20:.3g}" for b in _FACTS[1:3]))
            for line, q in of_panel.items()
        ]  # fmt: skip
        text += ["", f"{about[panel]['title']}:", "", *tables.markdown(_SHOWN, rows)]
    return "\n".join(text)


def _three(interval: Interval, factor: float = 1) -> str:
    """Return an interval times a factor, with three significant digits."""
    value, low, high = (factor * x for x in interval[:3])
    if math.isnan(low) or low == high:
        return f"{value:.3g}"
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _steps(after: Interval | None) -> str:
    return f"{after.value:,.0f}" if after is not None and math.isfinite(after.value) else "–"


def findings(folder: Path) -> list[Finding]:
    """Compare R with the paper's numbers."""
    about, found = _read(folder)
    compared = []
    for panel, of_panel in found.items():
        R, over = (
            {line: q[quantity] for line, q in of_panel.items()}
            for quantity in ("relative_cost", "over_reference")
        )
        numbers: dict[str, tuple[Any, ...]] = {
            "R_f": (R["forward-normal"], R["forward-low_rank"]),
            "R_b": (R["backprop"],),
            "R_ratio": (over["forward-normal"], over["forward-low_rank"]),
        }
        differs = about[panel]["changed"]
        for name in about[panel]["paper"]:
            compared += [compare(f"{name}.{k}", *x, differs=differs) for k, x in numbers.items()]
        if "mlp_2e-4" in about[panel]["paper"]:
            compared.append(compare("replications.slower", *numbers["R_ratio"], differs=differs))
    return [finding for finding in compared if finding is not None]


command = jobs.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.cost.step_cost")
