"""Each experiment's findings on the paper's numbers, from tables made by hand."""

import numpy as np
import pytest

from experiments.common import tuning
from experiments.common.comparisons import Comparison
from experiments.cost import step_cost
from experiments.paper import depth_scaling, fair_comparison, learning_curves, trajectories
from fwdgrad.records import Metrics, RecordError, write_json, write_table

from .timed import STEP, write_step_cost


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
        learning_curves.RUN_COLUMNS,
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
    assert "| Title | backprop | 2 | 2.5 | 1 | 1 | 0.2 | 20 |" in text
    assert "| 0.5 | 1 | 0.2 | 20 |" in text
    assert "| > 0.5, reached by 0 of 2 | > 1, reached by 0 of 2 |" in text
    assert "Title: only 8 of 20 iterations." in text
    assert "Title: backprop diverged with seed 7, which is left out" in text


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
         for name, (seconds, loss, accuracy) in lines.items() for seed in (0, 1, 2)
         for step in (0, 8)],
    )  # fmt: skip
    information = {"titles": {panel: ""}, "diverged": [], "provenance": []}

    def found(shortened, changed):
        write_json(
            tmp_path / "learning_curves.json",
            {**information, "shortened": shortened, "changed": {panel: changed}},
        )
        return {f.key.removeprefix(f"{panel}."): f for f in learning_curves.findings(tmp_path)}

    numbers = {
        key: (f.ours.value, f.low_rank.value if f.low_rank else None)
        for key, f in found({}, "").items()
    }
    expected = {
        "T_f": (6, 12 / 7), "T_b": (16, None),  # 24 · 0.12/0.48, 8 · 0.12/0.56
        "T_ratio": (0.375, 12 / 7 / 16), "steps_ratio": (0.25, 12 / 7 / 8),
        "loss_f": (0.52, 0.44), "loss_b": (0.88, None), "loss_ratio": (0.52 / 0.88, 0.5),
        "error_f": (0.13, 0.1), "error_b": (0.17, None), "error_ratio": (0.13 / 0.17, 0.1 / 0.17),
    }  # fmt: skip
    assert numbers.keys() == expected.keys()
    for key, pair in numbers.items():
        assert pair == pytest.approx(expected[key]), key
    verdicts = {key: f.verdict for key, f in found({}, "").items()}
    assert verdicts["loss_ratio"] == verdicts["error_ratio"] == "reproduced"
    assert verdicts["T_ratio"] == "not reproduced"
    of_short = found({panel: "8 of 20"}, "")
    for key in ("T_ratio", "steps_ratio", "loss_ratio", "error_ratio"):
        assert of_short[key].why == "after 8 of 20 iterations"
    information["diverged"] = [(panel, "forward-normal", 3)]
    assert found({}, "")["loss_ratio"].why == "diverged with seed 3"
    for finding in found({}, "with another model").values():
        assert finding.verdict in ("not in this preset", "cannot be checked")


def test_step_cost_holds_each_number_against_its_own(tmp_path):
    costs = {"backprop": 4.359, "forward-normal": 2.607, "forward-low_rank": 1.5}
    write_step_cost(tmp_path, {"mlp-64": (STEP, costs)}, paper="mlp")
    found = {f.key: f for f in step_cost.findings(tmp_path)}
    ratios = 2.607 / 4.359, 1.5 / 4.359
    numbers = {
        key: (f.ours.value, f.low_rank.value if f.low_rank else None) for key, f in found.items()
    }
    assert numbers == {
        "mlp.R_b": (pytest.approx(4.359), None), "mlp.R_f": pytest.approx((2.607, 1.5)),
        "mlp.R_ratio": pytest.approx(ratios), "replications.slower": pytest.approx(ratios),
    }  # fmt: skip
    assert {found[f"mlp.{key}"].verdict for key in ("R_b", "R_f", "R_ratio")} == {"reproduced"}
    assert found["replications.slower"].verdict == "not reproduced"
    assert found["mlp.R_f"].ours.sentence.endswith("(3 processes)")
    write_step_cost(tmp_path, {"mlp-64": (STEP, costs)}, paper="mlp", changed="another width")
    assert {f.why for f in step_cost.findings(tmp_path)} == {"another width"}
    write_step_cost(tmp_path, {"mlp-1024": (STEP, costs)}, paper=None)
    assert step_cost.findings(tmp_path) == []


def test_a_seed_that_diverged_is_left_out_where_its_line_is_compared(tmp_path):
    """Low-rank tangents lack the seed 1, with which the others end elsewhere."""
    ends = {
        ("backprop", 0): 0.8, ("forward-normal", 0): 0.4, ("forward-low_rank", 0): 0.2,
        ("backprop", 1): 0.5, ("forward-normal", 1): 0.4,
    }  # fmt: skip
    columns = ("panel", "estimator", "seed", *Metrics._fields)
    write_table(
        tmp_path / "learning_curves.csv",
        columns,
        [("cnn", *names, step, step, 0.1, *[1 + (end - 1) * step / 8] * 2, 0.5)
         for names, end in ends.items() for step in (0, 8)],
    )  # fmt: skip
    about = {
        "titles": {"cnn": ""}, "shortened": {}, "changed": {"cnn": ""}, "provenance": [],
        "diverged": [("cnn", "forward-low_rank", 1)],
    }  # fmt: skip
    write_json(tmp_path / "learning_curves.json", about)
    ratio = {f.key: f for f in learning_curves.findings(tmp_path)}["cnn.steps_ratio"]
    assert (ratio.ours.n, ratio.low_rank.n) == (2, 1)
    assert ratio.low_rank.value == pytest.approx(0.25)  # 8 · 0.2/0.8, over 8
    assert ratio.ours.value == pytest.approx((1 / 3 + 5 / 6) / 2)
    write_json(tmp_path / "learning_curves.json", {**about, "diverged": []})
    with pytest.raises(RecordError, match="cnn, forward-low_rank has none of the seeds 1"):
        learning_curves.findings(tmp_path)


def test_figure_6_holds_each_number_against_its_own(tmp_path):
    """Costs of depths 1 and 100 as the paper has them; memory of 1, 2, 3 and 4 units."""
    costs = {1: (4.75, 2.5), 100: (4.75, 4.2)}  # R of backprop, and of dense tangents

    def write(depths, width):
        rows, times = [], []
        for depth in depths:
            of_backprop, of_forward = costs[depth]
            times += [(depth, 64, "loss", process, 0, 1.0) for process in range(3)]
            for i, name in enumerate(depth_scaling.ESTIMATORS):
                relative = of_backprop if "backprop" in name else of_forward / (2 if i == 3 else 1)
                times += [(depth, 64, name, process, 0, relative) for process in range(3)]
                memory = (2.5e8, (i + 1) * 1e9, 2.5e8 + (i + 1) * 1e9, "")
                unread = [0.0] * 9, 3, 0.5  # times are read from the raw ones
                rows.append(("depth", depth, 64, width, name, *unread[0], *unread[1:], *memory))
        write_table(tmp_path / "depth_scaling.csv", depth_scaling._COLUMNS, rows)
        columns = ("depth", "batch_size", "program", "process", "turn", "seconds")
        write_table(tmp_path / "depth_scaling_timings.csv", columns, times)

    write(costs, 1024)
    (tmp_path / "depth_scaling.json").write_text('{"processes": []}')
    found = {f.key.removeprefix("depth."): f for f in depth_scaling.findings(tmp_path)}
    shown = {
        key: (*(str(x).partition(" [")[0] for x in (f.ours, f.low_rank)), f.verdict)
        for key, f in found.items()
    }
    assert shown == {
        "R_f.1": ("2.5", "1.25", "reproduced"), "R_f.100": ("4.2", "2.1", "reproduced"),
        "R_b.1": ("4.75", "None", "reproduced"), "R_b.100": ("4.75", "None", "reproduced"),
        "R_ratio.1": ("0.526", "0.263", "reproduced"),
        "R_ratio.100": ("0.884", "0.442", "reproduced"),
        "bytes.100": ("3.25e9", "4.25e9", "not reproduced"),
        "memory.100": ("2.6", "3.4", "not reproduced"),
        "checkpointed.100": ("0.667", "0.5", "reproduced"),
    }  # fmt: skip
    assert (
        "| 100 | 64 | backprop, checkpointed | 4.75 [4.75, 4.75] | 1 |"
        in depth_scaling.describe(tmp_path)
    )
    write([100], 16)
    for finding in depth_scaling.findings(tmp_path):
        assert finding.verdict == "not in this preset" and finding.why.startswith(
            "width 16, not 1024"
        )


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
            f.key.removeprefix("replications."): (str(f.ours), str(f.low_rank), f.verdict)
            for f in fair_comparison.findings(tmp_path)
        }

    assert found(largest=1.0) == {
        "backprop_wins": ("0.25", "0.5", "undecided"),  # of two seeds
        "rates": ("100", "500", "not reproduced"),  # of three tuning seeds, which agree
        "weights": ("0.09", "0.2", "cannot be checked"),
        "backprop": ("0.0241", "None", "cannot be checked"),
    }
    text = fair_comparison.describe(tmp_path)
    assert "| 0.1; given up: 0.2 |" in text
    assert "MLP: forward gradient, dense sphere fails at every rate and is left out." in text
    assert "| MLP | backprop | forward gradient, dense normal | -0.3 [-0.4, -0.2] |" in text
    assert found(1.0, "too short")["backprop_wins"][2] == "not in this preset"


def test_the_ratio_of_times_of_trajectories_is_geometric():
    lines = {
        "backprop": {"seconds": np.array([[0.0, 1.0], [0.0, 1.0]])},
        "forward-normal": {"seconds": np.array([[0.0, 0.5], [0.0, 2.0]])},
    }
    ratio = trajectories._time_ratio(lines, "forward-normal")
    assert ratio.value == pytest.approx(1) and ratio.low == pytest.approx(1 / ratio.high)


def test_ends_below_the_last_bit_of_float32_are_bounds(tmp_path):
    """The minimum of Styblinski–Tang in ten variables is −392, whose last bit is 3.1e-5."""
    settings = {"function": "styblinski_tang", "start": [-1] * 10}
    least = trajectories._minimum(settings)
    ends = {0.0: "at most 3.05e-5", 1e-3: "0.00101"}
    for gap, shown in ends.items():
        line = {"value": np.full((6, 1), np.float32(least + gap), float)}
        assert trajectories._shown_gap(line, settings) == shown
    several = {"value": np.float32(least) + np.array([[0.0], [0], [1], [2], [28], [28]])}
    assert trajectories._final_gap(several, settings).value == 1.5  # the median
