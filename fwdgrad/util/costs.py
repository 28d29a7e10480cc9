"""The cost of a compiled program by XLA's account: operations, bytes, memory."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """The cost of one compiled step by XLA's analysis, which counts the body of a loop once.

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
