"""Cosine, bias and variance of an estimate, by as many keys as an interval takes."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.util.intervals import Interval, mean_interval
from fwdgrad.util.moments import error_moments
from fwdgrad.util.trees import Array

GROUPS = 16  # of keys, each of which gives one sample of every quantity
FEWEST_GROUPS = 3  # of an interval
PILOT = 2  # keys of a group in the first round, the fewest that tell bias and variance apart
_GROWTH = 1.5  # of a round over the one before, or it is not worth losing that one's keys
_ROUNDING = 1e-6  # the largest half-width that counts as rounding of an exact gradient

UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)


class Quality(NamedTuple):
    """The quality of an estimate by `error_moments`; n of an interval is the number of groups."""

    cosine: Interval = UNKNOWN
    slope: Interval = UNKNOWN
    bias: Interval = UNKNOWN
    variance: Interval = UNKNOWN
    num_keys: int = 0


class Precision(NamedTuple):
    """The precision wanted of cosine and variance, and the limits of keys and of seconds.

    Attributes:
      half_width: of the 95 % interval, over the value.
      max_keys: the most keys of an interval.
      seconds: of drawing, after which no further group begins once there are three.
    """

    half_width: float
    max_keys: int
    seconds: float


def measure_quality(
    estimate: Callable[[Array, Any], Sequence[Array]],
    given: Any,
    key: Array,
    target: Sequence[Array] | None,
    precision: Precision,
    compiler_options: dict[str, Any] | None = None,
) -> Quality:
    """Return the quality of an estimate, with intervals over groups of keys.

    Rounds of new keys, the first with two keys a group; each tells how many keys the precision
    takes, and the next one has as many, or twice as many as before. Intervals are of the last round
    alone. The last one is precise enough, or the limits allow none that is half as large again.

    Args:
      estimate: key, `given` -> the leaves of g.
      given: the arrays that the estimate reads.
      key: a PRNG key.
      target: the exact gradient; None if it is not known: then the variance is not over its square,
        and there is nothing else.
      precision: precision and limits.
      compiler_options: XLA's, for this platform.
    """
    zeros = [jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(estimate, key, given)]

    def moments(
        first: Array, size: Array, key: Array, given: Any, target: Sequence[Array]
    ) -> dict[str, Array]:
        def draw(i: Array) -> Sequence[Array]:
            return estimate(jax.random.fold_in(key, first + i), given)

        return error_moments(draw, size, target)

    fixed = (key, given, zeros if target is None else target)
    compiled = jax.jit(moments).lower(0, PILOT, *fixed).compile(compiler_options)
    start = time.perf_counter()

    def samples(first: int, size: int) -> list[dict[str, float]]:
        found: list[dict[str, float]] = []
        for group in range(min(GROUPS, precision.max_keys // PILOT)):
            late = time.perf_counter() - start > precision.seconds
            if late and len(found) >= FEWEST_GROUPS:
                break
            of_group = compiled(first + group * size, size, *fixed)
            found.append({name: float(x) for name, x in of_group.items()})
        return found

    first, size = 0, PILOT
    while True:
        found = samples(first, size)
        first += size * len(found)
        share = (time.perf_counter() - start) / precision.seconds
        wanted = size * max(2.0, (_half_width(found) / precision.half_width) ** 2)
        affordable = min(precision.max_keys // len(found), first / len(found) * (1 / share - 1))
        if _half_width(found) <= precision.half_width or affordable < _GROWTH * size:
            break
        size = math.ceil(min(wanted, affordable))
    known = Quality._fields[:-1] if target is not None else ("variance",)
    intervals = {name: mean_interval([sample[name] for sample in found]) for name in known}
    return Quality(**intervals, num_keys=len(found) * size)


def _half_width(found: Sequence[Mapping[str, float]]) -> float:
    """Return the wider one of the half-widths of cosine and variance, over their values."""
    widths = [0.0]
    unit = max(x["error"] for x in found) if math.isnan(found[0]["cosine"]) else 1.0
    for name, rounding in (("cosine", _ROUNDING), ("variance", _ROUNDING * unit)):
        value, low, high, _ = mean_interval([sample[name] for sample in found])
        half = (high - low) / 2
        if half > rounding:  # nan is not
            widths.append(half / abs(value) if value else math.inf)
    return max(widths)
