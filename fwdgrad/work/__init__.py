"""Floor 2, work: training, measuring and records.

Knows an estimator only through its call, and a problem only as parameters, loss and examples.
"""

from fwdgrad.util.validation import missing_extra

try:
    from fwdgrad.work.checkpoints import CheckpointError
    from fwdgrad.work.clipping import ClippingState, clip_by_running_quantile, clipped_sgd
    from fwdgrad.work.guidance import GuidedProblem, guided_optimizer
    from fwdgrad.work.intervals import (
        Interval,
        exact,
        mean_interval,
        median_interval,
        proportion_interval,
    )
    from fwdgrad.work.jax_settings import changed_settings, jax_settings
    from fwdgrad.work.locks import FolderInUseError, hold
    from fwdgrad.work.provenance import OtherCodeWarning, provenance
    from fwdgrad.work.records import (
        Metrics,
        RecordError,
        RunRecord,
        config_identity,
        read_run,
        run_folder,
    )
    from fwdgrad.work.resuming import DivergedError, finished_run
    from fwdgrad.work.run_settings import Settings
    from fwdgrad.work.schedules import exponential_decay
    from fwdgrad.work.timing import interleaved_seconds
    from fwdgrad.work.training import TrainableProblem, train
except ModuleNotFoundError as error:
    raise missing_extra("fwdgrad.work", error) from error

__all__ = [
    "CheckpointError",
    "ClippingState",
    "DivergedError",
    "FolderInUseError",
    "GuidedProblem",
    "Interval",
    "Metrics",
    "OtherCodeWarning",
    "RecordError",
    "RunRecord",
    "Settings",
    "TrainableProblem",
    "changed_settings",
    "clip_by_running_quantile",
    "clipped_sgd",
    "config_identity",
    "exact",
    "exponential_decay",
    "finished_run",
    "guided_optimizer",
    "hold",
    "interleaved_seconds",
    "jax_settings",
    "mean_interval",
    "median_interval",
    "proportion_interval",
    "provenance",
    "read_run",
    "run_folder",
    "train",
]
