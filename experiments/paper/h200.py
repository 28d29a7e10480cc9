"""The report of records made on an NVIDIA H200: python -m experiments.paper.h200

`results/h200/` holds learning curves and costs of steps that were recorded before the preset `gpu`;
a run of that preset goes before them in all reports. This command draws and reports what the tables
hold; it measures nothing.
"""

from pathlib import Path

from experiments.common import claims, jobs, report, style, tables
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
        describe(folder),
    ]
    title, command = "Records made on an NVIDIA H200", "python -m experiments.paper.h200"
    return report.write_page(folder, title, command, parts, information)


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
