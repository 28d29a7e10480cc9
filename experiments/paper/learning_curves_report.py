"""The learning curves in the report: a table, and the findings on the paper's numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import style, tables
from experiments.common.costs import STEP_COST
from experiments.common.curves import (
    Curve,
    final_value,
    mean_ratio,
    mean_time,
    paired,
    read_curves,
)
from experiments.common.paper_facts import FACTS, Finding, compare, compare_costs
from experiments.common.verdicts import CONFIDENCE, SEEDS, TURNS
from experiments.paper.learning_curves_figure import in_two_figures
from fwdgrad.measurement import Interval, mean_interval, significant
from fwdgrad.records import read_json

NAME = "learning_curves"
RUN_COLUMNS: tables.Columns = {
    "panel": str, "estimator": str, "seed": int, "num_steps": int, "seconds": float,
    **dict.fromkeys(("milliseconds_per_step", "compile_seconds", "train_loss"), float),
    **dict.fromkeys(("valid_loss", "valid_accuracy", "test_accuracy"), float),
}  # fmt: skip
_DENSE, _LOW_RANK = "forward-normal", "forward-low_rank"
# Panel -> the model of its step, whose R are facts, in an old record.
_MODELS = {"logistic": "logistic", "mlp_2e-4": "mlp", "cnn": "cnn"}
# Of the report's table.
_SHOWN = (
    "model", "estimator", "seeds", "ms an iteration", "T/T_b, clock", "T/T_b, iterations",
    "final loss (the paper's)", "final error rate, % (the paper's)",
)  # fmt: skip


def describe(folder: Path) -> str:
    """Return the section of the report in Markdown: the figure, and a table of final numbers."""
    panels, information = read_curves(folder / f"{NAME}.csv"), read_json(folder / f"{NAME}.json")
    runs = tables.read(folder / f"{NAME}_runs.csv", RUN_COLUMNS)
    text = [
        "## Learning curves (the paper's figures 3, 4 and 5)",
        "",
        f"![Learning curves]({NAME}.png)",
        *([f"![The other models]({NAME}_models.png)"] if len(in_two_figures(panels)) > 1 else []),
        "",
        "T is the time, of training alone, after which a seed's validation loss is as low as "
        "backprop's lowest with the same seed; T_b is backprop's own. A line some of whose seeds "
        "never get there has a bound from below: they count with the end of their run. Means over "
        "the seeds with 95 % intervals (Student's t).",
        "",
    ]
    rows = []
    for panel, lines in panels.items():
        for name, line in lines.items():
            chosen = runs[(runs["panel"] == panel) & (runs["estimator"] == name)]
            pair = paired(line, lines["backprop"])
            ratios = [mean_ratio(*pair, by) if len(pair[0]["step"]) else "–" for by in _CLOCKS]
            errors = mean_interval(100 * (1 - line["valid_accuracy"][:, -1]))
            side = "b" if name == "backprop" else "f" if name == _DENSE else ""
            rows.append([
                information["titles"][panel], style.label(name), len(chosen),
                mean_interval(chosen["milliseconds_per_step"]),
                *(ratios if name != "backprop" else ("1", "1")),
                f"{final_value(line, 'valid_loss')}{_of_paper(f'{panel}.loss_{side}')}",
                f"{errors}{_of_paper(f'{panel}.error_{side}', 100)}",
            ])  # fmt: skip
    text += tables.markdown(_SHOWN, rows)
    for panel, steps in information["shortened"].items():
        text += ["", f"{information['titles'][panel]}: only {steps} iterations."]
    for panel, line, seed in information["diverged"]:
        title = information["titles"][panel]
        text += [
            "",
            f"{title}: {style.label(line)} diverged with seed {seed}, which is left out where "
            "this line is compared.",
        ]
    return "\n".join(text)


_CLOCKS = ("seconds", "step")


def _of_paper(key: str, scale: float = 1) -> str:
    return f" ({significant(scale * FACTS[key].low)})" if key in FACTS else ""


def findings(folder: Path) -> list[Finding]:
    """Compare the tables with the paper's numbers."""
    panels, information = read_curves(folder / f"{NAME}.csv"), read_json(folder / f"{NAME}.json")
    costs = _old_costs(folder)
    found: list[Finding | None] = []
    for panel, lines in panels.items():
        changed = information["changed"][panel]
        shortened = information["shortened"].get(panel, "")
        after = f"after {shortened} iterations" if shortened else ""
        differs = "; ".join(filter(None, (changed, after)))
        lost = [
            f"diverged with seed {seed}"
            for of_panel, line, seed in information["diverged"]
            if (of_panel, line) == (panel, _DENSE)
        ]
        found += [
            compare(f"{panel}.{key}", *pair, of=SEEDS, differs=differs, note="; ".join(lost))
            for key, pair in _numbers(lines).items()
        ]
        if panel in _MODELS and panel in costs:
            found += compare_costs(_MODELS[panel], costs[panel], of=TURNS, differs=changed)
    return [f for f in found if f is not None]


def _numbers(lines: dict[str, Curve]) -> dict[str, list[Any]]:
    """Return quantity -> our numbers, by the paper's estimator and by low-rank tangents."""
    backprop = lines["backprop"]
    forward = [lines[name] for name in (_DENSE, _LOW_RANK) if name in lines]
    pairs = [paired(line, backprop) for line in forward]
    numbers: dict[str, list[Any]] = {
        "T_b": [mean_time(backprop, backprop, confidence=CONFIDENCE)],
        "loss_b": [final_value(backprop, "valid_loss", CONFIDENCE)],
        "error_b": [_final_error(backprop)],
    }
    if forward:
        numbers |= {
            "T_f": [mean_time(*pair, confidence=CONFIDENCE) for pair in pairs],
            "T_ratio": [mean_ratio(*pair, "seconds", CONFIDENCE) for pair in pairs],
            "steps_ratio": [mean_ratio(*pair, "step", CONFIDENCE) for pair in pairs],
            "loss_f": [final_value(line, "valid_loss", CONFIDENCE) for line in forward],
            "loss_ratio": [_ratio_of_ends(pair, lambda x: x["valid_loss"]) for pair in pairs],
            "error_f": [_final_error(line) for line in forward],
            "error_ratio": [_ratio_of_ends(pair, _errors) for pair in pairs],
        }
    return numbers


def _errors(curve: Curve) -> np.ndarray:
    return 1 - curve["valid_accuracy"]


def _final_error(curve: Curve) -> Interval:
    return mean_interval(_errors(curve)[:, -1], CONFIDENCE)


def _ratio_of_ends(pair: tuple[Curve, Curve], quantity: Callable[[Curve], np.ndarray]) -> Interval:
    ends, others = (quantity(curve)[:, -1] for curve in pair)
    return mean_interval(ends / others, CONFIDENCE)


def _old_costs(folder: Path) -> dict[str, Any]:
    """Return panel -> line -> quantity -> interval, from a record older than `step_cost`.

    There the steps were timed beside the curves, in turns of one process.
    """
    path = folder / f"{NAME}_costs.csv"
    if not path.exists() or (folder / f"{STEP_COST}.json").exists():
        return {}
    columns: tables.Columns = dict.fromkeys(("panel", "estimator", "quantity"), str)
    return tables.read_intervals(path, columns)
