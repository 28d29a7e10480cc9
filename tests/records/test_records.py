"""Files, tables, identities, intervals and timing."""

import json
import math
import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from fwdgrad.measurement import interleaved_seconds, mean_interval, median_interval
from fwdgrad.records import (
    Metrics,
    RecordError,
    atomic_write,
    config_identity,
    provenance,
    read_table,
    write_json,
    write_metrics,
)
from fwdgrad.records.runs import read_metrics
from tests.examples import examples


def test_atomic_write_keeps_the_old_content_on_failure(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), atomic_write(path) as file:
        file.write("new")
        assert path.read_text() == "old"
        raise RuntimeError("half way")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_write(path, "wb") as file:
        file.write(b"new\n")
    assert path.read_bytes() == b"new\n" and list(tmp_path.iterdir()) == [path]


floats = st.floats(allow_nan=False)


@examples(50)
@given(st.lists(st.builds(Metrics, st.integers(0, 10**9), *[floats] * 5), max_size=5))
def test_metrics_read_back_to_the_bit(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("metrics")
    write_metrics(folder, rows)
    assert read_metrics(folder) == rows


TABLE = "a,b\n1,x y\n2,\n"


@pytest.mark.parametrize(
    "text",
    [TABLE, "\ufeff" + TABLE, TABLE.replace("\n", "\r\n"), '"a","b"\n"1","x y"\n"2",""\n'],
    ids=["as written", "BOM", "CRLF", "quoted"],
)
def test_a_table_is_read_however_it_was_saved(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    assert read_table(path) == [{"a": "1", "b": "x y"}, {"a": "2", "b": ""}]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"a,b\n1,x\n2\n", "row 2 has 1 entries, the header 2"),
        (b"a,b\n1,x,3\n2,y\n", "row 1 has 3 entries, the header 2"),
        (b"a,b\n1,x\n2,y", r"is cut: its last line, \['2', 'y'\], does not end"),
        (b'a,b\n1,"x\n', "is no CSV file in UTF-8: unexpected end of data"),
        ("a,b\n".encode("utf-16"), "is no CSV file in UTF-8: 'utf-8' codec can't decode"),
    ],
)
def test_a_table_that_was_damaged(tmp_path, content, found):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=f"{path} .*{found}.*Restore the file, or make it again"):
        read_table(path)


def test_a_column_that_is_not_there_is_named_with_the_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a;b\n1;2\n")
    with pytest.raises(RecordError, match=f"{path} has no column 'a', but a;b. Restore the file"):
        read_table(path)[0]["a"]


def test_json_stays_valid_with_numbers_that_are_not_finite(tmp_path):
    write_json(tmp_path / "a.json", {"loss": [math.nan, math.inf, 1.5], "n": None})
    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert content == {"loss": ["nan", "inf", 1.5], "n": None}


def test_identity_is_of_the_content():
    config = {"model": {"widths": [1, 2], "name": None}, "rate": 1e-4}
    assert config_identity(config) == config_identity(dict(reversed(config.items())))
    assert config_identity(config) != config_identity({**config, "rate": 2e-4})
    assert len(config_identity(config)) == 10


def test_provenance_is_plain(tmp_path):
    write_json(tmp_path / "p.json", provenance())
    assert json.loads((tmp_path / "p.json").read_text()) == provenance()


def test_mean_interval_covers_as_often_as_it_says():
    """For normal samples of size 5: 95 % of 4,000 intervals, within 4.4 σ (p = 1e-5)."""
    samples = np.random.default_rng(0).normal(size=(4_000, 5))
    covered = np.mean([i.low < 0 < i.high for i in map(mean_interval, samples)])
    assert abs(covered - 0.95) < 4.4 * (0.95 * 0.05 / 4_000) ** 0.5


@pytest.mark.parametrize("n", [6, 9, 20, 51])
def test_median_interval_is_the_shortest_that_covers_as_often_as_it_says(n):
    below = median_interval(np.arange(n)).low  # samples on either side of the interval
    misses = [2 * scipy.stats.binom.cdf(number, n, 0.5) for number in (below, below + 1)]
    assert misses[0] <= 0.05 < misses[1]


def test_coverage_of_a_median_interval():
    samples = np.random.default_rng(0).exponential(size=(1_000, 9))
    covered = np.mean([i.low < math.log(2) < i.high for i in map(median_interval, samples)])
    exactly = 1 - 2 * scipy.stats.binom.cdf(1, 9, 0.5)
    assert abs(covered - exactly) < 4.4 * (exactly * (1 - exactly) / 1_000) ** 0.5


def test_intervals_against_scipy_stats():
    samples = np.random.default_rng(1).normal(size=12)
    expected = scipy.stats.t.interval(0.95, 11, samples.mean(), scipy.stats.sem(samples))
    np.testing.assert_allclose(mean_interval(samples)[1:3], expected, rtol=1e-12)
    found = median_interval(samples)  # the tables' k = 3 for n = 12
    assert (found.low, found.high) == (np.sort(samples)[2], np.sort(samples)[9])


def test_too_few_samples_for_an_interval():
    assert math.isnan(mean_interval([2.0]).low) and str(mean_interval([2.0])) == "2"
    assert math.isnan(median_interval([1.0, 2.0, 3.0]).low)


def test_interleaved_timing_takes_turns():
    order = []

    def make(name, seconds):
        def function():
            order.append(name)
            time.sleep(seconds)
            return ()

        return function

    seconds = interleaved_seconds({"a": make("a", 0.02), "b": make("b", 0.001)}, rounds=3)
    assert order == ["a", "b", "b", "a"] * 2 and seconds["a"].shape == (3,)
    assert np.median(seconds["a"]) > 0.02 > np.median(seconds["b"])
