"""Training: the loop, its steps, optimizers and schedules.

Knows an estimator and a problem by protocols alone (`ValueAndGrad`, `TrainableProblem`).
"""

from fwdgrad.util.validation import missing_extra

try:
    from fwdgrad.training.clipping import ClippingState, clip_by_running_quantile, clipped_sgd
    from fwdgrad.training.descent import make_descend
    from fwdgrad.training.evaluation import pack_flags, unpack_flags
    from fwdgrad.training.guidance import guided_optimizer
    from fwdgrad.training.loop import train, train_together
    from fwdgrad.training.minibatches import Batches, first_examples, is_loader, minibatches
    from fwdgrad.training.programs import Programs
    from fwdgrad.training.protocols import TrainableProblem, ValueAndGrad
    from fwdgrad.training.resuming import DivergedError, finished_run
    from fwdgrad.training.run_settings import Settings
    from fwdgrad.training.schedules import exponential_decay
    from fwdgrad.training.stepping import draw_ahead, first_params, make_stepper
except ModuleNotFoundError as error:
    raise missing_extra("fwdgrad.training", error) from error

__all__ = [
    "Batches",
    "ClippingState",
    "DivergedError",
    "Programs",
    "Settings",
    "TrainableProblem",
    "ValueAndGrad",
    "clip_by_running_quantile",
    "clipped_sgd",
    "draw_ahead",
    "exponential_decay",
    "finished_run",
    "first_examples",
    "first_params",
    "guided_optimizer",
    "is_loader",
    "make_descend",
    "make_stepper",
    "minibatches",
    "pack_flags",
    "train",
    "train_together",
    "unpack_flags",
]
