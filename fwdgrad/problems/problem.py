"""A problem, as whatever trains sees it: parameters, a loss, and examples."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from fwdgrad import combine, partition
from fwdgrad.problems.datasets import Dataset
from fwdgrad.util.trees import PyTree

Batch = PyTree  # arrays that share their first axis, one entry an example


class Problem(NamedTuple):
    """A supervised problem.

    Attributes:
      init: key -> parameters, a pytree of floating arrays alone.
      scores: (parameters, batch) -> {"loss": (n,), "accuracy": (n,)}, a float an example.
      train, valid, test: the examples, batches of arrays on the device.
    """

    init: Callable[[Array], PyTree]
    scores: Callable[[PyTree, Batch], dict[str, Array]]
    train: Batch
    valid: Batch
    test: Batch

    def loss(self, params: PyTree, batch: Batch) -> Array:
        """The mean loss over a batch, a scalar: what is minimised."""
        return self.scores(params, batch)["loss"].mean()


def image_classification(make_model: Callable[..., eqx.Module], dataset: Dataset) -> Problem:
    """Classification of a data set's images by softmax cross-entropy.

    The loss of an image with logits z and label y is log Σ_j exp z_j − z_y, in nats; its accuracy
    is 1 where z_y is the largest logit, else 0. Of a model that returns several rows of logits
    (`LocalHeads`) the losses are added, and the last row is its answer. Images are standardised
    once, to float32 (byte/255 − mean)/std with the mean and the deviation of all training pixels,
    which is what brings the paper's curves about. (They take 4 bytes a pixel, 220 MB in all; doing
    it anew in every step would take longer than the rest of a step of logistic regression.)

    Args:
      make_model: key=... -> a module from one float image (28, 28) to logits (10,) or (rows, 10).
      dataset: from `load_dataset`.
    """
    return classification(make_model, *standardised(dataset))


def classification(
    make_model: Callable[..., eqx.Module], train: Batch, valid: Batch, test: Batch
) -> Problem:
    """The problem of `image_classification` with images that are standardised already.

    Args:
      make_model: as there.
      train, valid, test: from `standardised`; several problems may share them.
    """
    _, static = partition(make_model(key=jax.random.key(0)))

    def init(key: Array) -> PyTree:
        return partition(make_model(key=key))[0]

    def scores(params: PyTree, batch: Batch) -> dict[str, Array]:
        images, labels = batch
        logits = jax.vmap(combine(params, static))(images)
        answer = logits
        if logits.ndim == 3:
            answer, labels_of_rows = logits[:, -1], labels[:, None]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels_of_rows).sum(1)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"loss": losses, "accuracy": (answer.argmax(-1) == labels).astype(jnp.float32)}

    return Problem(init, scores, train, valid, test)


def standardised(dataset: Dataset) -> tuple[Batch, Batch, Batch]:
    """The three sets of examples on the device: images in float32, and labels."""
    train, valid, test = (
        (_standardised(part.images, dataset.mean, dataset.std), jax.device_put(part.labels))
        for part in dataset[:3]
    )
    return train, valid, test


@jax.jit
def _standardised(images: Array, mean: float, std: float) -> Array:
    return (images.astype(jnp.float32) / 255 - mean) / std
