"""The peak of memory during a call, to check the compiler's account of it."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], Any]) -> int | None:
    """Return the peak of memory in use during `call`, less the memory in use before it.

    On a CPU it is resident memory, counted by the kernel of Linux; the C allocator is told to
    return freed memory at once. On other devices it is the count of their allocator since the
    process began, so measure in a process of its own. Return None where neither is known.
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        before = (device.memory_stats() or {}).get("bytes_in_use")
        jax.block_until_ready(call())
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return None if before is None or peak is None else peak - before
    try:
        # Freed memory goes back to the kernel, so that its next use is counted: large arrays when
        # they are freed, and the rest now.
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**16)
        libc.malloc_trim(0)
        _CLEAR.write_text("5")  # the peak is counted from now on
    except (OSError, AttributeError, TypeError):  # not Linux with glibc
        return None
    before = _resident("VmRSS")
    jax.block_until_ready(call())
    return _resident("VmHWM") - before


def _resident(quantity: str) -> int:
    found = re.search(rf"^{quantity}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None, f"{_STATUS} has no {quantity}"
    return 1024 * int(found[1])
