"""Measurements: the time, memory and operations of a step, with confidence intervals."""

from fwdgrad.util.validation import missing_extra

try:
    from fwdgrad.measurement.cache import measured_once
    from fwdgrad.measurement.intervals import (
        Interval,
        exact,
        mean_interval,
        median_interval,
        proportion_interval,
    )
    from fwdgrad.measurement.memory import peak_bytes
    from fwdgrad.measurement.step_program import (
        Step,
        StepProgram,
        loss_step,
        relative_costs,
        sgd_step,
    )
    from fwdgrad.measurement.timing import interleaved_seconds
except ModuleNotFoundError as error:
    raise missing_extra("fwdgrad.measurement", error) from error

__all__ = [
    "Interval",
    "Step",
    "StepProgram",
    "exact",
    "interleaved_seconds",
    "loss_step",
    "mean_interval",
    "measured_once",
    "median_interval",
    "peak_bytes",
    "proportion_interval",
    "relative_costs",
    "sgd_step",
]
