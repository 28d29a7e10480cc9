"""Measurements: the time, memory and operations of a step, with confidence intervals."""

from fwdgrad.util.validation import missing_extra

try:
    from fwdgrad.measurement.cache import measured_once
    from fwdgrad.measurement.memory import peak_bytes
    from fwdgrad.measurement.processes import (
        Program,
        Sample,
        host_state,
        ratio_over_processes,
        seconds_over_processes,
        time_in_processes,
    )
    from fwdgrad.measurement.step_program import (
        Step,
        StepProgram,
        loss_step,
        sgd_step,
    )
    from fwdgrad.measurement.workers import in_fresh_process, shared_processes
    from fwdgrad.util.intervals import (
        Interval,
        exact,
        geometric_mean_interval,
        mean_interval,
        median_interval,
        proportion_interval,
        significant,
    )
    from fwdgrad.util.timing import interleaved_seconds
except ModuleNotFoundError as error:
    raise missing_extra("fwdgrad.measurement", error) from error

__all__ = [
    "Interval",
    "Program",
    "Sample",
    "Step",
    "StepProgram",
    "exact",
    "geometric_mean_interval",
    "host_state",
    "in_fresh_process",
    "interleaved_seconds",
    "loss_step",
    "mean_interval",
    "measured_once",
    "median_interval",
    "peak_bytes",
    "proportion_interval",
    "ratio_over_processes",
    "seconds_over_processes",
    "sgd_step",
    "shared_processes",
    "significant",
    "time_in_processes",
]
