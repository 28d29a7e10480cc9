"""Models trained block by block: local losses (`LocalHeads`), and frozen first layers (`Frozen`).

A block is a layer with parameters and the parameter-free layers that follow it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax

from fwdgrad import apply_chain
from fwdgrad.problems.models import IMAGE_SHAPE, NUM_CLASSES
from fwdgrad.util.trees import Layer, is_differentiable

_MAX_HEAD_PIXELS = 4  # along each axis of the averaged image that a head reads


class LocalHeads(eqx.Module):
    """A model with a local loss for each layer: a linear classifier reads the output of each block.

    A block is a layer with parameters, with the activation function and the pooling after it. Each
    block reads the output of the block before it through `stop_gradient`. A linear head maps the
    block's output to logits (images are averaged over windows to at most 4×4 first, without the
    remainder at the border). The last block is its own head. The loss of an image is the sum of the
    losses of all heads, so the gradient of a block is that of its own head's loss: derivatives
    pass through *one* layer and its head, never from block to block.

    Args:
      make_model: (key=...) -> a model of `fwdgrad.problems` that has a `chain`.
      shape: of an image.
      num_classes: the number of logits.
      key: a PRNG key for the model and the heads.

    >>> from functools import partial
    >>> from fwdgrad.problems import MLP
    >>> model = LocalHeads(partial(MLP, (16, 8)), key=jax.random.key(0))
    >>> model(jnp.zeros((28, 28))).shape  # the last row is the output of the model itself
    (3, 10)

    Source: Nøkland, Eidnes, Training neural networks with local error signals (2019).
    """

    model: Any
    heads: list[eqx.nn.Linear]

    def __init__(
        self,
        make_model: Callable[..., Any],
        *,
        shape: tuple[int, ...] = IMAGE_SHAPE,
        num_classes: int = NUM_CLASSES,
        key: Array,
    ):
        self.model = make_model(key=jax.random.split(key, 1)[0])
        *hidden, _ = blocks(self.model.chain)
        _, *keys = jax.random.split(key, 1 + len(hidden))
        x: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
        self.heads = []
        for block, k in zip(hidden, keys, strict=True):
            x = jax.eval_shape(lambda x, block=block: apply_chain(block, x), x)
            features = jax.eval_shape(_features, x).size
            self.heads.append(eqx.nn.Linear(features, num_classes, key=k))

    def __call__(self, image: Array) -> Array:
        *hidden, last = blocks(self.model.chain)
        x, logits = image, []
        for block, head in zip(hidden, self.heads, strict=True):
            x = apply_chain(block, lax.stop_gradient(x))
            logits.append(head(_features(x)))
        return jnp.stack([*logits, apply_chain(last, lax.stop_gradient(x))])


class Frozen(eqx.Module):
    """A model whose first blocks keep their initial parameters.

    It is the baseline for methods that train all layers: a method trains the first layers only if
    it reaches more than this model, whose other layers learn on random features.

    Args:
      make_model: (key=...) -> a model of `fwdgrad.problems` that has a `chain`.
      num_frozen: the number of frozen blocks.
      key: a PRNG key for the model.

    Raises:
      ValueError: `num_frozen` is negative, or no block is left to train.

    >>> from functools import partial
    >>> from fwdgrad.problems import MLP
    >>> model = Frozen(partial(MLP, (16, 8)), num_frozen=2, key=jax.random.key(0))
    >>> grad = jax.grad(lambda model: model(jnp.ones((28, 28))).sum(), allow_int=True)(model)
    >>> [bool((layer.weight == 0).all()) for layer in grad.model.layers]
    [True, True, False]
    """

    model: Any
    num_frozen: int = eqx.field(static=True)

    def __init__(self, make_model: Callable[..., Any], num_frozen: int, *, key: Array):
        self.model, self.num_frozen = make_model(key=key), num_frozen
        most = len(blocks(self.model.chain)) - 1
        if not 0 <= num_frozen <= most:
            raise ValueError(
                f"num_frozen must be from 0 to {most}, so that a block is left to train; found "
                f"{num_frozen}."
            )

    def __call__(self, image: Array) -> Array:
        parts = blocks(self.model.chain)
        frozen = [layer for block in parts[: self.num_frozen] for layer in block]
        rest = [layer for block in parts[self.num_frozen :] for layer in block]
        return apply_chain(rest, lax.stop_gradient(apply_chain(frozen, image)))


def blocks(chain: Sequence[Layer]) -> list[list[Layer]]:
    """Group a chain into blocks: a layer with parameters, then the layers without that follow it.

    Layers before the first layer with parameters are in the first block.

    >>> layer = jax.tree_util.Partial(jnp.add, jnp.ones(3))
    >>> [len(block) for block in blocks([jnp.ravel, layer, abs, layer])]
    [3, 1]
    """
    parts: list[list[Layer]] = []
    leading: list[Layer] = []
    for layer in chain:
        if any(map(is_differentiable, jax.tree.leaves(layer))):
            parts.append([*leading, layer] if not parts else [layer])
        elif parts:
            parts[-1].append(layer)
        else:
            leading.append(layer)
    return parts


def _features(x: Array) -> Array:
    """Return a vector for a linear head; images (channels, rows, columns) are averaged first."""
    if x.ndim < 3:
        return x.reshape(-1)
    channels, rows, columns = x.shape
    window = -(-rows // _MAX_HEAD_PIXELS), -(-columns // _MAX_HEAD_PIXELS)
    rows, columns = rows // window[0], columns // window[1]
    x = x[:, : rows * window[0], : columns * window[1]]
    return x.reshape(channels, rows, window[0], columns, window[1]).mean((2, 4)).reshape(-1)
