"""Power laws y = c x^b, fitted for each seed, and the x at which such a law reaches a level."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from fwdgrad.measurement import Interval, mean_interval


class PowerLaw(NamedTuple):
    """A power law for each seed, by least squares of logarithms.

    Attributes:
      intercepts: ln c, (seeds,).
      exponents: b, (seeds,).
      farthest: the largest factor between the geometric mean over seeds and the mean law, 1 if all
        points lie on the law.
    """

    intercepts: np.ndarray
    exponents: np.ndarray
    farthest: float

    @property
    def exponent(self) -> Interval:
        """Return the mean exponent with Student's interval over the seeds."""
        return mean_interval(self.exponents)

    def at(self, x: Any) -> Any:
        """Return the geometric mean of the laws at x."""
        return np.exp(self.intercepts.mean() + self.exponents.mean() * np.log(x))

    def reaches(self, level: float, confidence: float = 0.95) -> Interval:
        """Return the x at which y is `level`, with Fieller's interval over the seeds.

        With z = ln x the interval is the set of all z at which Student's interval of the mean of
        ln c + b z − ln y holds 0. It is unbounded, and its ends are nan, if the interval of the
        exponent holds 0, or if there are fewer than three seeds.

        >>> law = fit(np.array([1.0, 10.0]), np.array([[100.0, 10.0]] * 3))
        >>> print(law.reaches(1.0))
        100

        Source: Fieller, Some Problems in Interval Estimation (1954).
        """
        n = len(self.exponents)
        intercepts = self.intercepts - math.log(level)
        a, b = intercepts.mean(), self.exponents.mean()
        with np.errstate(all="ignore"):
            value = float(np.exp(-a / b))
        if n < 3:
            return Interval(value, math.nan, math.nan, n)
        (aa, ab), (_, bb) = np.cov(intercepts, self.exponents) / n
        square = float(special.stdtrit(n - 1, (1 + confidence) / 2)) ** 2
        quadratic, half, constant = b**2 - square * bb, a * b - square * ab, a**2 - square * aa
        if not quadratic > 0:
            return Interval(value, math.nan, math.nan, n)
        root = math.sqrt(max(half**2 - quadratic * constant, 0.0))
        with np.errstate(over="ignore"):
            low, high = (float(np.exp((sign * root - half) / quadratic)) for sign in (-1, 1))
        return Interval(value, low, high, n)


def fit(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    """Fit a power law to each seed.

    Args:
      x: positive, (points,).
      y: (seeds, points). Points at which y of some seed is not finite and positive are left out;
        the law is nan if those that are left have fewer than two different x.

    >>> law = fit(np.array([1.0, 2.0, 4.0]), np.array([[3.0, 6.0, 12.0], [3.0, 12.0, 48.0]]))
    >>> law.exponents.tolist(), round(float(law.at(2.0)), 3)
    ([1.0, 2.0], 8.485)
    """
    kept = (np.isfinite(x) & (x > 0)) & (np.isfinite(y) & (y > 0)).all(0)
    if len(np.unique(x[kept])) < 2:
        nothing = np.full(len(y), math.nan)
        return PowerLaw(nothing, nothing, math.nan)
    log_x, log_y = np.log(x[kept]), np.log(y[:, kept])
    centred = log_x - log_x.mean()
    exponents = log_y @ centred / (centred @ centred)
    intercepts = log_y.mean(1) - exponents * log_x.mean()
    distances = log_y.mean(0) - intercepts.mean() - exponents.mean() * log_x
    return PowerLaw(intercepts, exponents, float(np.exp(np.abs(distances).max())))
