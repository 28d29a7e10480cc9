"""The names of the former package `fwdgrad.work`: each is an error that names its new package."""

from typing import Any

_NOW = {
    "fwdgrad.training": (
        "ClippingState DivergedError Settings TrainableProblem "
        "clip_by_running_quantile clipped_sgd exponential_decay finished_run guided_optimizer train"
    ),
    "fwdgrad.measurement": (
        "Interval exact interleaved_seconds mean_interval median_interval proportion_interval"
    ),
    "fwdgrad.records": (
        "CheckpointError FolderInUseError Metrics OtherCodeWarning RecordError RunRecord "
        "changed_settings config_identity hold jax_settings provenance read_run run_folder"
    ),
}


def __getattr__(name: str) -> Any:
    if name == "GuidedProblem":
        raise ImportError(
            "fwdgrad.work.GuidedProblem is no more. Use the method `guided` of the estimator, "
            "fwdgrad.forward_value_and_grad(loss)."
        )
    for package, names in _NOW.items():
        if name in names.split():
            raise ImportError(f"fwdgrad.work.{name} is no more. Use {package}.{name}.")
    # Not an ImportError: Python and pytest look for names of their own.
    raise AttributeError(f"fwdgrad.work has no {name}. Its names are in {', '.join(_NOW)}.")
