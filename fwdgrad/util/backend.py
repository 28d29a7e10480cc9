"""Choices of form that depend on the backend: all that was tuned by measuring stands here.

Each choice is between programs that compute the same numbers, but for rounding, so that tuning
never becomes semantics: the tangents that a key draws are the same on every backend. A choice holds
on the backend on which it was measured; elsewhere the plain form runs, the one with the fewest
operations of XLA.
"""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Choices:
    """The forms that run on a backend.

    Attributes:
      max_taps: a convolution with one factor of a kernel's tangent is spelled out as a pointwise
        convolution and a sum of shifted planes if the kernel has at most this many taps.
      min_channels, max_stride: and if it has at least as many input channels, and at most this
        stride (the product over the spatial axes).
      signs_by_lookup: signs are made of random bits by a lookup, which XLA does not fuse into what
        reads them, and not by arithmetic.
    """

    max_taps: int
    min_channels: int
    max_stride: int
    signs_by_lookup: bool


# Measured on two cores of an AMD EPYC, JAX 0.10.2. A convolution to one channel is badly vectorised
# there: 10.6 ms for 64 images 28×28 of 64 channels, where the sum of shifted planes takes 3.6. And
# cheap arithmetic is fused into whatever reads it, down to the generator, which then runs for each
# entry of the weight that is updated: a step of the paper's MLP takes 5.5 ms, with a lookup 4.2.
CPU = Choices(max_taps=25, min_channels=8, max_stride=2, signs_by_lookup=True)
PLAIN = Choices(max_taps=0, min_channels=0, max_stride=0, signs_by_lookup=False)


def platform() -> str:
    """Return the platform that programs traced now are for: 'cpu', 'gpu' or 'tpu'."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def choices() -> Choices:
    """Return the forms for the platform of `platform()`."""
    return CPU if platform() == "cpu" else PLAIN
