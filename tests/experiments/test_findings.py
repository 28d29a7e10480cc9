"""Each experiment's findings on the paper's numbers, from tables made by hand."""

import numpy as np
import pytest

from experiments.common import tuning
from experiments.common.comparisons import Comparison
from experiments.paper import depth_scaling, fair_comparison, learning_curves, trajectories
from fwdgrad.records import Metrics, write_json, write_table

from .timed import write_step_cost

STEP = {"model": {}, "dataset": {}, "batch_size": 64}


def test_learning_curves_find_a_known_ratio_of_times(tmp_path):
    """Two seeds of three lines, of which one is twice as fast and one never gets there."""
    columns = ("panel", "estimator", "seed", *Metrics._fields)
    speeds = {"backprop": (2.0, 1), "forward-normal": (1.0, 1), "forward-low_rank": (1.0, 0.5)}
    write_table(
        tmp_path / "learning_curves.csv",
        columns,
        [("p", name, seed, step, factor * step, 0.1, *[1 - far * step / 10] * 2, far * step / 10)
         for name, (factor, far) in speeds.items() for seed in (0, 1) for step in (0, 4, 8)],
    )  # fmt: skip
    write_table(
        tmp_path / "learning_curves_runs.csv",
        learning_curves._RUN_COLUMNS,
        [("p", name, seed, 8, 16, 2 + seed, 1, 0.2, 0.2, 0.8, 0.8 + seed / 100)
         for name in speeds for seed in (0, 1)],
    )  # fmt: skip
    costs = {"backprop": 2.5, "forward-normal": 2, "forward-low_rank": 5}
    write_step_cost(tmp_path, {"another name": (STEP, costs)})
    write_json(
        tmp_path / "learning_curves.json",
        {
            "titles": {"p": "Title"}, "shortened": {"p": "8 of 20"}, "changed": {"p": ""},
            "diverged": [["p", "backprop", 7]], "provenance": [], "steps": {"p": STEP},
        },
    )  # fmt: skip
    learning_curves.draw(tmp_path)
    text = learning_curves.describe(tmp_path)
    assert "| Title | backprop | 2 | 8 | 2.5 [-3.853, 8.853] | 2.5 | 1 | 1 | 1 |" in text
    assert "| 2 | 0.8 | 0.5 | 0.5 | 0.2 | 0.805" in text
    assert "| 5 | 2 | reached by 0 of 2 | 1 |" in text  # half the speed, half as far, as soon
    assert "Title is shortened to 8 of 20 iterations." in text
    assert "Title: backprop diverged with seed 7, left out of all." in text


def test_learning_curves_hold_each_number_against_its_own(tmp_path):
    """The figures of the two forward estimators and of backprop are all different here."""
    panel = "mlp_2e-4"
    columns = ("panel", "estimator", "seed", *Metrics._fields)
    # Seconds a step, the loss at the end, and the accuracy there.
    lines = {
        "backprop": (2.0, 0.88, 0.83), "forward-normal": (3.0, 0.52, 0.87),
        "forward-low_rank": (1.0, 0.44, 0.9),
    }  # fmt: skip
    write_table(
        tmp_path / "learning_curves.csv",
        columns,
        [(panel, name, seed, step, seconds * step, 0.1, *[1 + (loss - 1) * step / 8] * 2,
          accuracy * step / 8)
         for name, (seconds, loss, accuracy) in lines.items() for seed in (0, 1)
         for step in (0, 8)],
    )  # fmt: skip
    costs = {"backprop": 4.359, "forward-normal": 2.607, "forward-low_rank": 1.5}
    write_step_cost(tmp_path, {"mlp": (STEP, costs)})
    information = {
        "titles": {panel: ""}, "diverged": [], "provenance": [], "steps": {panel: STEP}
    }  # fmt: skip

    def found(shortened, changed):
        write_json(
            tmp_path / "learning_curves.json",
            {**information, "shortened": shortened, "changed": {panel: changed}},
        )
        return {f.key.removeprefix(f"{panel}."): f for f in learning_curves.findings(tmp_path)}

    of_whole = found({}, "")
    texts = {key: (f.ours, f.low_rank, f.verdict) for key, f in of_whole.items()}
    ours = "0.5981", "0.3441"
    assert texts == {
        "replications.slower": (*ours, "contradicted"),
        "R_f": ("2.607", "1.5", "reproduced"),
        "R_b": ("4.359", "", "reproduced"),
        "R_ratio": (*ours, "reproduced"),
        "T_f": ("6", "1.714", "cannot be checked here"),  # 24 · 0.12/0.48, 8 · 0.12/0.56
        "T_b": ("16", "", "cannot be checked here"),
        "T_ratio": ("0.375", "0.1071", "contradicted"),
        "loss_f": ("0.52", "0.44", "reproduced"),
        "loss_b": ("0.88", "", "reproduced"),
        "loss_ratio": ("0.5909", "0.5", "reproduced"),
        "accuracy_f": ("0.87", "0.9", "reproduced"),
        "accuracy_b": ("0.83", "", "reproduced"),
    }
    of_short = found({panel: "8 of 20"}, "")
    assert of_short["R_ratio"].verdict == "reproduced"
    for key in ("T_ratio", "loss_f", "loss_b", "loss_ratio", "accuracy_f", "accuracy_b"):
        assert of_short[key].why == "After 8 of 20 iterations."
    information["diverged"] = [(panel, "forward-normal", 3)]
    of_survivors = found({}, "")
    assert of_survivors["R_ratio"].verdict == "reproduced"
    assert of_survivors["loss_f"].why == (
        "Seed 3, with which forward-normal diverged, is left out."
    )
    unmeasured = information | {"steps": {panel: {**STEP, "batch_size": 128}}}
    write_json(
        tmp_path / "learning_curves.json",
        {**unmeasured, "shortened": {}, "changed": {panel: ""}},
    )
    without = {f.key for f in learning_curves.findings(tmp_path)}
    assert f"{panel}.T_ratio" in without and f"{panel}.R_f" not in without
    for finding in found({}, "with another model").values():
        assert finding.verdict == "cannot be checked here"


def test_figure_6_holds_each_number_against_its_own(tmp_path):
    """Costs of depth 1 and 100 as the paper has them; memory of 1, 2, 3 and 4 units."""
    costs = {1: (4.75, 2.5, 0.56), 100: (4.75, 4.2, 0.85)}

    def row(depth, i, name, width=1024):
        of_backprop, of_forward, ratio = costs[depth]
        relative = of_backprop if "backprop" in name else of_forward / (2 if i == 3 else 1)
        over = 1 if "backprop" in name else ratio / (2 if i == 3 else 1)
        quantities = [x for value in (1, relative, over) for x in (value, value, value)]
        memory = (2.5e8, (i + 1) * 1e9, "")
        return ("depth", depth, 64, width, name, *quantities, 9, *memory)

    rows = [row(d, i, name) for d in costs for i, name in enumerate(depth_scaling.ESTIMATORS)]
    write_table(tmp_path / "depth_scaling.csv", depth_scaling._COLUMNS, rows)
    found = {f.key.removeprefix("depth."): f for f in depth_scaling.findings(tmp_path)}
    assert {key: (f.ours, f.low_rank, f.verdict) for key, f in found.items()} == {
        "R_f.1": ("2.5", "1.25", "reproduced"), "R_f.100": ("4.2", "2.1", "reproduced"),
        "R_b.1": ("4.75", "", "reproduced"), "R_b.100": ("4.75", "", "reproduced"),
        "R_ratio.1": ("0.56", "0.28", "reproduced"), "R_ratio.100": ("0.85", "0.425", "reproduced"),
        "bytes.100": ("3.25e+09", "4.25e+09", "contradicted"),
        "memory.100": ("2.6", "3.4", "contradicted"),
        "checkpointed.100": ("0.6667", "0.5", "reproduced"),
    }  # fmt: skip
    rows = [row(100, i, name, width=16) for i, name in enumerate(depth_scaling.ESTIMATORS)]
    write_table(tmp_path / "depth_scaling.csv", depth_scaling._COLUMNS, rows)
    for finding in depth_scaling.findings(tmp_path):
        assert finding.verdict == "cannot be checked here"
        assert finding.why == "Width 16, not 1024."


def test_the_fair_comparison_holds_each_number_against_its_own(tmp_path):
    columns = ("panel", "estimator", "seed", *Metrics._fields)
    losses = {"backprop": 0.1, "forward-normal": 0.4, "forward-low_rank": 0.2}
    rates = {"backprop": 0.1, "forward-normal": 1e-3, "forward-low_rank": 2e-4}
    write_table(
        tmp_path / "fair_comparison.csv",
        columns,
        [("mlp", name, seed, step, step, 0.1, *[1 + (loss - 1) * step] * 2, 0.5)
         for name, loss in losses.items() for seed in (0, 1) for step in (0, 1)],
    )  # fmt: skip
    write_table(
        tmp_path / "fair_comparison_timings.csv",
        ("panel", "program", "process", "turn", "seconds"),
        [("mlp", name, process, 0, 1.0) for name in losses for process in (0, 1, 2)],
    )
    write_table(
        tmp_path / "fair_comparison_comparisons.csv",
        ("panel", *Comparison._fields),
        [("mlp", "backprop", "forward-normal", -0.3, -0.4, -0.2, 1e-3, 2e-3, -0.38, -0.22, 5)],
    )

    def found(largest, differs=""):
        write_table(
            tmp_path / "fair_comparison_tuning.csv",
            ("panel", *tuning.COLUMNS),
            [("mlp", name, role, rate, seed, loss)
             for name, chosen in rates.items()
             for role, rate, seed, loss in (
                 ("tuning", 1e-5, 1000, 2), ("tuning", 1e-5, 1001, 2), ("tuning", 1e-5, 1002, 2),
                 ("tuning", chosen, 1000, 1), ("tuning", chosen, 1001, 1),
                 ("tuning", chosen, 1002, 1), ("tuning", 1, 1000, "inf"),
                 ("compared", chosen * 2, 0, "inf"), ("compared", chosen, 0, 1),
                 ("compared", chosen, 1, 1))
             if rate <= largest],
        )  # fmt: skip
        write_json(
            tmp_path / "fair_comparison.json",
            {
                "titles": {"mlp": "MLP"}, "operations": {"mlp": dict.fromkeys(losses, 1e9)},
                "test_accuracy": {"mlp": {
                    "backprop": [0.9759] * 2, "forward-normal": [0.91] * 2,
                    "forward-low_rank": [0.8] * 2,
                }},
                "tuning": {"num_rates": 3, "seeds": [1000, 1001, 1002]},
                "differs": {"mlp": differs}, "failed": [("mlp", "forward-sphere")],
            },
        )  # fmt: skip
        return {
            f.key.removeprefix("replications."): (f.ours, f.low_rank, f.verdict)
            for f in fair_comparison.findings(tmp_path)
        }

    unchecked = "cannot be checked here"
    numbers = found(largest=1.0)
    assert numbers["backprop_wins"] == ("0.25", "0.5", "reproduced")
    # Of each tuning seed, that is of the same rates.
    assert numbers["rates"][:2] == ("100", "500")
    assert numbers["accuracy"] == ("0.91", "0.8", unchecked)
    assert numbers["backprop_accuracy"] == ("0.9759", "", "reproduced")
    text = fair_comparison.describe(tmp_path)
    assert "| 0.1; given up: 0.2 |" in text
    assert "MLP: forward gradient, sphere fails at every rate and is left out." in text
    assert "| MLP | backprop | forward gradient, dense normal | -0.3 [-0.4, -0.2] |" in text
    found(largest=0.1)
    edge = {f.key: f.why for f in fair_comparison.findings(tmp_path)}["replications.rates"]
    assert edge == "A best rate is an end of the grid."
    assert {verdict for *_, verdict in found(1.0, "too short").values()} == {unchecked}


def test_the_ratio_of_times_of_trajectories_is_geometric():
    lines = {
        "backprop": {"seconds": np.array([[0.0, 1.0], [0.0, 1.0]])},
        "forward-normal": {"seconds": np.array([[0.0, 0.5], [0.0, 2.0]])},
    }
    ratio = trajectories._time_ratio(lines, "forward-normal")
    assert ratio.value == pytest.approx(1) and ratio.low == pytest.approx(1 / ratio.high)
