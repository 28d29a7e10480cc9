"""One row of the table of primitives: a small function and the operands that it takes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.experimental.pallas
import jax.experimental.sparse  # noqa: F401 - their primitives are registered on import
from jax._src.interpreters import ad


def _is_of_jax(rule: Any) -> bool:
    """Return True for a rule of JAX; other imported libraries register rules, too."""
    while isinstance(rule, functools.partial):
        rule = rule.func
    return getattr(rule, "__module__", "jax").partition(".")[0] == "jax"


PRIMITIVES = {p.name: p for p, rule in ad.primitive_jvps.items() if _is_of_jax(rule)}


@dataclass(frozen=True)
class Case:
    """A function of arrays, all of which may have a tangent.

    Attributes:
      fun: takes an array of each of the shapes and returns a pytree of arrays.
      shapes: the shapes of the operands.
      low, high: the interval from which operands are sampled uniformly.
      half: True if the operands may be of half precision.
      mapped: True if JAX can map the derivative by `vmap`.
    """

    fun: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = ((4, 6),)
    low: float = -2.0
    high: float = 2.0
    half: bool = True
    mapped: bool = True


def bind(name: str) -> Callable[..., Any]:
    """Return the `bind` method of the primitive of this name."""
    return PRIMITIVES[name].bind


def known(cases: dict[str, Callable[[], Case]]) -> dict[str, Case]:
    """Return the cases whose functions exist in this version of JAX."""
    found = {}
    for name, make in cases.items():
        try:
            found[name] = make()
        except (AttributeError, KeyError):
            continue
    return found
