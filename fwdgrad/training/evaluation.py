"""Means over a set of examples, in pieces that fit in memory."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.util.trees import Array, PyTree

_PIECE = 1_000  # examples; an MLP of width 1024 needs about 10 MB for as many


def make_evaluate(
    scores: Callable[[PyTree, PyTree], dict[str, Array]],
    compiler_options: Mapping[str, Any] | None = None,
) -> Callable[[PyTree, PyTree], dict[str, float]]:
    """Return a function (parameters, examples) -> the mean of each score over all examples.

    Args:
      scores: (parameters, batch) -> a dict of arrays (n,), one entry an example.
      compiler_options: XLA's.
    """

    @partial(jax.jit, compiler_options=dict(compiler_options or {}))
    def totals(params: PyTree, batch: PyTree) -> dict[str, Array]:
        return jax.tree.map(jnp.sum, scores(params, batch))

    def evaluate(params: PyTree, examples: PyTree) -> dict[str, float]:
        size = jax.tree.leaves(examples)[0].shape[0]
        # A loop in Python: inside a compiled one, XLA's convolutions are slow on the CPU.
        pieces = [
            totals(params, jax.tree.map(lambda x: x[start : start + _PIECE], examples))  # noqa: B023
            for start in range(0, size, _PIECE)
        ]
        return {name: sum(float(piece[name]) for piece in pieces) / size for name in pieces[0]}

    return evaluate
