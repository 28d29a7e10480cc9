"""Gradient estimates as the first transformation of an optax chain."""

from fwdgrad.util.validation import missing_extra

try:
    from fwdgrad.optax.forward_gradient import ForwardGradientState, forward_gradient
except ModuleNotFoundError as error:
    raise missing_extra("fwdgrad.optax", error) from error

__all__ = ["ForwardGradientState", "forward_gradient"]
