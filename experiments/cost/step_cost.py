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
from typing import Any, NamedTuple

import jax
import numpy as np
from omegaconf import DictConfig

from experiments.common import alone, budget, commands, costs, jobs, style, tables, timings
from experiments.common.paper_facts import Finding, compare_costs
from experiments.common.verdicts import PROCESSES
from experiments.cost.step_cost_figure import draw_step_cost
from fwdgrad.measurement import Interval, Sample, exact, significant
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
    """Choose forms, time every panel, or read the times back, and write the tables.

    Panels of the paper's minibatch come first if time is short.
    """
    experiment, limit = cfg.experiments[NAME], budget.present()
    found: dict[str, _Found] = {}
    bar = jobs.progress(list(experiment.shown), cfg, NAME)
    for panel in bar:
        bar.set_postfix_str(panel)
        level = int(experiment.panels[panel].paper is None)
        title = experiment.panels[panel].title
        with limit.job(title, level=level, share=1 / len(experiment.shown)):
            found[panel] = _measure(cfg, panel, folder / "runs" / NAME)
            _write_tables(cfg, found, folder)
    if not found:
        raise budget.LeftOut(NAME)
    _write_tables(cfg, found, folder)


class _Found(NamedTuple):
    """Measurements of a panel: the record of the times, the times of forms, all records."""

    record: dict[str, Any]
    forms: list[tuple[Any, ...]]
    sources: list[dict[str, Any]]


def _measure(cfg: DictConfig, panel: str, runs: Path) -> _Found:
    experiment = cfg.experiments[NAME]
    configs, forms, tried = _fastest(cfg, panel, runs)
    record = costs.step_costs(
        configs,
        runs,
        processes=experiment.processes,
        rounds=experiment.panels[panel].rounds,
        max_seconds=experiment.max_seconds,
    )
    return _Found(record, forms, [*tried, record])


def _write_tables(cfg: DictConfig, found: Mapping[str, _Found], folder: Path) -> None:
    panels = {
        panel: {
            "title": of_panel.title,
            "step": costs.step_of(_config(cfg, panel, "backprop")),
            "paper": of_panel.paper,
            "changed": jobs.differences(of_panel),
            "facts": found[panel].record["result"]["facts"],
        }
        for panel, of_panel in cfg.experiments[NAME].panels.items()
        if panel in found
    }
    records: dict[timings.Key, dict[str, Any]] = {(panel,): found[panel].record for panel in panels}
    timings.write_timings(folder / f"{NAME}_timings.csv", records, ["panel"])
    write_table(
        folder / f"{NAME}_forms.csv", _FORM_COLUMNS, [x for p in panels for x in found[p].forms]
    )
    write_table(
        folder / f"{NAME}.csv",
        ["panel", "estimator", "quantity", *tables.INTERVAL],
        [
            (panel, line, quantity, *interval)
            for panel, about in panels.items()
            for line, of_line in quantities(
                costs.samples_of(records[panel,]), about["facts"]
            ).items()
            for quantity, interval in of_line.items()
        ],
    )
    information = {
        "panels": panels,
        "processes": timings.processes_of(records),
        **jobs.provenance_of([source for panel in panels for source in found[panel].sources]),
    }
    names = [f"{NAME}{end}" for end in ("", "_timings", "_forms")]
    jobs.write_information(folder, NAME, names, information)


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

    The quantities are those of `costs.costs_of`, the facts of a compiled step, and `repaid_after`
    (`costs.repaid_after`).
    """
    found = costs.costs_of(samples)
    of_backprop = found["backprop"]["seconds"].value, facts["backprop"]["compile_seconds"]
    for line, of_line in found.items():
        of_line |= {fact: exact(facts[line][fact]) for fact in _FACTS}
        if line not in (costs.LOSS, "backprop", _AGAIN):
            own = of_line["seconds"].value, facts[line]["compile_seconds"]
            of_line["repaid_after"] = exact(costs.repaid_after(*own, *of_backprop))
    return found


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Quantities]]:
    """Return the panels' information, and their quantities computed from the raw times."""
    about = read_json(folder / f"{NAME}.json")["panels"]
    samples = timings.read_timings(folder / f"{NAME}_timings.csv", {"panel": str})
    return about, {panel: quantities(samples[panel,], about[panel]["facts"]) for panel in about}


def draw(folder: Path) -> None:
    """Draw R, memory and compilation of each program, a row of panels for each model."""
    draw_step_cost(*_read(folder), folder, NAME)


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
        f"backprop compiled once more under another name, the null test{_null_test(found)}."
        f"{timings.note_on_sharing(information)}",
    ]
    for panel, of_panel in found.items():
        rows = [
            (style.label(line), _milliseconds(q["seconds"]), q["relative_cost"],
             q["over_reference"], significant(q["compile_seconds"].value),
             _steps(q.get("repaid_after")), *(significant(q[b].value / 2**20) for b in _FACTS[1:3]))
            for line, q in of_panel.items()
        ]  # fmt: skip
        text += ["", f"{about[panel]['title']}:", "", *tables.markdown(_SHOWN, rows)]
    return "\n".join(text)


def _null_test(found: Mapping[str, Quantities]) -> str:
    """Return in how many panels the interval of the null test holds 1; "" if none has one."""
    ratios = [x[_AGAIN]["over_reference"] for x in found.values() if _AGAIN in x]
    known = [ratio for ratio in ratios if not math.isnan(ratio.low)]
    held = sum(ratio.low <= 1 <= ratio.high for ratio in known)
    return f": its ratio's interval holds 1 in {held} of {len(known)} panels" if known else ""


def _milliseconds(interval: Interval) -> Interval:
    value, low, high, n = interval
    return Interval(1e3 * value, 1e3 * low, 1e3 * high, n)


def _steps(after: Interval | None) -> str:
    return significant(after.value) if after and math.isfinite(after.value) else "–"


def findings(folder: Path) -> list[Finding]:
    """Compare R with the paper's numbers."""
    about, found = _read(folder)
    return [
        finding
        for panel, of_panel in found.items()
        if about[panel]["paper"]
        for finding in compare_costs(
            about[panel]["paper"], of_panel, of=PROCESSES, differs=about[panel]["changed"]
        )
    ]


command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.cost.step_cost")
