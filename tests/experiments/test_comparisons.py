"""Paired comparisons: intervals of crossed effects, and the correction for many."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.common.comparisons import Comparison, compare, holm


def test_a_difference_by_seed_is_the_paired_t_test():
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    [found] = compare([("a", "b")], [a - b])
    expected = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue)
    ends = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    inner = expected.confidence_interval(0.9)
    assert (found.inner_low, found.inner_high) == pytest.approx((inner.low, inner.high))
    assert found.n == 7


@pytest.mark.parametrize("of_seeds", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("of_images", [0.0, 0.8])
def test_intervals_of_crossed_effects_cover_the_mean(of_seeds, of_images):
    """With 95 %, for other seeds and other images; 800 trials miss it 40 ± 3·6.2 times."""
    generator, trials = np.random.default_rng(1), 800
    missed = 0
    for _ in range(trials):
        samples = (
            0.3
            + of_seeds * generator.normal(size=(5, 1))
            + of_images * generator.normal(size=(1, 60))
            + generator.normal(size=(5, 60))
        )
        [found] = compare([("a", "b")], [samples])
        missed += not found.low <= 0.3 <= found.high
    assert missed <= 0.05 * trials + 3 * math.sqrt(0.05 * 0.95 * trials)


def test_seeds_alone_would_claim_too_much_for_other_images():
    """Seeds that agree with each other on few images say little of other images."""
    generator = np.random.default_rng(2)
    samples = np.repeat(generator.normal(size=(1, 50)), 5, axis=0)
    samples = samples + 0.01 * generator.normal(size=samples.shape)
    [crossed], [by_seed] = (compare([("a", "b")], [x]) for x in (samples, samples.mean(1)))
    assert crossed.difference == pytest.approx(by_seed.difference)
    expected = samples.mean(0).std(ddof=1) / math.sqrt(50) * 2 * stats.t(49).ppf(0.975)
    assert crossed.high - crossed.low == pytest.approx(expected, rel=1e-3)
    assert by_seed.high - by_seed.low < 0.1 * expected


def test_one_seed_has_no_interval():
    [found] = compare([("a", "b")], [np.array([1.0])])
    assert found.difference == 1 and math.isnan(found.low) and math.isnan(found.p_value)
    assert found.verdict(0.2) == "undecided"


def test_holm_against_scipys_stepwise_definition():
    p = np.array([0.001, 0.2, 0.012, 0.04, 0.3])
    order = np.argsort(p)
    expected, largest = np.empty(5), 0.0
    for k, i in enumerate(order):
        largest = max(largest, min(1.0, (5 - k) * p[i]))
        expected[i] = largest
    np.testing.assert_allclose(holm(p), expected)
    assert (holm(np.array([0.5, 0.9])) <= 1).all()


def test_the_verdict_is_of_the_corrected_p_value():
    names = [("a", "b")] * 3
    samples = np.array([0.9, 1.1, 1.0, 1.3])
    one, *_ = compare(names, [samples, samples - 1.05, -samples])
    assert one.p_value < one.corrected and one.verdict(0.2) == "higher"
    *_, last = compare(names, [samples, samples - 1.05, -samples])
    assert last.verdict(0.2) == "lower"


@pytest.mark.parametrize(
    ("inner", "verdict"), [((-0.1, 0.19), "equivalent"), ((-0.1, 0.21), "undecided")]
)
def test_equivalence_is_within_the_margin(inner, verdict):
    found = Comparison("a", "b", 0.05, -0.2, 0.3, 0.5, 0.9, *inner, 5)
    assert found.verdict(0.2) == verdict
