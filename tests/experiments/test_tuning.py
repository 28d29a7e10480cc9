"""Learning rates: by the same budget for every line, on the validation set."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.common import tuning
from experiments.common.tuning import COMPARED, TUNING, next_rate, read_rates


def search(loss, first, num_rates=7, factor=10**0.5):
    tried = {}
    for _ in range(num_rates):
        rate = next_rate(tried, first, factor)
        assert rate not in tried
        tried[rate] = loss(rate)
    return tried


@pytest.mark.parametrize("edge", [0.2, 0.5, 1.0, 3.0])
def test_rates_come_close_to_the_edge_of_stability(edge):
    """The loss falls with the rate up to the edge, and fails beyond it."""
    tried = search(lambda rate: 1 / rate if rate < edge else math.inf, first=0.3)
    best = min(tried, key=tried.get)
    assert edge / 1.78 < best < edge  # a quarter of a decade, at most


@pytest.mark.parametrize("optimum", [0.003, 0.02, 0.3, 2.0, 30.0])
def test_the_grid_follows_the_best_wherever_the_first_rate_is(optimum):
    tried = search(lambda rate: abs(math.log(rate / optimum)), first=0.3)
    best = min(tried, key=tried.get)
    assert optimum / 2.4 < best < 2.4 * optimum
    assert len(tried) == 7


def test_rates_fall_as_long_as_all_fail():
    tried = search(lambda rate: math.inf, first=1.0, num_rates=5)
    assert sorted(tried) == [0.0316, 0.0999, 0.316, 1.0, 3.16]


def rows(*runs):
    return pd.DataFrame([("line", *run) for run in runs], columns=list(tuning.COLUMNS))


def test_rates_are_read_back():
    table = rows(
        (TUNING, 0.1, 1000, 3.0), (TUNING, 0.1, 1001, 1.0),
        (TUNING, 0.2, 1000, 1.0), (TUNING, 0.2, 1001, 2.0),
        (TUNING, 0.4, 1000, math.inf),
        (COMPARED, 0.2, 0, 1.0), (COMPARED, 0.2, 1, math.inf),
        (COMPARED, 0.1, 0, 2.0), (COMPARED, 0.1, 1, 2.0),
    )  # fmt: skip
    rates = read_rates(table)["line"]
    assert rates.means == {0.1: 2.0, 0.2: 1.5, 0.4: math.inf}
    assert rates.chosen == 0.1 and rates.given_up == [0.2] and rates.is_at_the_end
    assert str(rates) == "0.1 (end of the grid); given up: 0.2"
    assert rates.best_of_each_seed().tolist() == [0.2, 0.1]
    other = read_rates(
        rows((TUNING, 1.0, 1000, 0.0), (TUNING, 1.0, 1001, 0.0), (COMPARED, 1.0, 0, 0.0))
    )
    ratio = rates.over(other["line"])
    assert ratio.value == pytest.approx(np.sqrt(0.1 * 0.2)) and ratio.n == 2


def test_a_seed_is_not_tuned_and_compared():
    with pytest.raises(ValueError, match=r"seeds \[1000\] are among the tuning seeds"):
        tuning.tune_and_train(
            None, 0.1, {"seeds": [1000], "num_rates": 3, "factor": 3.0}, [0, 1000], print
        )
