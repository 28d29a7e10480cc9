"""The report of records made on an NVIDIA H200: python -m experiments.paper.h200

`results/h200/` holds learning curves and costs of steps that were recorded before the preset `gpu`;
a run of that preset goes before them in all reports. This command draws and reports what the tables
hold; it measures nothing.
"""

from pathlib import Path

import numpy as np

from experiments.common import claims, jobs, report, style, tables
from experiments.common.curves import paired, read_curves
from experiments.paper import learning_curves
from fwdgrad.measurement import Interval, significant
from fwdgrad.records import hold, read_json

FOLDER = Path(__file__).parents[2] / "results" / "h200"
NAME = "step_turns"
# Of each program: medians over the turns of one process, with 95 % intervals of order statistics.
COLUMNS: tables.Columns = {
    "program": str, "batch_size": int, "estimator": str, "turns": int,
    **dict.fromkeys(("seconds", "seconds_low", "seconds_high", "relative_cost"), float),
    **dict.fromkeys(("over_backprop", "over_backprop_low", "over_backprop_high"), float),
    "temp_bytes": float, "compile_seconds": float,
}  # fmt: skip
_SHOWN = (
    "program", "minibatch", "estimator", "turns", "ms a step", "R", "over backprop",
    "temporaries (MiB)", "compilation (s)",
)  # fmt: skip


def write(folder: Path) -> Path:
    """Draw the learning curves, write findings and report of `folder`; return the report's path."""
    names = (learning_curves.NAME, NAME)
    for name in names:
        jobs.check_tables(folder, name)
    learning_curves.draw(folder)
    information = {name: read_json(folder / f"{name}.json") for name in names}
    findings = {learning_curves.NAME: learning_curves.findings(folder)}
    claims.write(folder, claims.sourced(findings, information))
    parts = [
        "The verdicts on these numbers are in the column GPU of "
        "[the report of the preset `paper`](../paper/README.md).",
        learning_curves.describe(folder),
        *_agreement(folder, folder.parent / "paper"),
        describe(folder),
    ]
    title, command = "Records made on an NVIDIA H200", "python -m experiments.paper.h200"
    return report.write_page(folder, title, command, parts, information)


def _agreement(folder: Path, other: Path) -> list[str]:
    """Compare the last common losses of runs with the same seed on two machines."""
    if not (other / f"{learning_curves.NAME}.csv").exists():
        return []
    ours, theirs = (read_curves(x / f"{learning_curves.NAME}.csv") for x in (folder, other))
    titles = read_json(folder / f"{learning_curves.NAME}.json")["titles"]
    rows = []
    for panel, lines in ours.items():
        for name, line in lines.items():
            if name not in theirs.get(panel, {}):
                continue
            first, second = paired(line, theirs[panel][name])
            step = max({*first["step"][0]} & {*second["step"][0]})
            losses = [x["valid_loss"][x["step"] == step] for x in (first, second)]
            worst = np.abs(losses[0] / losses[1] - 1).max()
            rows.append([
                titles[panel], style.label(name), len(losses[0]), f"{step:,}", significant(worst)
            ])  # fmt: skip
    return [
        "## The same seeds on a CPU",
        "A seed draws the same minibatches and tangents on both machines; sums are rounded in "
        "another order. The largest relative difference over the seeds, of the validation loss "
        "after the last iteration that both have, to the runs of "
        "[the preset `paper`](../paper/README.md):",
        "\n".join(
            tables.markdown(("model", "estimator", "seeds", "iteration", "difference"), rows)
        ),
    ]


def describe(folder: Path) -> str:
    """Return the section on the costs of steps, in Markdown."""
    rows = [
        (row.program, f"{row.batch_size:,}", style.label(row.estimator), row.turns,
         Interval(1e3 * row.seconds, 1e3 * row.seconds_low, 1e3 * row.seconds_high, row.turns),
         significant(row.relative_cost),
         Interval(row.over_backprop, row.over_backprop_low, row.over_backprop_high, row.turns),
         significant(row.temp_bytes / 2**20), significant(row.compile_seconds))
        for row in tables.read(folder / f"{NAME}.csv", COLUMNS).itertuples()
    ]  # fmt: skip
    lines = [
        "## Steps on the GPU",
        "",
        "Medians over the turns of one process, with 95 % intervals over these turns: they do not "
        "hold what differs from process to process. R is the time over that of the loss alone in "
        "the same turn. The deep network has 100 layers of width 1,024; the GPT 12 layers of width "
        "768, minibatches of 8 × 1,024 tokens, and a loop over its layers (float32) or a scan "
        "(bfloat16), in which low-rank tangents failed on that commit.",
        "",
        *tables.markdown(_SHOWN, rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with hold(FOLDER):
        print(f"report: {write(FOLDER)}")
