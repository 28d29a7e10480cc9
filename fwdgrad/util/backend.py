"""Choices between equivalent programs by backend: all measured tuning is in this file.

Both programs of a choice compute the same numbers, but for rounding, so tuning never changes the
semantics: a key samples the same tangents on every backend. A choice holds on the backend on which
it was measured. Every other backend runs the program with the fewest XLA operations.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import jax


@dataclass(frozen=True)
class Choices:
    """Programs that run on a backend.

    A convolution with a factor of a low-rank kernel tangent runs as a pointwise convolution and a
    sum of shifted planes if the kernel is within the limits `max_taps`, `min_channels` and
    `max_stride`; otherwise it is one convolution.

    Attributes:
      max_taps: the largest number of taps.
      min_channels: the smallest number of input channels.
      max_stride: the largest stride (the product over the spatial axes).
      signs_by_lookup: random bits become signs by a table lookup, which XLA does not fuse into the
        operations that read the signs; otherwise by arithmetic.
      max_entries: with noise at activities, the largest number of entries of a layer's tangents, at
        its own value, that are pushed forward together; the others follow in a loop. None for no
        limit.
    """

    max_taps: int
    min_channels: int
    max_stride: int
    signs_by_lookup: bool
    max_entries: int | None


# Measured on two cores of an AMD EPYC with JAX 0.10.2. XLA vectorises a convolution to one channel
# badly: 64 images 28×28 of 64 channels take 10.6 ms, the sum of shifted planes takes 3.6 ms. XLA
# also fuses cheap arithmetic into the operations that read its result, down to the random bits,
# which are then generated for each entry of the weight: a step of the MLP takes 5.5 ms, and 4.2 ms
# with a lookup.
# Measured on two cores of an Intel Xeon with JAX 0.10.2: a step of an MLP 1568–1024–1024–10 with 32
# blocks from each hidden layer, chained feedback and a minibatch of 128 takes 29 ms if a layer's
# tangents, 16 MB, are written out, and 21 to 22 ms with limits from 2¹⁷ to 2²⁰ entries, since a
# buffer of that size is new memory in each call. In a loop over steps it is not: a step takes 17
# ms, and 20 ms with a loop over tangents. So loops over steps push all tangents at once.
CPU = Choices(max_taps=25, min_channels=8, max_stride=2, signs_by_lookup=True, max_entries=2**19)
PLAIN = Choices(max_taps=0, min_channels=0, max_stride=0, signs_by_lookup=False, max_entries=None)


def platform() -> str:
    """Return the platform for which programs are now traced: 'cpu', 'gpu' or 'tpu'."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def compiler_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return XLA's options for this platform, without those of the other ones.

    >>> compiler_options({"xla_tpu_option": 1, "xla_option": 2})
    {'xla_option': 2}
    """
    here = platform()
    others = tuple(f"xla_{other}_" for other in ("cpu", "gpu", "tpu") if other != here)
    return {name: x for name, x in (options or {}).items() if not name.startswith(others)}


def choices() -> Choices:
    """Return the choices for the platform of `platform()`."""
    chosen = CPU if platform() == "cpu" else PLAIN
    return replace(chosen, max_entries=None) if _at_once.get() else chosen


_at_once: ContextVar[bool] = ContextVar("at_once", default=False)


@contextlib.contextmanager
def all_tangents_at_once() -> Iterator[None]:
    """Trace without loops over tangents: in a loop over steps, and to count operations."""
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


@dataclass
class Loops:
    """The loops over tangents that are traced.

    Attributes:
      number: of all that have been traced so far.
    """

    number: int = 0


LOOPS = Loops()
