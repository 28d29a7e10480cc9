"""Confidence intervals of means, medians and proportions.

SciPy, which JAX needs, is imported where it is used, since its import takes half a second.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with its confidence interval and its number of samples.

    The ends are nan for a single sample, and the number itself for an exact number. No interval of
    fewer than three samples is printed.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n < 3 or math.isnan(self.low) or self.low == self.high:
            return significant(self.value)
        return f"{significant(self.value)} [{significant(self.low)}, {significant(self.high)}]"


def significant(number: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, as reports write every measurement.

    >>> significant(0.98765), significant(1234.5), significant(0.0001234), significant(1.272e9)
    ('0.988', '1,230', '1.23e-4', '1.27e9')
    """
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    rounded = float(f"{number:.{digits - 1}e}")
    if 1e-3 <= abs(rounded) < 1e6:
        decimals = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)
        text = f"{rounded:,.{decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def exact(number: float) -> Interval:
    """Return a number that does not vary as an interval of no width.

    >>> print(exact(2.0))
    2
    """
    return Interval(number, number, number, 1)


def mean_interval(samples: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Return the mean of independent samples, with Student's interval: mean ± t s/√n.

    With one sample there is no interval, and its ends are nan.

    >>> print(mean_interval([1.0, 2.0, 3.0]))
    2 [-0.484, 4.48]
    """
    from scipy import special

    values = np.asarray(samples, float)
    n = len(values)
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, float("nan"), float("nan"), n)
    # Not `scipy.stats.t.interval`: of samples that are all equal that is nan.
    half = special.stdtrit(n - 1, (1 + confidence) / 2) * values.std(ddof=1) / n**0.5
    return Interval(mean, float(mean - half), float(mean + half), n)


def geometric_mean_interval(
    samples: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Interval:
    """Return the geometric mean of positive samples, with Student's interval of their logarithms.

    With fewer than three samples there is no interval, and its ends are nan.

    >>> print(geometric_mean_interval([1.0, 2.0, 4.0]), geometric_mean_interval([1.0, 4.0]))
    2 [0.357, 11.2] 2
    """
    with np.errstate(all="ignore"):  # a sample that is not positive has no logarithm
        *logarithms, n = mean_interval(np.log(samples), confidence)
        mean, low, high = map(float, np.exp(logarithms))
    return Interval(mean, low, high, n) if n >= 3 else Interval(mean, math.nan, math.nan, n)


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the share of successes in n independent trials, with Wilson's interval.

    With z the quantile of the normal distribution, the interval is the set of all p for which
    |successes/n − p| ≤ z √(p (1 − p)/n).

    >>> print(proportion_interval(0, 20), proportion_interval(10, 20))
    0 [0, 0.161] 0.5 [0.299, 0.701]

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (1927).
    """
    from scipy import stats

    ends = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(ends.low), float(ends.high), n)


def median_interval(samples: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Return the median of independent samples, with an interval free of assumptions.

    The interval is between the order statistics x_(k) and x_(n+1−k). It misses the median of
    the distribution if fewer than k samples fall on one side of that, so with probability
    2 P(B < k), B binomial (n, ½); k is the largest for which this is at most 1 − confidence.
    With fewer than 6 samples there is none for 95 %, and the ends are nan.

    >>> print(median_interval(range(9)))
    4 [1, 7]
    """
    from scipy import stats

    values = np.asarray(samples, float)
    ends = stats.quantile_test(values).confidence_interval(confidence)
    return Interval(float(np.median(values)), float(ends.low), float(ends.high), len(values))
