"""Means over a whole set of examples, in pieces that fit in memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fwdgrad.core.trees import Array, PyTree

_PIECE = 1_000  # examples; an MLP of width 1024 needs about 10 MB for as many


def make_evaluate(
    scores: Callable[[PyTree, PyTree], dict[str, Array]],
) -> Callable[[PyTree, PyTree], dict[str, float]]:
    """Makes a function (parameters, examples) -> the mean of each score over all examples.

    Args:
      scores: (parameters, batch) -> a dict of arrays (n,), one entry an example.
    """

    def totals(params: PyTree, batch: PyTree) -> dict[str, Array]:
        return jax.tree.map(lambda x: x.sum(), scores(params, batch))

    @jax.jit
    def means(params: PyTree, examples: PyTree) -> dict[str, Array]:
        size = jax.tree.leaves(examples)[0].shape[0]
        piece = min(size, _PIECE)
        whole = size - size % piece
        pieces = jax.tree.map(lambda x: x[:whole].reshape(-1, piece, *x.shape[1:]), examples)
        total = jax.lax.map(lambda batch: totals(params, batch), pieces)
        total = jax.tree.map(lambda x: x.sum(), total)
        if whole < size:
            rest = totals(params, jax.tree.map(lambda x: x[whole:], examples))
            total = jax.tree.map(jnp.add, total, rest)
        return jax.tree.map(lambda x: x / size, total)

    return lambda params, examples: {k: float(v) for k, v in means(params, examples).items()}
