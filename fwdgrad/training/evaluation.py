"""Scores of a set of examples and their means, in pieces that fit in memory."""

import base64
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.training.minibatches import is_loader
from fwdgrad.util import backend
from fwdgrad.util.trees import Array, PyTree

_PIECE = 1_000  # examples; an MLP of width 1024 needs about 10 MB for as many


def make_evaluate(
    scores: Callable[[PyTree, PyTree], dict[str, Array]],
    compiler_options: Mapping[str, Any] | None = None,
) -> Callable[[PyTree, PyTree], tuple[dict[str, float], dict[str, np.ndarray]]]:
    """Return a function (parameters, examples) -> the means of the scores, and all of them.

    Examples are arrays that share their first axis, or a loader, of which one epoch is read.

    The means are numbers, by name; all scores are arrays (examples,), by name.

    Args:
      scores: (parameters, batch) -> a dict of arrays (n,), one entry an example.
      compiler_options: XLA's.
    """

    @partial(jax.jit, compiler_options=backend.compiler_options(compiler_options))
    def score(params: PyTree, batch: PyTree) -> tuple[dict[str, Array], dict[str, Array]]:
        of_each = scores(params, batch)
        return jax.tree.map(jnp.sum, of_each), of_each

    def evaluate(
        params: PyTree, examples: PyTree
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        # A loop in Python: inside a compiled one, XLA's convolutions are slow on the CPU.
        pieces = [score(params, piece) for piece in _pieces(examples)]
        names = pieces[0][0]
        size = sum(len(of_each[min(names)]) for _, of_each in pieces)
        means = {name: sum(float(total[name]) for total, _ in pieces) / size for name in names}
        of_each = {
            name: np.concatenate([np.asarray(each[name]) for _, each in pieces]) for name in names
        }
        return means, of_each

    return evaluate


def _pieces(examples: Any) -> Iterator[PyTree]:
    """Yield the examples of a set, arrays or a loader, in pieces."""
    if is_loader(examples):
        yield from (jax.tree.map(np.asarray, batch) for batch in examples.batches(0))
        return
    for start in range(0, jax.tree.leaves(examples)[0].shape[0], _PIECE):
        yield jax.tree.map(lambda x: x[start : start + _PIECE], examples)  # noqa: B023


def pack_flags(flags: np.ndarray) -> str:
    """Return 0s and 1s as a text of base 64, six a character.

    >>> pack_flags(np.array([1, 0, 0, 0, 0, 0, 0, 1, 1])), unpack_flags("gYA=", 9).tolist()
    ('gYA=', [True, False, False, False, False, False, False, True, True])
    """
    return base64.b64encode(np.packbits(np.asarray(flags, bool)).tobytes()).decode()


def unpack_flags(text: str, number: int) -> np.ndarray:
    """Return the first flags of a text of `pack_flags`, as booleans (number,)."""
    packed = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(packed, count=number).astype(bool)
