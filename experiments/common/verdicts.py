"""Verdicts on a number of the paper: equivalence within a margin, by two one-sided tests.

The margin is fixed with the claim, before our number is known. Our number

- reproduces the paper's if all of its interval lies within the margin: with a 90 % interval these
  are two one-sided tests at 5 % (TOST, Schuirmann 1987), one for each end of the margin;
- does not reproduce it if all of its interval lies outside;
- else the samples are too few to decide.

So more samples never weaken a verdict: an interval that shrinks stays where it is. A one-sided
claim ("above 1") has no margin, and holds if all of a one-sided 95 % bound is on its side, which is
an end of the 90 % interval. Fewer than three samples have no interval.
"""

import math
from typing import NamedTuple

from fwdgrad.measurement import Interval, significant

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "undecided"
UNCHECKED, ABSENT = "cannot be checked", "not in this preset"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNDECIDED, UNCHECKED, ABSENT)

LEAST_SAMPLES = 3
CONFIDENCE = 0.9  # of the intervals of verdicts

# Margins, relative to the paper's number. Read off a plot: a line of a printed figure is read to a
# few per cent of its axis, and losses, error rates and bytes are shown on axes from near zero.
PLOT = 0.1
# R, T and their ratios: the paper times one program twice, the step of its MLP at both rates, and
# finds R_f 2.329 and 2.607, R_b 3.971 and 4.359. So its own repeats differ by 12 %, rounded up.
TIMES = 0.15
# A loss on an axis from 2.2 to 2.3, where 10 % would be all of the axis.
NARROW_PLOT = 0.02
# A one-sided claim, or an order of magnitude, which is a range of a decade to either side.
NONE = 0.0


class Samples(NamedTuple):
    """The kind of samples that an interval is over.

    Attributes:
      name: of the samples, in the plural.
      confidence: of the interval.
    """

    name: str
    confidence: float


SEEDS = Samples("seeds", CONFIDENCE)
# Costs are recorded with 95 % intervals, which are wider, so that they decide less.
PROCESSES = Samples("processes", 0.95)
TURNS = Samples("turns", 0.95)  # of one process
EXACT = Samples("exact", 1.0)
_SINGULAR = {"seeds": "seed", "turns": "turn", "processes": "process"}


class Estimate(NamedTuple):
    """A number of ours.

    Attributes:
      value, low, high, n: as of `Interval`; low and high are nan without an interval.
      of: the name of the samples.
      confidence: of the interval.
      unreached: the samples that never get where they are timed to. They count with the end of
        their run, so that value, low and high are bounds from below.
    """

    value: float
    low: float
    high: float
    n: int
    of: str
    confidence: float
    unreached: int = 0

    def __str__(self) -> str:
        text = significant(self.value)
        if not (math.isnan(self.low) or self.low == self.high):
            text += f" [{significant(self.low)}, {significant(self.high)}]"
        return f"> {text}" if self.unreached else text

    @property
    def sentence(self) -> str:
        """Return the number with its samples.

        >>> estimate(Interval(0.5, 0.4, 0.6, 5), SEEDS).sentence
        '0.5 [0.4, 0.6] (5 seeds)'
        """
        if self.of == EXACT.name:
            return str(self)
        never = f", {self.unreached} never there" if self.unreached else ""
        name = self.of if self.n != 1 else _SINGULAR[self.of]
        return f"{self} ({self.n} {name}{never})"


def estimate(interval: Interval, samples: Samples, unreached: int = 0) -> Estimate:
    """Return a number of ours; it has no interval if there are fewer than three samples."""
    value, low, high, n = interval
    if low == high and n == 1:
        return Estimate(value, low, high, n, *EXACT)
    if n < LEAST_SAMPLES:
        low = high = math.nan
    return Estimate(value, low, high, n, *samples, unreached)


def judge(ours: Estimate, low: float, high: float, margin: float) -> str:
    """Return one of the first three verdicts on the claim that a number is from low to high.

    >>> judge(estimate(Interval(0.55, 0.52, 0.58, 5), SEEDS), 0.5, 0.6, NONE)
    'reproduced'

    Args:
      ours: our number.
      low, high: the range of the claim; infinite on one side for a one-sided claim.
      margin: relative to low and high.
    """
    least, most = low * (1 - margin), high * (1 + margin)
    upper = math.inf if ours.unreached else ours.high
    if ours.low > most or upper < least:
        return NOT_REPRODUCED
    if least <= ours.low and upper <= most:
        return REPRODUCED
    return UNDECIDED
