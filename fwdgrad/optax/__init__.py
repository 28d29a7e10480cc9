"""Gradient estimates as the first transformation of an optax chain."""

from fwdgrad.util.validation import missing_extra

try:
    from fwdgrad.optax.denoised_adam import (
        DenoisedAdamState,
        denoised_adam,
        scale_by_denoised_adam,
    )
    from fwdgrad.optax.forward_gradient import ForwardGradientState, forward_gradient
except ModuleNotFoundError as error:
    raise missing_extra("fwdgrad.optax", error) from error

__all__ = [
    "DenoisedAdamState",
    "ForwardGradientState",
    "denoised_adam",
    "forward_gradient",
    "scale_by_denoised_adam",
]
