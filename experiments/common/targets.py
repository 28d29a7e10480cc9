"""Expectations of a config, compared with measurements."""

import math

from fwdgrad.measurement import Interval


def verdict(found: Interval, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """Return on which side of a bound the mean is, and whether the interval leaves that open.

    >>> verdict(Interval(98.4, 98.35, 98.45, 5), at_least=98.3)
    'at least 98.3 wanted: reached'
    >>> verdict(Interval(98.4, 98.2, 98.6, 5), at_least=98.3)
    'at least 98.3 wanted: reached by the mean, not by all of its interval'
    >>> verdict(Interval(1.3, math.nan, math.nan, 1), at_most=1.2)
    'at most 1.2 wanted: missed, of one sample'
    """
    bound = at_most if at_least is None else at_least
    assert bound is not None
    good = found.value >= bound if at_most is None else found.value <= bound
    said = f"{'at least' if at_most is None else 'at most'} {bound:g} wanted: "
    said += "reached" if good else "missed"
    if math.isnan(found.low):
        return f"{said}, of one sample"
    if not found.low < bound < found.high:
        return said
    return f"{said} by the mean, not by all of its interval"
