"""The cost of a compiled program by XLA's account: operations, bytes, memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fwdgrad.util import backend


@dataclass(frozen=True)
class Cost:
    """The cost of one compiled step by XLA's analysis, which counts the body of a loop once.

    A loop over tangents that the library makes (`backend.Choices.max_entries`) counts in full.

    Attributes:
      operations: the number of floating-point operations.
      bytes_accessed: the bytes read and written.
      temporary_bytes: the memory beside parameters and arguments.
      total_bytes: the memory of arguments, results and temporaries; a donated argument and the
        result in its place count once.
    """

    operations: float
    bytes_accessed: float
    temporary_bytes: float
    total_bytes: float


def compile_and_count(compile_program: Callable[[], Any]) -> tuple[Any, Callable[[], Cost]]:
    """Return a compiled program, and a function that returns its cost.

    Where the program has a loop over tangents, that function compiles it once more without one.

    Args:
      compile_program: traces, lowers and compiles it; called twice, it must trace twice.
    """
    before = backend.LOOPS.number
    compiled = compile_program()
    has_loops = backend.LOOPS.number > before

    def cost() -> Cost:
        found = cost_of(compiled)
        if not has_loops:
            return found
        with backend.all_tangents_at_once():
            whole = cost_of(compile_program())
        return replace(found, operations=whole.operations, bytes_accessed=whole.bytes_accessed)

    return compiled, cost


def cost_of(compiled: Any) -> Cost:
    """Return the cost of a `jax.stages.Compiled`; nan where the backend does not know."""
    analysis, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    temporary = math.nan if memory is None else memory.temp_size_in_bytes
    return Cost(
        analysis.get("flops", math.nan),
        analysis.get("bytes accessed", math.nan),
        temporary,
        math.nan
        if memory is None
        else memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + temporary,
    )
