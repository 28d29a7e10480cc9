"""Statistics of curves, and the comparison of our numbers with the paper's."""

import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import reproduce
from experiments.common import jobs, report
from experiments.common.curves import (
    Unreached,
    mean_time,
    plot,
    ratios_of_times,
    ratios_to_common_loss,
    time_to,
)
from experiments.common.paper_facts import CONTRADICTED, FACTS, REPRODUCED, UNCHECKED, compare
from fwdgrad.measurement import Interval
from fwdgrad.records import RecordError, read_json, write_json, write_table

from .conftest import CONFIGS


def curve(*seeds):
    """Return the curve of (seconds, losses) of each seed."""
    seconds, losses = zip(*seeds, strict=True)
    return {"seconds": np.array(seconds), "valid_loss": np.array(losses)}


@pytest.mark.parametrize(
    ("loss", "time"), [(2.5, 5.0), (1.0, 20.0), (3.0, 0.0), (0.9, math.inf), (1.5, 15.0)]
)
def test_time_to_loss_interpolates(loss, time):
    assert time_to(loss, curve(([0.0, 10.0, 20.0], [3.0, 2.0, 1.0]))) == time


def test_the_ratio_of_times_pairs_the_seeds():
    slow = curve(([0.0, 10.0], [2.0, 1.0]), ([0.0, 20.0], [2.0, 1.0]))
    fast = curve(([0.0, 5.0], [2.0, 1.0]), ([0.0, 5.0], [2.0, 1.0]))
    curves = {"backprop": slow, "fast": fast}
    ratio = mean_time(ratios_of_times(curves, "fast", "backprop"))
    assert ratio.value == pytest.approx((0.5 + 0.25) / 2) and ratio.n == 2
    assert (ratios_of_times(curves, "backprop", "backprop") == 1).all()
    common = mean_time(ratios_to_common_loss(curves, "fast", "backprop"))
    assert common == ratio  # it reaches the reference's lowest loss
    never = curve(([0.0, 5.0], [2.0, 1.5]), ([0.0, 5.0], [2.0, 1.0]))
    ratios = ratios_of_times({**curves, "never": never}, "never", "backprop")
    # One seed of it ends at 1.5 after 5 seconds, where the reference is after 5.
    ratios_of_both = ratios_to_common_loss({**curves, "never": never}, "never", "backprop")
    np.testing.assert_allclose(ratios_of_both, [1, 0.25])
    assert mean_time(ratios) == Unreached(1, 2) and str(mean_time(ratios)) == "reached by 1 of 2"


def test_no_shaded_interval_reaches_below_zero_on_a_logarithmic_axis():
    """There it is Student's of the logarithms, about the geometric mean."""
    samples, bounds = np.array([[1.0, 2.0], [100.0, 8.0]]), {}
    for scale in ("linear", "log"):
        axis = plt.figure().subplots()
        axis.set_yscale(scale)
        plot(axis, np.arange(2), samples, "backprop")
        (line,), (band,) = axis.lines, axis.collections
        bounds[scale] = line.get_ydata(), band.get_paths()[0].vertices[:, 1].min()
        plt.close()
    np.testing.assert_allclose(bounds["linear"][0], [50.5, 5.0])
    np.testing.assert_allclose(bounds["log"][0], [10.0, 4.0])
    assert bounds["linear"][1] < 0 < bounds["log"][1]


def interval(value, low=math.nan, high=math.nan):
    return Interval(value, low, high, 5)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (interval(0.229, 0.229, 0.229), REPRODUCED),  # exact
        (interval(0.25, 0.25, 0.25), REPRODUCED),  # within 10 %
        (interval(0.26, 0.26, 0.26), CONTRADICTED),
        (interval(0.26, 0.22, 0.3), REPRODUCED),
        (interval(0.245, 0.235, 0.255), REPRODUCED),  # its middle is within 10 %
        (interval(0.26, 0.24, 0.28), UNCHECKED),  # an end of it is
        (interval(0.19, 0.18, 0.20), CONTRADICTED),
        (interval(0.229, 0.1, 0.358), UNCHECKED),  # too wide to say
        (interval(9.0, 0.2, 17.8), UNCHECKED),
        (interval(0.33, 0.25, 0.41), UNCHECKED),  # it touches what is within 10 %
        (interval(0.229), UNCHECKED),  # one sample
        (interval(math.nan), UNCHECKED),
        (Unreached(1, 5), UNCHECKED),
        (Unreached(0, 5), CONTRADICTED),
        (Unreached(0, 1), UNCHECKED),
    ],
)
def test_verdicts_on_a_number(ours, verdict):
    assert FACTS["mlp_2e-4.T_ratio"].low == FACTS["mlp_2e-4.T_ratio"].high == 0.229
    found = compare("mlp_2e-4.T_ratio", ours, interval(0.2))
    assert found.verdict == verdict and found.low_rank == "0.2"
    assert found.ours.startswith(str(ours)) and found.why.endswith(".")
    if isinstance(ours, Interval):
        assert found.ours.endswith("(n = 5)") == (ours.low < ours.high)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.05, 1.2, REPRODUCED),
        (0.95, 1.2, UNCHECKED),
        (0.8, 0.99, CONTRADICTED),
        (1.1, 90.0, REPRODUCED),  # however far on that side
    ],
)
def test_verdicts_on_a_side(low, high, verdict):
    """`replications.slower` says above 1, `replications.backprop_wins` below 1."""
    above = compare("replications.slower", interval((low + high) / 2, low, high))
    low, high = 1 / high, 1 / low
    below = compare("replications.backprop_wins", interval((low + high) / 2, low, high))
    assert above.verdict == below.verdict == verdict


def test_a_range_of_the_paper_may_hold_a_wide_interval():
    """The value at the end of Beale is of the order 1e-4, from 1e-5 to 1e-3."""
    for low, high, verdict in ((3e-5, 3e-4, REPRODUCED), (3e-6, 3e-4, UNCHECKED)):
        assert compare("beale.final", interval(1e-4, low, high)).verdict == verdict


def test_the_reason_is_of_the_side_on_which_ours_is():
    lower, higher = (compare("logistic.R_b", interval(x, x, x)) for x in (1.4, 9.0))
    assert lower.verdict == higher.verdict == CONTRADICTED
    assert "none of the overhead" in lower.why and higher.why == "Ours is higher."


def test_a_run_without_learning_does_not_reproduce_the_paper():
    """At η₀ = 2e-5 the loss falls from 2.30 to 2.2."""
    for key, loss in (("loss_f", 2.3), ("loss_b", 2.3), ("loss_ratio", 2.3 / 2.2)):
        found = compare(f"mlp_2e-5.{key}", interval(loss, loss - 0.01, loss + 0.01))
        assert found.verdict == CONTRADICTED
    assert compare("mlp_2e-5.loss_f", interval(2.19, 2.18, 2.2)).verdict == REPRODUCED


def test_seconds_are_of_the_papers_machine():
    found = compare("logistic.T_f", interval(1.0))
    assert found.verdict == UNCHECKED and found.why.startswith("Absolute times belong")
    assert compare("no such fact", interval(1.0)) is None


def test_a_shortened_run_contradicts_nothing():
    ours = interval(2.3), interval(2.2)
    found = compare("mlp_2e-4.loss_f", *ours, differs="after 8 of 20 iterations")
    assert found.verdict == UNCHECKED and found.why == "After 8 of 20 iterations."
    assert (found.ours, found.low_rank) == ("2.3", "2.2")


def test_the_report_has_every_fact_once(tmp_path):
    information = {
        "provenance": [
            {
                "code": {"commit": "abc", "dirty": True},
                "versions": {"jax": "0.1", "torch": None},
                "hardware": {
                    "cpu": "some CPU", "cpu_cores": 2, "num_devices": 1, "device_kind": "cpu",
                    "system": "Linux",
                },
            }
        ],
        "wall_seconds": 3725.4,
    }  # fmt: skip
    write_json(tmp_path / "one.json", information)
    path = report.write(
        tmp_path,
        "quick",
        {"one": "## Section"},
        [compare("depth.R_ratio.1", interval(0.6, 0.5, 0.7), interval(0.5, 0.4, 0.6))],
        {"two": "OSError: disk full"},
    )
    text = path.read_text()
    assert "**two failed:** OSError: disk full" in text and "## Section" in text
    assert "- one, 1:02:05 h of wall time" in text
    assert "commit abc with uncommitted changes; some CPU, 2 cores" in text and "torch" not in text
    rows = [line for line in text.splitlines() if re.search(r" \| [FQU] \| ", line)]
    assert len(rows) == len(FACTS)
    unchecked = sum(fact.unchecked != "" for fact in FACTS.values())
    assert sum("cannot be checked here" in row for row in rows) == unchecked
    assert sum("not in this preset" in row for row in rows) == len(FACTS) - unchecked - 1
    ours = "0.6 [0.5, 0.7] (n = 5) | 0.5 [0.4, 0.6] (n = 5)"
    assert f"| {ours} | reproduced | Our interval holds it. |" in text


def test_every_fact_has_a_mark_and_a_range():
    for key, fact in FACTS.items():
        assert fact.mark in "FQU" and fact.value
        assert fact.low <= fact.high or fact.unchecked, key


NOTES = {"provenance": [], "wall_seconds": 1.0}


@pytest.fixture
def tables(tmp_path):
    """A folder with an experiment's tables and what it notes beside them."""
    for name in ("one", "one_tuning"):
        write_table(tmp_path / f"{name}.csv", ("seed", "loss"), [(0, 1.5), (1, None), (2, 0.25)])
    jobs.write_information(tmp_path, "one", ["one", "one_tuning"], NOTES)
    return tmp_path


def test_tables_that_are_as_they_were_written(tables):
    jobs.check_tables(tables, "one")
    path = tables / "one.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    jobs.check_tables(tables, "one")
    jobs.check_tables(tables, "another")  # that has never run


def test_tables_of_earlier_versions_have_no_sums(tables):
    write_json(tables / "one.json", NOTES)
    (tables / "one.csv").unlink()
    jobs.check_tables(tables, "one")


@pytest.mark.parametrize("name", ["one", "one_tuning"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: text.index("2,0.25")],  # the last line
        lambda text: text.replace("1,\n", ""),
        lambda text: text.replace("0.25", "0.2"),
        lambda text: "".join(text.splitlines(keepends=True)[:1]),
        None,
    ],
)
def test_no_line_of_a_table_is_lost_silently(tables, name, change):
    path = tables / f"{name}.csv"
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(RecordError, match=f"{path} .*cut, changed or lost. Restore it, or run"):
        jobs.check_tables(tables, "one")


@pytest.mark.parametrize("content", ["", '{"provenance": []}', "[]"])
def test_notes_that_were_damaged(tables, content):
    path = tables / "one.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=f"{path} .*Restore the file, or delete it and run"):
        jobs.check_tables(tables, "one")


@pytest.mark.parametrize("name", reproduce.EXPERIMENTS)
@pytest.mark.parametrize("preset", ["paper", "quick"])
def test_the_committed_tables_are_those_that_were_measured(preset, name):
    folder = CONFIGS.parent / "results" / preset
    assert read_json(folder / f"{name}.json")["tables"]
    jobs.check_tables(folder, name)


def test_sources_name_processes_of_before_and_settings_of_jax(tmp_path):
    hardware = {"cpu": "C", "cpu_cores": 2, "num_devices": 1, "device_kind": "k", "system": "L"}
    old, new = (
        {"code": {"commit": c, "dirty": False}, "versions": {}, "hardware": hardware} for c in "ab"
    )
    settings = {"jax_enable_x64": True, "jax_default_prng_impl": "threefry2x32", "xla_flags": ""}
    record = {**new, "jax": settings, "earlier": [old], "wall_seconds": 1.0}
    found = jobs.provenance_of([record, record])
    assert found["provenance"] == [old, {**new, "jax": settings}] and found["wall_seconds"] == 2
    write_json(tmp_path / "one.json", found)
    lines = report.write(tmp_path, "quick", {"one": ""}, [], {}).read_text().splitlines()
    first, second = (line for line in lines if line.startswith("  - commit"))
    assert first.startswith("  - commit a;") and "jax_" not in first
    assert second.startswith("  - commit b;") and second.endswith("; jax_enable_x64 True.")
