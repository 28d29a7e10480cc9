"""Floor 2, work: training, measuring and records.

Knows an estimator only through its call, and a problem only as parameters, loss and examples.
"""

from fwdgrad.work.checkpoints import CheckpointError
from fwdgrad.work.guidance import GuidedProblem, guided_optimizer
from fwdgrad.work.intervals import Interval, exact, mean_interval, median_interval
from fwdgrad.work.provenance import provenance
from fwdgrad.work.records import Metrics, RunRecord, config_identity, read_run, run_folder
from fwdgrad.work.schedules import exponential_decay
from fwdgrad.work.timing import interleaved_seconds
from fwdgrad.work.training import (
    DivergedError,
    Settings,
    TrainableProblem,
    finished_run,
    train,
)

__all__ = [
    "CheckpointError",
    "DivergedError",
    "GuidedProblem",
    "Interval",
    "Metrics",
    "RunRecord",
    "Settings",
    "TrainableProblem",
    "config_identity",
    "exact",
    "exponential_decay",
    "finished_run",
    "guided_optimizer",
    "interleaved_seconds",
    "mean_interval",
    "median_interval",
    "provenance",
    "read_run",
    "run_folder",
    "train",
]
