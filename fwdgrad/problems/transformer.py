"""A language model: a causal transformer that predicts the next byte of a text."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from fwdgrad import combine, partition
from fwdgrad.problems import files
from fwdgrad.problems.files import DataError
from fwdgrad.problems.problem import Batch, Problem
from fwdgrad.util.trees import PyTree
from fwdgrad.util.validation import check_positive_integer

_TEXT = files.REPOSITORY / "paradise_lost" / "paradise_lost.txt.gz"
_SHA256 = "f37656e35d3e8785740da65d7624c31adb366c6c9572987fdff2b24ff69955c4"


class _Block(eqx.Module):
    """Attention and an MLP, each after a layer norm and beside a residual connection."""

    norms: list[eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width: int, heads: int, key: Array):
        keys = jax.random.split(key, 3)
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2)]
        self.attention = eqx.nn.MultiheadAttention(heads, width, key=keys[0])
        self.up = eqx.nn.Linear(width, 4 * width, key=keys[1])
        self.down = eqx.nn.Linear(4 * width, width, key=keys[2])

    def __call__(self, x: Array) -> Array:
        mask = jnp.tri(len(x), dtype=bool)
        z = jax.vmap(self.norms[0])(x)
        x = x + self.attention(z, z, z, mask=mask)
        z = jax.vmap(self.up)(jax.vmap(self.norms[1])(x))
        return x + jax.vmap(self.down)(jax.nn.gelu(z))


class Transformer(eqx.Module):
    """A causal transformer: the logits at a position depend on the tokens up to it alone.

    Embeddings of tokens and of positions are normal with standard deviation 0.02, as in GPT-2.

    Args:
      vocabulary: the number of tokens.
      length: the number of positions.
      width: the number of features of a position.
      depth: the number of blocks.
      heads: the number of attention heads, which divides the width.
      key: a PRNG key.

    >>> model = Transformer(5, length=8, width=4, depth=1, heads=2, key=jax.random.key(0))
    >>> model(jnp.zeros(8, int)).shape
    (8, 5)
    """

    tokens: Array
    positions: Array
    blocks: list[_Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(
        self, vocabulary: int, length: int, width: int, depth: int, heads: int, *, key: Array
    ):
        *keys, first, second, third = jax.random.split(key, depth + 3)
        self.tokens = 0.02 * jax.random.normal(first, (vocabulary, width))
        self.positions = 0.02 * jax.random.normal(second, (length, width))
        self.blocks = [_Block(width, heads, k) for k in keys]
        self.norm = eqx.nn.LayerNorm(width)
        self.head = eqx.nn.Linear(width, vocabulary, key=third)

    def __call__(self, tokens: Array) -> Array:
        x = self.tokens[tokens] + self.positions
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.head)(jax.vmap(self.norm)(x))


def language_model(
    path: str | None = None, length: int = 64, width: int = 64, depth: int = 2, heads: int = 4
) -> Problem:
    """Return the prediction of the next byte of a text by a causal transformer.

    An example is a window of L + 1 bytes b₀ … b_L, int32 (n, L + 1), numbered among the bytes that
    the text has. The loss is the cross-entropy (1/L) Σ_t −log p(b_t | b₀ … b_{t−1}), in nats per
    byte. The windows lie one after the other, each with the last byte of the one before it. The
    first 90 % of the text are for training, then 5 % for validation and 5 % for testing.

    Args:
      path: a file, unpacked if its name ends in `.gz`; None: Milton's Paradise Lost, 457 kB, which
        is in the repository and not in the wheel.
      length: L.
      width: the number of features of a position.
      depth: the number of blocks.
      heads: the number of attention heads.

    Raises:
      DataError: the file is missing, or too short for a window in each set.
      TypeError, ValueError: a number is not a positive integer, or `heads` does not divide `width`.

    Source: A. Vaswani et al., Attention is all you need (2017); normalisation first as in
    A. Radford et al., Language models are unsupervised multitask learners (2019).

    >>> problem = language_model(length=32, width=16, depth=1, heads=2)
    >>> problem.train.shape, problem.valid.shape
    ((12845, 33), (713, 33))
    >>> problem.scores(problem.init(jax.random.key(0)), problem.train[:4])["loss"].shape
    (4,)
    """
    sizes = {"length": length, "width": width, "depth": depth, "heads": heads}
    for name, value in sizes.items():
        check_positive_integer(name, value)
    if width % heads:
        raise ValueError(
            f"heads must divide width={width}; found {heads}. Each head has width / heads features."
        )
    file, sha256 = (_TEXT, _SHA256) if path is None else (Path(path).expanduser(), None)
    text = np.frombuffer(files.content(file, _text_of(path), sha256), np.uint8)
    vocabulary, tokens = np.unique(text, return_inverse=True)
    first, second = len(tokens) * 90 // 100, len(tokens) * 95 // 100
    parts = np.split(tokens.astype(np.int32), [first, second])
    if (least := min(map(len, parts))) <= length:
        raise DataError(
            f"{file} has {len(text)} bytes, and {least} of them for validation: expected more than "
            f"length={length} there. Name a longer text, or take a smaller length."
        )

    def make(key: Array) -> Transformer:
        return Transformer(len(vocabulary), **sizes, key=key)

    _, static = partition(make(jax.random.key(0)))

    def scores(params: PyTree, batch: Batch) -> dict[str, Array]:
        logits = jax.vmap(combine(params, static))(batch[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        return {"loss": losses.mean(1)}

    train, valid, test = (_windows(part, length) for part in parts)
    return Problem(lambda key: partition(make(key))[0], scores, train, valid, test)


def _text_of(path: str | None) -> str:
    return "a text" if path else "the text of the repository, or a file of yours (problem.path=...)"


def _windows(tokens: np.ndarray, length: int) -> Array:
    starts = np.arange((len(tokens) - 1) // length) * length
    return jnp.asarray(tokens[starts[:, None] + np.arange(length + 1)])
