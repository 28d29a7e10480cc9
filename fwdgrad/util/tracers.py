"""Questions to JAX about traces and tracers, which differ from one version to the next."""

from typing import Any

import jax
from jax.extend import core as jex_core


def is_leaked(value: Any) -> bool:
    """Return True for a tracer of a transformation that has already ended."""
    if not isinstance(value, jax.core.Tracer):
        return False
    probe: list[Any] = []  # a tracer whose trace links to those of all enclosing transformations
    jax.make_jaxpr(lambda x: probe.append(x))(0.0)
    trace = probe[0]._trace
    while trace is not None and trace is not value._trace:
        trace = getattr(trace, "parent_trace", None)
    return trace is None


def varying_axes_of(array_type: Any) -> frozenset[str]:
    """Return the axes of `shard_map` along which arrays of a type vary by device."""
    varying = getattr(array_type, "vma", None)
    if varying is None:  # JAX 0.10.2 and later
        varying = array_type.mat.varying
    return frozenset(varying)


def trace_state() -> tuple[bool, bool]:
    """Return (is_eager, is_differentiated) for operations that are called now.

    Eager operations run at once, outside of `jax.jit`, possibly under `jax.vmap` or a derivative.
    `is_differentiated` is True under a derivative, and has a meaning for eager operations only.
    """
    is_differentiated = False
    with jex_core.take_current_trace() as trace:
        while type(trace).__name__ in ("BatchTrace", "JVPTrace", "LinearizeTrace"):
            is_differentiated = is_differentiated or type(trace).__name__ != "BatchTrace"
            trace = trace.parent_trace
        is_eager = type(trace).__name__ == "EvalTrace"
    return is_eager and not jax.config.jax_disable_jit, is_differentiated  # type: ignore[attr-defined]
