"""Scaling laws: fits of tables with known laws, laws by hand, and the parts of a line."""

import math
import re

import jax
import numpy as np
import pytest

from experiments.common import alone, from_config
from experiments.common.curves import write_curves
from experiments.quality import scaling_laws
from experiments.quality.laws import expected_error
from experiments.quality.power_laws import fit
from experiments.quality.scaling_figure import draw_scaling
from experiments.quality.scaling_fits import COLUMNS, Errors, best_number, fits_of, read
from experiments.quality.scaling_report import section
from fwdgrad.measurement import mean_interval
from fwdgrad.records import Metrics, RunRecord, read_json, read_table, write_table

NAME = scaling_laws.NAME
SEEDS = range(5)


def test_a_line_is_measured_up_to_its_last_value_of_an_axis(compose, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling_laws, "measured_once", lambda *_, **__: {})
    cfg = compose("reproduce", "preset=paper")
    axes = cfg.experiments.scaling_laws.errors.axes
    assert cfg.experiments.scaling_laws.lines["weights-normal"].most == {"width": 2048}
    for name, last in (("weights-normal", 2048), ("weights-low_rank", 4096)):
        found = [(axis, x) for axis, x, *_ in scaling_laws._errors(cfg, name, tmp_path)]
        assert [x for axis, x in found if axis == "width"][-1] == last
        assert [x for axis, x in found if axis == "depth"] == list(axes.depth)


def test_a_law_is_found_exactly():
    x = np.array([64.0, 256.0, 1024.0])
    law = fit(x, 3 * x ** np.array([[1.0], [2.0], [-0.5]]))
    np.testing.assert_allclose(law.exponents, [1, 2, -0.5])
    np.testing.assert_allclose(np.exp(law.intercepts), 3)
    assert law.farthest == pytest.approx(1)
    assert law.at(256.0) == pytest.approx(3 * 256 ** (2.5 / 3))
    bent = fit(np.array([1.0, 2.0, 4.0]), np.array([[1.0, 8.0, 1.0]]))  # by hand: level 2
    assert bent.exponents[0] == pytest.approx(0) and bent.farthest == pytest.approx(4)


def test_points_without_a_logarithm_are_left_out():
    x = np.array([1.0, 2.0, 4.0, 0.0, 8.0])
    law = fit(x, np.array([[1.0, 2.0, 4.0, 7.0, 8.0], [1.0, 2.0, 4.0, 7.0, -1.0]]))
    np.testing.assert_allclose(law.exponents, 1)
    assert np.isnan(fit(x[:1], np.ones((2, 1))).exponents).all()
    assert math.isnan(fit(x, np.zeros((3, 5))).reaches(1.0).value)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Exponents and crossings of 1,000 tables of five seeds: 0.95, within 4 standard errors."""
    draw, n = np.random.default_rng(0), 1000
    x = np.array([64.0, 128.0, 256.0, 512.0])
    held = np.zeros(2)
    for _ in range(n):
        laws = 300 * x ** (-0.5 + 0.1 * draw.normal(size=(5, 1)))
        law = fit(x, laws * np.exp(0.2 * draw.normal(size=(5, 4))))
        place = law.reaches(1.0)  # the mean law, 300 x^(−1/2), is 1 at 300²
        held += [
            law.exponent.low <= -0.5 <= law.exponent.high,
            math.isnan(place.low) or place.low <= 300**2 <= place.high,
        ]
    assert held / n == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / n) ** 0.5)


def test_fiellers_interval_is_where_students_interval_holds_the_level():
    x = np.array([1.0, 10.0, 100.0])
    slopes = np.array([-1.0, -1.2, -0.8, -1.1, -0.9])
    law = fit(x, 50 * x ** slopes[:, None] * np.array([[1.0], [1.3], [0.8], [1.1], [0.9]]))
    place = law.reaches(1.0)
    low, value, high = (
        mean_interval(law.intercepts + law.exponents * math.log(x))
        for x in (place.low, place.value, place.high)
    )
    assert value.value == pytest.approx(0, abs=1e-9)
    assert low.low == pytest.approx(0, abs=1e-9) and high.high == pytest.approx(0, abs=1e-9)
    flat = fit(x, np.exp(0.1 * np.random.default_rng(0).normal(size=(5, 3))))
    assert math.isnan(flat.reaches(10.0).low) and flat.exponent.low < 0 < flat.exponent.high


@pytest.mark.parametrize(
    ("overrides", "number", "error"),
    [
        (["tangents=normal"], 4, (2395 + 1) / 4),  # d of 784–3–10: 784·3 + 3 + 3·10 + 10
        (["tangents=rademacher"], 1, 2395 - 1),
        (["tangents=orthogonal"], 5, 2395 / 5 - 1),
        (
            ["tangents=low_rank", "tangents.distribution.rank=2"],
            2,
            (2395 - 1 + 1) / 2,
        ),
    ],
    ids=["normal", "rademacher", "orthogonal", "low-rank"],
)
def test_laws_of_weights_by_hand(small, overrides, number, error):
    config, starts = small(
        *overrides, f"estimator.value_and_grad.num_tangents={number}", widths=(3,)
    )
    batch = jax.tree.map(lambda x: x[:2], from_config.problem(config).train)
    assert expected_error(config, starts[0], batch) == pytest.approx(error)
    assert scaling_laws._num_parameters(config) == 2395


def test_of_activities_units_take_the_place_of_weights(small):
    """With signs e = (m − 1) ‖δ‖²/K for m units that are on; with a block for each unit, zero."""
    config, starts = small(
        "space=activities", "tangents=rademacher",
        "estimator.value_and_grad.space.layerwise=true",
        "estimator.value_and_grad.space.exact_last=true",
        "estimator.value_and_grad.num_tangents=2", widths=(6,),
    )  # fmt: skip
    problem, params = from_config.problem(config), starts[0]
    images, labels = jax.tree.map(lambda x: x[:1], problem.train)
    gradient = jax.grad(problem.loss)(params, (images, labels))
    flat, first = images.ravel(), params.layers[0]
    on = first.weight @ flat + first.bias > 0
    delta = np.asarray(gradient.layers[0].bias)
    square = sum(float((x**2).sum()) for x in jax.tree.leaves(gradient))
    by_hand = (1 + (flat**2).sum()) * (on.sum() - 1) * (delta**2).sum() / 2 / square
    found = expected_error(config, params, (images, labels))
    assert found == pytest.approx(float(by_hand), rel=1e-4)
    config.tangents.distribution._target_ = "fwdgrad.BlockSparse"
    config.estimator.value_and_grad.num_tangents = 6
    assert expected_error(config, params, (images, labels)) == pytest.approx(0, abs=1e-6)


def write_errors(folder, exponent=1.0, operations=5.0):
    """Errors of weights that are d + 1 but for a factor of each seed, at widths and numbers K."""
    factors = np.exp(0.01 * np.arange(-2, 3))
    rows = []
    for axis, values in (("width", [10, 100, 1000]), ("num_tangents", [1, 4])):
        for x in values:
            d, number = (x**2, 1) if axis == "width" else (100**2, x)
            law = (d + 1) ** exponent / number
            rows += [
                (axis, "weights-normal", x, d, seed, law * factors[seed], law, number * operations)
                for seed in SEEDS
            ]
    write_table(folder / f"{NAME}.csv", COLUMNS, rows)
    return {
        "parts": ["errors"], "width": 100, "depth": 2, "standard_error": 0.1, "guess_steps": 2,
        "provenance": [],
    }  # fmt: skip


def write_training(folder):
    """Losses 2 w^(−1/2) of backprop and w^(−1/4) of another line, which meet at a width of 16.

    Runs have 100 steps, of 1 ms and 2 ms; losses fall from 3 in a straight line.
    """
    runs, times = [], []
    for width in (4, 64, 256):
        for line, milliseconds, loss in (
            ("backprop", 1, 2 * width**-0.5), ("weights-low_rank", 2, width**-0.25)
        ):  # fmt: skip
            ends = [(0, 3.0), (50, (3 + loss) / 2), (100, loss)]
            metrics = [Metrics(step, 0.0, 0.1, x, x, 0.9) for step, x in ends]
            runs += [(f"width {width}", line, s, RunRecord(folder, {}, metrics)) for s in SEEDS]
            times += [(f"width {width}", line, p, 0, milliseconds / 1000) for p in range(3)]
    write_curves(folder / f"{NAME}_training.csv", runs)
    columns = ("panel", "program", "process", "turn", "seconds")
    write_table(folder / f"{NAME}_timings.csv", columns, times)
    rule = {"num_rates": 5, "seeds": [1000]}
    return {"operations": 1e12, "tuning": rule, "failed": [["width 4", "backprop"]]}


def rows_of(scaling):
    return {row[:3]: row[3:] for row in fits_of(scaling)}


def test_tables_with_known_laws(tmp_path):
    information = write_errors(tmp_path)
    information["training"] = write_training(tmp_path)
    scaling = read(tmp_path, NAME, information)
    rows = rows_of(scaling)
    of_d = rows["parameters", "weights-normal", "error"]
    assert of_d == pytest.approx((1, 1, 1, 5), abs=1e-2)  # d + 1, not d
    assert rows["width", "weights-normal", "law"][0] == pytest.approx(2, abs=1e-2)
    assert rows["num_tangents", "weights-normal", "error"] == pytest.approx((-1, -1, -1, 5))
    assert rows["all", "weights-normal", "over_law"][0] == pytest.approx(1)
    assert rows["all", "weights-normal", "scatter"][0] == pytest.approx(0.01 * 2.5**0.5)
    # 5 K (1 + (d + 1)/K): hardly more with more tangents
    overhead = scaling.errors["num_tangents"]["weights-normal"].overhead.mean(0)
    np.testing.assert_allclose(overhead, [5 * 10002, 20 * (1 + 10001 / 4)], rtol=1e-3)

    assert scaling.seconds == pytest.approx(0.1)
    np.testing.assert_allclose(scaling.losses["operations"]["backprop"], [[1, 1 / 4, 1 / 8]] * 5)
    middle = [(3 + x**-0.25) / 2 for x in (4, 64, 256)]
    np.testing.assert_allclose(scaling.losses["time"]["weights-low_rank"], [middle] * 5)
    assert rows["width", "backprop", "loss_at_operations"] == pytest.approx((-0.5, -0.5, -0.5, 5))
    ratio = rows["width", "weights-low_rank", "loss_at_operations_over_backprop"]
    assert ratio == pytest.approx((0.25, 0.25, 0.25, 5))
    meets = rows["width", "weights-low_rank", "loss_at_operations_meets"]
    assert meets == pytest.approx((16, 16, 16, 5))

    text = section(scaling, NAME)
    assert "By these fits no estimator, along no axis, meets backprop" in text and re.search(
        r"\| 16( \[16, 16\])? \|", text
    )
    assert "Of 3 exponents with a theory" in text and "holds 0 in 3" in text
    assert "No rate works for backprop at width 4." in text
    draw_scaling(scaling, tmp_path, NAME)
    assert {x.stem for x in tmp_path.glob("*.png")} == {NAME, f"{NAME}_training"}


def test_a_line_that_meets_backprop_does_so_where_its_law_says(tmp_path):
    """The overhead 0.99 (1 + (d + 1)^(−1/2)) falls to 1 by its fit; of dearer steps it cannot."""
    information = write_errors(tmp_path, exponent=-0.5, operations=0.99)
    scaling = read(tmp_path, NAME, information)
    law = fit(*(lambda e: (e.x, e.overhead))(scaling.errors["width"]["weights-normal"]))
    place = rows_of(scaling)["width", "weights-normal", "overhead_meets"]
    assert law.at(place[0]) == pytest.approx(1)
    text = section(scaling, NAME)
    assert "is reached by forward gradient, dense normal, width of" in text
    assert "(measured: 10 … 1,000)" in text and "no other estimator" in text
    scaling = read(tmp_path, NAME, write_errors(tmp_path, exponent=-0.5, operations=1.0))
    assert math.isnan(rows_of(scaling)["width", "weights-normal", "overhead_meets"][0])
    assert "| never: a step alone costs 1 times backprop's, or more |" in section(scaling, NAME)


def test_the_best_number_of_tangents_is_that_of_calculus(tmp_path):
    """(1 + K/4) (1 + 400/K), of operations and an error, is least at K = 40, where it is 121."""
    errors = Errors(
        np.array([1.0, 4.0, 16.0, 64.0]),
        *[400 / np.array([[1.0, 4.0, 16.0, 64.0]] * 3)] * 2,
        1 + np.array([1.0, 4.0, 16.0, 64.0]) / 4,
    )
    at, least = best_number(errors)
    assert at == pytest.approx(40, rel=0.01) and least == pytest.approx((121, 121, 121, 3))


def test_without_training_or_without_errors(tmp_path):
    information = write_errors(tmp_path)
    scaling = read(tmp_path, NAME, information)
    assert not scaling.losses and "after equal" not in section(scaling, NAME)
    write_table(tmp_path / f"{NAME}.csv", COLUMNS, [])
    trained = {"parts": ["training"], "training": write_training(tmp_path)}
    scaling = read(tmp_path, NAME, {**information, **trained})
    assert not scaling.errors and "overhead" not in section(scaling, NAME)


def test_a_time_before_the_first_evaluation_has_no_loss(tmp_path):
    information = {"parts": ["training"], "training": write_training(tmp_path)}
    path = tmp_path / f"{NAME}_timings.csv"
    rows = read_table(path)
    for row in rows:
        if row["panel"] == "width 256":
            row["seconds"] = float(row["seconds"]) / 10  # so the time is 10 ms
    write_table(path, rows[0], [row.values() for row in rows])
    write_table(tmp_path / f"{NAME}.csv", COLUMNS, [])
    scaling = read(tmp_path, NAME, information)
    assert scaling.seconds == pytest.approx(0.01)
    assert np.isnan(scaling.losses["time"]["backprop"][:, :2]).all()
    np.testing.assert_allclose(scaling.losses["time"]["backprop"][:, 2], 1 / 8)


@pytest.mark.thorough
def test_lines_made_alone_are_read_back(compose, tmp_path, monkeypatch):
    """`line=NAME` makes all of a line but the timing; nothing of it is made again."""
    overrides = ("preset=smoke", f"output.root={tmp_path}", "output.progress=false")
    for line in ("backprop", "weights-low_rank"):
        alone.run_alone(compose("reproduce", *overrides, f"line={line}"), scaling_laws)
    monkeypatch.setattr(scaling_laws, "quality", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(
        from_config, "train_together", lambda *_, **__: pytest.fail("trained again")
    )
    alone.run_alone(compose("reproduce", *overrides), scaling_laws)
    rows = read_table(tmp_path / f"{NAME}.csv")
    assert {(x["axis"], x["x"]) for x in rows} == {
        ("width", "4"), ("width", "8"), ("depth", "1"), ("num_tangents", "1"), ("rank", "1")
    }  # fmt: skip
    parameters = {x["x"]: int(x["parameters"]) for x in rows if x["axis"] == "width"}
    assert parameters == {"4": 784 * 4 + 4 + 4 * 10 + 10, "8": 784 * 8 + 8 + 8 * 10 + 10}
    for row in rows:
        assert float(row["law"]) == int(row["parameters"]) - 1  # of rank one
        assert 0 < float(row["operations"]) < 1 < float(row["error"])
    steps = read_json(tmp_path / f"{NAME}.json")["training"]["operations_per_step"]["width 8"]
    for row in read_table(tmp_path / f"{NAME}_training.csv"):
        most = 4e5 / steps[row["estimator"]]
        assert int(row["step"]) <= round(most)
