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
    if name.startswith("__"):  # of Python's own protocols
        raise AttributeError(name)
    found = [package for package, names in _NOW.items() if name in names.split()]
    remedy = f"Use {found[0]}.{name}" if found else f"Its packages are {', '.join(_NOW)}"
    if name == "GuidedProblem":
        remedy = "Use the method `guided` of fwdgrad.forward_value_and_grad(loss)"
    raise ImportError(f"fwdgrad.work.{name} is no more. {remedy}.")
