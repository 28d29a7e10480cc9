"""Source information of equations: the place in the user's code, and the context to evaluate in."""

import os
from contextlib import ExitStack
from typing import Any

import jax
from jax.extend import source_info_util


def context_of(equation: Any) -> ExitStack:
    """Return the context in which to evaluate an equation, with the user's names and places."""
    info = equation.source_info
    names = source_info_util.current_name_stack() + info.name_stack
    stack = ExitStack()
    stack.enter_context(source_info_util.user_context(info.traceback, name_stack=names))
    stack.enter_context(equation.ctx.manager)
    if not jax.config.jax_enable_x64 and _has_64_bits(equation):  # type: ignore[attr-defined]
        stack.enter_context(jax.enable_x64(True))
    return stack


def _has_64_bits(equation: Any) -> bool:
    """Return True if an operand or output has 64 bits, or is complex with 64 bits for each part."""
    dtypes = (getattr(v.aval, "dtype", None) for v in (*equation.invars, *equation.outvars))
    return any(str(dtype) in _OF_64_BITS for dtype in dtypes)


_OF_64_BITS = {"float64", "complex128", "int64", "uint64"}


# Folders whose code is no user's. The models of `fwdgrad.problems` count as a user's.
_ROOT = os.path.dirname(os.path.dirname(__file__))
_LIBRARIES = (
    f"{os.sep}site-packages{os.sep}",
    *(
        os.path.join(_ROOT, floor) + os.sep
        for floor in ("util", "tangents", "propagation", "perturbation", "estimators", "modes")
    ),
    os.path.join(_ROOT, "diagnostics") + os.sep,
)


def place(equation: Any) -> str:
    """Return the place of an equation in the user's code: 'models/mlp.py:12:3 (MLP.__call__)'.

    The place is the innermost frame outside of installed packages and of this one: the line of a
    model, and not the line of the library whose layer it uses.
    """
    frames = source_info_util.summarize(equation.source_info, num_frames=100).split("\n")
    own = [frame for frame in frames if not any(library in frame for library in _LIBRARIES)]
    file, colon, rest = (own or frames)[-1].partition(":")
    return os.sep.join(file.split(os.sep)[-2:]) + colon + rest
