"""The networks of the paper as Equinox modules: logistic regression, MLP, CNN, deep network.

Each classifier takes one standardised image, float (28, 28), and returns 10 logits, unless it is
made for another shape, (rows, columns) or (rows, columns, channels), and number of classes; map it
over a minibatch with `jax.vmap`. Equinox samples weights and biases of linear and convolution
layers from U(−1/√n, 1/√n), with n the number of inputs of one unit. That is PyTorch's default, and
so the paper's.
"""

import math
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from fwdgrad import apply_chain
from fwdgrad.util.trees import Layer

IMAGE_SHAPE = (28, 28)
NUM_CLASSES = 10


class LogisticRegression(eqx.Module):
    """Multinomial logistic regression: logits = W x + b, with 7,850 parameters.

    Args:
      shape: of an image.
      num_classes: the number of logits.
      key: a PRNG key.

    >>> LogisticRegression(key=jax.random.key(0))(jax.numpy.zeros((28, 28))).shape
    (10,)
    """

    linear: eqx.nn.Linear

    def __init__(
        self,
        *,
        shape: tuple[int, ...] = IMAGE_SHAPE,
        num_classes: int = NUM_CLASSES,
        key: Array,
    ):
        self.linear = eqx.nn.Linear(math.prod(shape), num_classes, key=key)

    @property
    def chain(self) -> list[Layer]:
        """The layers in order, for `fwdgrad.apply_chain`."""
        return [jnp.ravel, self.linear]

    def __call__(self, image: Array) -> Array:
        return apply_chain(self.chain, image)


class MLP(eqx.Module):
    """A multilayer perceptron: linear layers with a ReLU after each layer but the last.

    The paper's MLP has the widths (1024, 1024) and 1,863,690 parameters.

    Args:
      widths: the widths of the hidden layers.
      shape: of an image.
      num_classes: the number of logits.
      key: a PRNG key.

    >>> MLP(widths=(32, 16), key=jax.random.key(0))(jax.numpy.zeros((28, 28))).shape
    (10,)
    """

    layers: list[eqx.nn.Linear]

    def __init__(
        self,
        widths: tuple[int, ...] = (1024, 1024),
        *,
        shape: tuple[int, ...] = IMAGE_SHAPE,
        num_classes: int = NUM_CLASSES,
        key: Array,
    ):
        sizes = (math.prod(shape), *widths, num_classes)
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = [
            eqx.nn.Linear(n, m, key=k) for n, m, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        ]

    @property
    def chain(self) -> list[Layer]:
        """The layers in order, for `fwdgrad.apply_chain`."""
        *hidden, last = self.layers
        return [jnp.ravel, *(f for layer in hidden for f in (layer, jax.nn.relu)), last]

    def __call__(self, image: Array) -> Array:
        return apply_chain(self.chain, image)


class DeepNetwork(eqx.Module):
    """Linear layers of one width without biases, with a ReLU after each layer but the last.

    The network of the paper's scaling with depth. It is no classifier: it maps (..., width) to
    (..., width). Weights are (inputs, outputs) and take a whole minibatch, x @ weight, which on a
    CPU is faster for deep networks than `jax.vmap` of weight @ x.

    Weights are normal with variance 2/width (He et al. 2015), so that activations neither vanish
    nor grow over a hundred layers. (CPUs compute slowly with subnormal numbers.)

    Args:
      width: the number of units of each layer.
      depth: the number of layers.
      key: a PRNG key.

    >>> DeepNetwork(width=16, depth=3, key=jax.random.key(0))(jax.numpy.zeros((5, 16))).shape
    (5, 16)
    """

    weights: list[Array]

    def __init__(self, width: int, depth: int, *, key: Array):
        self.weights = [
            jax.random.normal(k, (width, width)) * (2 / width) ** 0.5
            for k in jax.random.split(key, depth)
        ]

    @property
    def chain(self) -> list[Layer]:
        """The layers in order, for `fwdgrad.apply_chain`."""
        *hidden, last = [Partial(_times, weight) for weight in self.weights]
        return [*(f for layer in hidden for f in (layer, jax.nn.relu)), last]

    def __call__(self, x: Array) -> Array:
        return apply_chain(self.chain, x)


class CNN(eqx.Module):
    """A convolutional network: four 3×3 convolutions, then two linear layers.

    The convolutions have 'same' padding and are followed by a ReLU each; 2×2 max-pooling follows
    the second and the fourth. A ReLU follows the first linear layer. The paper's CNN has 64
    channels and width 1024, so 3,136 features after the convolutions.

    Args:
      channels: the number of output channels of each convolution.
      width: the number of units of the first linear layer.
      pooling: the program for the maxima, with the same values: "select" is faster in forward mode
        on a CPU, "reduce" in reverse mode (by a few per cent of a step).
      shape: of an image; rows and columns must be multiples of 4.
      num_classes: the number of logits.
      key: a PRNG key.

    Raises:
      ValueError: `pooling` is neither name, or pooling cuts the images.

    >>> CNN(channels=4, width=8, key=jax.random.key(0))(jax.numpy.zeros((28, 28))).shape
    (10,)
    """

    convolutions: list[eqx.nn.Conv2d]
    hidden: eqx.nn.Linear
    output: eqx.nn.Linear
    pooling: str = eqx.field(static=True)

    def __init__(
        self,
        channels: int = 64,
        width: int = 1024,
        pooling: Literal["select", "reduce"] = "select",
        *,
        shape: tuple[int, ...] = IMAGE_SHAPE,
        num_classes: int = NUM_CLASSES,
        key: Array,
    ):
        rows, columns, *channels_in = shape
        if rows % 4 or columns % 4:
            raise ValueError(
                f"shape must have multiples of 4 rows and columns, which are halved twice; found "
                f"{rows}×{columns}. Pad the images."
            )
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(_POOLINGS)}; found {pooling!r}.")
        self.pooling = pooling
        *keys, key_hidden, key_output = jax.random.split(key, 6)
        inputs = (*(channels_in or [1]), channels, channels, channels)
        self.convolutions = [
            eqx.nn.Conv2d(n, channels, kernel_size=3, padding="SAME", key=k)
            for n, k in zip(inputs, keys, strict=True)
        ]
        features = channels * (rows // 4) * (columns // 4)
        self.hidden = eqx.nn.Linear(features, width, key=key_hidden)
        self.output = eqx.nn.Linear(width, num_classes, key=key_output)

    @property
    def chain(self) -> list[Layer]:
        """The layers in order, for `fwdgrad.apply_chain`."""
        relu, max_pool = jax.nn.relu, _POOLINGS[self.pooling]
        first, second, third, fourth = self.convolutions
        return [
            *(_channels_first, first, relu, second, relu, max_pool),
            *(third, relu, fourth, relu, max_pool),
            *(jnp.ravel, self.hidden, relu, self.output),
        ]

    def __call__(self, image: Array) -> Array:
        return apply_chain(self.chain, image)


def _times(weight: Array, x: Array) -> Array:
    """Return x @ weight; the weight comes first, as `jax.tree_util.Partial` binds it."""
    return x @ weight


def _channels_first(image: Array) -> Array:
    """Return an image (rows, columns) or (rows, columns, channels) with its channels in front."""
    return image[None] if image.ndim == 2 else jnp.moveaxis(image, -1, 0)


@jax.custom_jvp
def _select_max_pool(x: Array) -> Array:
    """Return the maxima over 2×2 windows of (channels, rows, columns), as maxima of four arrays.

    The tangent of an output is the tangent of the first input that attains the maximum.
    """
    first, second, third, fourth = _windows(x)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


@_select_max_pool.defjvp
def _select_max_pool_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    maximum = _select_max_pool(*primals)
    *others, (_, tangent) = zip(_windows(*primals), _windows(*tangents), strict=True)
    for value, tangent_of_value in reversed(others):
        tangent = jnp.where(value == maximum, tangent_of_value, tangent)
    return maximum, tangent


def _windows(x: Array) -> list[Array]:
    """Return the four arrays of the entries at one place of each 2×2 window."""
    return [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]


def _reduce_max_pool(x: Array) -> Array:
    """Return the maxima over 2×2 windows by a reduction; tangents are averaged over ties."""
    channels, rows, columns = x.shape
    return x.reshape(channels, rows // 2, 2, columns // 2, 2).max((2, 4))


_POOLINGS: dict[str, Callable[[Array], Array]] = {
    "select": _select_max_pool,
    "reduce": _reduce_max_pool,
}
