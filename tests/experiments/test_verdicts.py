"""Verdicts: two one-sided tests against an oracle, and each kind of verdict on a number."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.common.curves import Unreached
from experiments.common.paper_facts import FACTS, compare, not_found
from experiments.common.verdicts import (
    ABSENT,
    CONFIDENCE,
    NOT_REPRODUCED,
    REPRODUCED,
    SEEDS,
    TURNS,
    UNCHECKED,
    UNDECIDED,
    estimate,
    judge,
)
from fwdgrad.measurement import Interval, exact, mean_interval
from tests.examples import examples


def interval(value, low=math.nan, high=math.nan, n=5):
    return Interval(value, low, high, n)


@pytest.mark.parametrize("seed", range(40))
def test_a_verdict_is_that_of_two_t_tests(seed):
    """The oracle has p values of each one-sided test, and no interval."""
    generator = np.random.default_rng(seed)
    samples = generator.normal(generator.uniform(0.7, 1.3), 0.1, generator.integers(3, 12))
    low, high, margin = 0.9, 1.1, 0.05

    def p(bound, alternative):
        return stats.ttest_1samp(samples, bound, alternative=alternative).pvalue

    least, most = low * (1 - margin), high * (1 + margin)
    expected = UNDECIDED
    if max(p(least, "greater"), p(most, "less")) <= 1 - (1 + CONFIDENCE) / 2:
        expected = REPRODUCED
    elif min(p(least, "less"), p(most, "greater")) <= 1 - (1 + CONFIDENCE) / 2:
        expected = NOT_REPRODUCED
    ours = estimate(mean_interval(samples, CONFIDENCE), SEEDS)
    assert judge(ours, low, high, margin) == expected


@pytest.mark.parametrize(
    ("samples", "verdict"),
    [
        ([0.98, 1.0, 1.02], REPRODUCED),
        ([0.90, 1.0, 1.10], UNDECIDED),
        ([1.48, 1.5, 1.52], NOT_REPRODUCED),
        ([0.99, 1.01], UNDECIDED),  # two have no interval
    ],
)
def test_a_verdict_by_hand(samples, verdict):
    """t(2, 95 %) is 2.92, so that 0.02 becomes 2.92 · 0.02/√3 = 0.034, and 0.1 becomes 0.169."""
    ours = estimate(mean_interval(samples, CONFIDENCE), SEEDS)
    assert judge(ours, 1, 1, 0.1) == verdict
    assert math.isnan(ours.low) == (len(samples) < 3)


positive = st.floats(0.01, 100)


@examples(300)
@given(
    middle=positive, below=positive, above=positive, share=st.floats(0, 1), low=positive,
    wider=st.floats(1, 3), margin=st.sampled_from([0, 0.02, 0.15]),
    side=st.sampled_from(["both", "at least", "at most"]),
)  # fmt: skip
def test_more_runs_never_weaken_a_verdict(middle, below, above, share, low, wider, margin, side):
    """An interval that shrinks around its value: a decided verdict stays as it is."""
    most = math.inf if side == "at least" else low * wider
    least = -math.inf if side == "at most" else low
    before = estimate(interval(middle, middle - below, middle + above), SEEDS)
    after = estimate(interval(middle, middle - share * below, middle + share * above), SEEDS)
    first, second = (judge(x, least, most, margin) for x in (before, after))
    assert first in (second, UNDECIDED)
    if second == NOT_REPRODUCED:  # and so the value itself is outside
        assert not least * (1 - margin) <= middle <= most * (1 + margin)


@pytest.mark.parametrize(
    ("ours", "verdict", "why"),
    [
        (exact(0.229), REPRODUCED, ""),
        (interval(0.25, 0.24, 0.26), REPRODUCED, ""),  # within 15 %, from 0.195 to 0.263
        (interval(0.25, 0.24, 0.27), UNDECIDED, "5 seeds are too few"),
        (interval(0.3, 0.27, 0.33), NOT_REPRODUCED, "its steps take longer"),
        (interval(0.18, 0.17, 0.19), NOT_REPRODUCED, "ours is lower"),
        (interval(9.0, 0.2, 17.8), UNDECIDED, "5 seeds are too few"),
        (interval(0.229, 0.22, 0.24, n=2), UNDECIDED, "no interval of fewer than 3 seeds"),
        (interval(math.nan), UNDECIDED, "a run has diverged"),
        (Unreached(2, 5, interval(0.4, 0.3, 0.5)), NOT_REPRODUCED, "the estimate's noise keeps"),
        (Unreached(4, 5, interval(0.2, 0.1, 0.3)), UNDECIDED, "runs end before"),
        (Unreached(0, 1, interval(0.4, n=1)), UNDECIDED, "no interval of fewer than 3 seeds"),
    ],
)  # fmt: skip
def test_verdicts_on_a_number(ours, verdict, why):
    assert FACTS["mlp_2e-4.T_ratio"].low == FACTS["mlp_2e-4.T_ratio"].high == 0.229
    found = compare("mlp_2e-4.T_ratio", ours, interval(0.2), of=SEEDS)
    assert found.verdict == verdict and found.why.startswith(why)
    assert found.low_rank.value == 0.2
    assert found.ours.unreached == (ours.n - ours.reached if isinstance(ours, Unreached) else 0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.05, 1.2, REPRODUCED),
        (0.95, 1.2, UNDECIDED),
        (0.8, 0.99, NOT_REPRODUCED),
        (1.1, 90.0, REPRODUCED),  # however far on that side
    ],
)
def test_verdicts_on_a_side(low, high, verdict):
    """`replications.slower` says above 1, `replications.backprop_wins` below 1."""
    above = interval((low + high) / 2, low, high)
    assert compare("replications.slower", above, of=TURNS).verdict == verdict
    low, high = 1 / high, 1 / low
    below = interval((low + high) / 2, low, high)
    assert compare("replications.backprop_wins", below, of=SEEDS).verdict == verdict


def test_an_order_of_magnitude_is_a_range():
    """The value at the end of Beale is of the order 1e-4, from 1e-5 to 1e-3."""
    for low, high, verdict in ((3e-5, 3e-4, REPRODUCED), (3e-6, 3e-4, UNDECIDED)):
        assert compare("beale.final", interval(1e-4, low, high), of=SEEDS).verdict == verdict


def test_a_range_of_the_paper_has_the_margin_at_both_ends():
    for low, high, verdict in (
        (2.0, 2.9, REPRODUCED),
        (1.9, 2.9, UNDECIDED),
        (2.0, 3.0, UNDECIDED),
    ):
        assert compare("mlp.R_f", interval(2.5, low, high), of=TURNS).verdict == verdict


def test_an_error_rate_has_a_relative_margin():
    """Accuracies of 0.97 and 0.96 are within 10 % of each other, error rates of 3 and 4 % not."""
    ratio = FACTS["mlp_2e-4.error_ratio"].low
    near, far = (interval(x, x - 0.01, x + 0.01) for x in (ratio * 1.05, ratio * 4 / 3))
    assert compare("mlp_2e-4.error_ratio", near, of=SEEDS).verdict == REPRODUCED
    assert compare("mlp_2e-4.error_ratio", far, of=SEEDS).verdict == NOT_REPRODUCED


def test_a_run_without_learning_does_not_reproduce_the_paper():
    """At η₀ = 2e-5 the loss falls from 2.30 to 2.2 for both."""
    ratio = 2.3 / 2.2
    found = compare("mlp_2e-5.loss_ratio", interval(ratio, ratio - 0.01, ratio + 0.01), of=SEEDS)
    assert found.verdict == NOT_REPRODUCED


def test_the_reason_is_of_the_side_on_which_ours_is():
    lower, higher = (compare("cnn.R_b", exact(x), of=TURNS) for x in (1.4, 9.0))
    assert lower.verdict == higher.verdict == NOT_REPRODUCED
    assert lower.why == FACTS["cnn.R_b"].below and higher.why == FACTS["cnn.R_b"].above


@pytest.mark.parametrize("value", [0.5, 50.0])
@pytest.mark.parametrize("key", ["logistic.T_f", "mlp_2e-4.loss_f", "mlp_2e-4.error_b"])
def test_what_the_paper_leaves_open_cannot_be_checked(key, value):
    """Whatever ours is: it would else be a claim that cannot fail."""
    found = compare(key, interval(value, 0.9 * value, 1.1 * value), of=SEEDS)
    assert found.verdict == UNCHECKED and found.why == FACTS[key].unchecked
    assert not_found(key).verdict == UNCHECKED


def test_another_setting_is_not_the_papers():
    found = compare("mlp_2e-4.loss_ratio", exact(0.6), of=SEEDS, differs="after 8 iterations")
    assert (found.verdict, found.why) == (ABSENT, "after 8 iterations")
    assert not_found("mlp_2e-4.loss_ratio").verdict == ABSENT
    assert compare("no such fact", exact(1.0), of=SEEDS) is None


def test_two_points_of_a_grid_are_no_interval():
    found = compare("replications.rates", Interval(1765, 566.7, 5500, 1), of=SEEDS)
    assert found.verdict == UNDECIDED and str(found.ours) == "1,760"


def test_every_fact_has_a_mark_and_a_range():
    for key, fact in FACTS.items():
        assert fact.mark in "FQU" and fact.value
        assert fact.low <= fact.high or fact.unchecked, key


def test_no_claim_holds_by_construction():
    """Numbers on either side of its range are outside it."""
    for key, fact in FACTS.items():
        if fact.unchecked:
            continue
        outside = [fact.low / 2 if fact.low > 0 else None, 2 * fact.high]
        numbers = [exact(x) for x in outside if x is not None and math.isfinite(x)]
        verdicts = {compare(key, x, of=SEEDS).verdict for x in numbers}
        assert verdicts == {NOT_REPRODUCED}, key
