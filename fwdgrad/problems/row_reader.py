"""Images as sequences: a recurrent network reads one row after the other."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax

from fwdgrad.problems.datasets import Dataset
from fwdgrad.problems.problem import ImageSets, Problem, image_classification


class RowReader(eqx.Module):
    """A GRU that reads an image row by row, and a linear layer on its last state.

    Args:
      width: the number of units of the state.
      shape: of an image, (rows, columns) or (rows, columns, channels).
      num_classes: the number of logits.
      key: a PRNG key.

    >>> RowReader(width=8, key=jax.random.key(0))(jnp.zeros((28, 28))).shape
    (10,)
    """

    cell: eqx.nn.GRUCell
    output: eqx.nn.Linear

    def __init__(
        self, width: int, *, shape: tuple[int, ...] = (28, 28), num_classes: int = 10, key: Array
    ):
        keys = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(math.prod(shape[1:]), width, key=keys[0])
        self.output = eqx.nn.Linear(width, num_classes, key=keys[1])

    def __call__(self, image: Array) -> Array:
        rows = image.reshape(len(image), -1)
        start = jnp.zeros(self.cell.hidden_size, image.dtype)
        last, _ = lax.scan(lambda state, row: (self.cell(row, state), None), start, rows)
        return self.output(last)


def sequence(dataset: Dataset | ImageSets, width: int = 128) -> Problem:
    """Return the classification of images whose rows are read one after the other by a GRU.

    The state is h₀ = 0, h_t = GRU(h_{t−1}, row t), and the logits are W h_T + b, with T the number
    of rows. A gradient through T steps by reverse mode keeps all T states; forward mode keeps one.
    Loss and accuracy are those of `image_classification`.

    Args:
      dataset: as in `image_classification`.
      width: the number of units of the state.

    Source: K. Cho et al., Learning phrase representations using RNN encoder–decoder (2014). Images
    in the order of their pixels are a task of Q. V. Le et al. (2015).

    >>> from fwdgrad.problems import load_dataset
    >>> problem = sequence(load_dataset("mnist"), width=8)
    >>> problem.init(jax.random.key(0)).cell.weight_hh.shape
    (24, 8)
    """
    return image_classification(partial(RowReader, width), dataset)
