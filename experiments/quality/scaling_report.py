"""The section of `scaling_laws` in the report: findings computed from the tables, and tables."""

import math
from collections.abc import Iterator

from experiments.common import style, tables
from experiments.common.style import FEWEST
from experiments.quality.power_laws import PowerLaw
from experiments.quality.scaling_fits import (
    BUDGETS,
    NUMBER,
    PARAMETERS,
    Errors,
    Scaling,
    best_number,
    laws_of,
    laws_of_losses,
    least_overhead,
    meets,
    over_law,
    scatter,
)
from fwdgrad.measurement import Interval, mean_interval, significant

_AXES = {
    PARAMETERS: "parameters d", "width": "width", "depth": "hidden layers",
    "num_tangents": "tangents or blocks K", "rank": "rank",
}  # fmt: skip
_SHOWN = (
    "along", "estimator", "from … to", "exponent", "theory's", "farthest point", "least overhead",
    "overhead's exponent", "overhead 1 at",
)  # fmt: skip
_SHOWN_RATIOS = ("estimator", "error over theory's", "scatter between seeds")
_SHOWN_LOSSES = (
    "after equal", "estimator", "loss's exponent", "farthest point", "loss over backprop's",
    "exponent of that", "equal to backprop at",
)  # fmt: skip
_ERRORS = """\
The error E‖g − ∇f‖²/‖∇f‖² of an estimate at the start of an MLP, of {depth} hidden layers of
{width} units where they do not vary. A seed is a start, a minibatch and draws; exponents are by
least squares of logarithms for each seed, with 95 % intervals over the seeds (Student's t).
Theory's exponent is the same fit of the law's values, which are no exact power law in the width.
The farthest point from a fit is given as a factor.""".replace("\n", " ")
_OVERHEAD = """\
*Overhead*: (1 + error) times the operations of a step over backprop's. If the curvature is the same
in all directions, the best rate is 1/(1 + error) of backprop's, and so is the descent of a step:
the estimator meets backprop where the overhead is 1. The place is extrapolated by the fit, with
Fieller's interval, if a step that was measured costs less than backprop's; along K the error is a
power law and the operations are linear, so there is a best K. XLA counts a part of the operations
of sampling, and none of a QR factorisation. Control variates were learned from {guess_steps}
minibatches at these very parameters.""".replace("\n", " ")


def section(scaling: Scaling, name: str) -> str:
    """Return the section in Markdown."""
    about = scaling.information
    text = ["## Scaling laws (not in the paper)", ""]
    if scaling.errors:
        text += [
            f"![Errors of estimates against size and number]({name}.png)", "",
            _ERRORS.format(**about), "", _OVERHEAD.format(**about), "",
            *_found(scaling), "",
            *tables.markdown(_SHOWN, _error_rows(scaling)), "",
            *tables.markdown(_SHOWN_RATIOS, _ratio_rows(scaling)),
        ]  # fmt: skip
    if scaling.losses:
        training = about["training"]
        text += [
            "", f"![Losses after equal work]({name}_training.png)", "",
            f"Validation losses after {training['operations']:.3g} operations, and after "
            f"{significant(scaling.seconds)} s, the least time of a run. Each line tries "
            f"{training['tuning']['num_rates']} constant rates with "
            f"{len(training['tuning']['seeds'])} other seed at every width, and takes the one of "
            "the lowest loss after equal operations. The time of a run is its steps times the time "
            "of a step.", "",
            *tables.markdown(_SHOWN_LOSSES, _loss_rows(scaling)),
            *(["", "No rate works for " + ", ".join(
                f"{style.label(line)} at {panel}" for panel, line in training["failed"]) + "."]
              if training["failed"] else []),
        ]  # fmt: skip
    return "\n".join(text)


def _each(scaling: Scaling) -> Iterator[tuple[str, str, Errors, dict[str, PowerLaw]]]:
    for axis in _AXES:
        for line, errors in scaling.errors.get(axis, {}).items():
            yield axis, line, errors, laws_of(errors)


def _found(scaling: Scaling) -> list[str]:
    """Return sentences on the laws, and on where estimators meet backprop."""
    differences = [
        mean_interval(laws["error"].exponents - laws["law"].exponents)
        for *_, laws in _each(scaling)
    ]
    known = [x for x in differences if x.n >= FEWEST and not math.isnan(x.low)]
    hold = sum(x.low <= 0 <= x.high for x in known)
    ratios = [over_law(x) for x in scaling.ratios.values()]
    ratios = [x for x in ratios if not math.isnan(x.low)]
    said = []
    if known:
        furthest = max(abs(x.value) for x in known)
        said.append(
            f"Of {len(known)} exponents with a theory, the interval of measured less theory's "
            f"holds 0 in {hold}; the largest difference is {significant(furthest)}."
        )
    if ratios:
        values = [x.value for x in ratios]
        said.append(
            f"The errors are {significant(min(values))} to {significant(max(values))} of theory's "
            f"by line, and the interval holds 1 in {sum(x.low <= 1 <= x.high for x in ratios)} of "
            f"{len(ratios)}. The standard error of an error at one seed was planned as "
            f"{100 * scaling.information['standard_error']:g} %."
        )
    meeting = [
        f"{style.label(line)}, {_AXES[axis]} of {place} (measured: {_range(errors)})"
        for axis, line, errors, laws in _each(scaling)
        for is_met, place in [_meeting(axis, errors, laws["overhead"])]
        if is_met
    ]
    lowest = min(
        ((least_overhead(errors)[1].value, line) for _, line, errors, _ in _each(scaling)),
        default=(math.nan, ""),
    )
    if meeting:
        said.append(f"Extrapolated, an overhead of 1 is reached by {'; '.join(meeting)}.")
    if ratios:
        others = "other estimator, along no other axis" if meeting else "estimator, along no axis"
        said.append(f"By these fits no {others}, meets backprop, at whatever width, depth or K.")
    said.append(
        f"The least overhead measured is {significant(lowest[0])}: {style.label(lowest[1])}."
    )
    return [" ".join(said)]


def _meeting(axis: str, errors: Errors, overhead: PowerLaw) -> tuple[bool, str]:
    """Return whether the fits let an estimator meet backprop, and where or why not."""
    if axis == PARAMETERS:  # a width says it
        return False, "–"
    if axis != NUMBER:
        if math.isnan(meets(errors).value) and not math.isnan(overhead.farthest):
            cheapest = significant(float(errors.operations.min()))
            return False, f"never: a step alone costs {cheapest} times backprop's, or more"
        return _place(overhead)
    at, least = best_number(errors)
    if least.n < FEWEST or math.isnan(least.low):
        return False, "–"
    if least.value <= 1:
        return True, f"{significant(at)}"
    return False, f"never: at least {least}, at {significant(at)}"


def _place(law: PowerLaw) -> tuple[bool, str]:
    """Return whether a law is 1 at an x of at least 1, and where or why not."""
    place = law.reaches(1.0)
    if place.n < FEWEST or math.isnan(law.exponent.low):
        return False, "–"
    if math.isnan(place.low):
        return False, "not told: the exponent's interval holds 0"
    if place.value < 1:
        return False, "never: below 1"
    return True, str(place)


def _error_rows(scaling: Scaling) -> Iterator[list[object]]:
    for axis, line, errors, laws in _each(scaling):
        at, least = least_overhead(errors)
        yield [
            _AXES[axis], style.label(line),
            _range(errors), laws["error"].exponent, _theory(laws["law"].exponent),
            significant(laws["error"].farthest), f"{least} at {at:,.10g}",
            laws["overhead"].exponent, _meeting(axis, errors, laws["overhead"])[1],
        ]  # fmt: skip


def _ratio_rows(scaling: Scaling) -> Iterator[list[object]]:
    for line, ratios in scaling.ratios.items():
        if not math.isnan((ratio := over_law(ratios)).value):
            yield [style.label(line), ratio, f"{100 * scatter(ratios):.2g} %"]


def _loss_rows(scaling: Scaling) -> Iterator[list[object]]:
    for budget in BUDGETS:
        for line, law, ratio in laws_of_losses(scaling, budget):
            of_ratio: list[object] = ["–", "–", "–"]
            if ratio is not None:
                ratios = scaling.losses[budget][line] / scaling.losses[budget]["backprop"]
                ends = (significant(float(x)) for x in (ratios[:, 0].mean(), ratios[:, -1].mean()))
                of_ratio = [" … ".join(ends), ratio.exponent, _place(ratio)[1]]
            yield [budget, style.label(line), law.exponent, significant(law.farthest), *of_ratio]


def _range(errors: Errors) -> str:
    return f"{errors.x.min():,.10g} … {errors.x.max():,.10g}"


def _theory(exponent: Interval) -> str:
    """Return theory's exponent, in the fourth decimal and without an interval of rounding."""
    if math.isnan(exponent.value):
        return "–"
    value, low, high = (round(x, 4) + 0.0 for x in exponent[:3])
    return str(Interval(value, low, high, exponent.n))
