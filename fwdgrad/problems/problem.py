"""Supervised problems: initial parameters, scores of each example, and three sets of examples."""

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

Batch = PyTree  # arrays that share their first axis, the minibatch axis


class Problem(NamedTuple):
    """A supervised problem, as training code uses it.

    Attributes:
      init: key -> parameters, a pytree of floating arrays alone.
      scores: (parameters, batch) -> {"loss": (n,), "accuracy": (n,)}, one float for each example.
      train, valid, test: three sets of examples, arrays on the device.
    """

    init: Callable[[Array], PyTree]
    scores: Callable[[PyTree, Batch], dict[str, Array]]
    train: Batch
    valid: Batch
    test: Batch

    def loss(self, params: PyTree, batch: Batch) -> Array:
        """Return the mean loss over a batch, the scalar that training minimises."""
        return self.scores(params, batch)["loss"].mean()


def image_classification(make_model: Callable[..., eqx.Module], dataset: Dataset) -> Problem:
    """Return the classification of a data set's images by softmax cross-entropy.

    The loss of an image with logits z and label y is log Σ_j exp z_j − z_y, in nats. The accuracy
    is 1 if z_y is the largest logit, else 0. If a model returns several rows of logits
    (`LocalHeads`), the losses of the rows are added and the last row is the prediction.

    Images are standardised once, to float32 (byte/255 − mean)/std with the mean and the standard
    deviation of all training pixels, the scaling that reproduces the paper's curves.
    (Standardised images take 4 bytes a pixel, 220 MB in all. Standardising them in every step would
    take longer than the rest of a step of logistic regression.)

    Args:
      make_model: (key=...) -> a module from one image (28, 28) to logits (10,) or (rows, 10).
      dataset: the result of `load_dataset`.

    >>> from fwdgrad.problems import Examples, LogisticRegression, load_dataset
    >>> mnist = load_dataset("mnist")
    >>> few = [Examples(part.images[:8], part.labels[:8]) for part in mnist[:3]]
    >>> problem = image_classification(LogisticRegression, Dataset(*few, mnist.mean, mnist.std))
    >>> problem.scores(problem.init(jax.random.key(0)), problem.train)["loss"].shape
    (8,)
    """
    return classification(make_model, *standardised(dataset))


def classification(
    make_model: Callable[..., eqx.Module], train: Batch, valid: Batch, test: Batch
) -> Problem:
    """Return the problem of `image_classification` for images that are already standardised.

    Args:
      make_model: as in `image_classification`.
      train, valid, test: the result of `standardised`; several problems may share it.
    """
    _, static = partition(make_model(key=jax.random.key(0)))

    def init(key: Array) -> PyTree:
        return partition(make_model(key=key))[0]

    def scores(params: PyTree, batch: Batch) -> dict[str, Array]:
        images, labels = batch
        logits = jax.vmap(combine(params, static))(images)
        prediction = logits
        if logits.ndim == 3:
            prediction, labels_of_rows = logits[:, -1], labels[:, None]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels_of_rows).sum(1)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"loss": losses, "accuracy": (prediction.argmax(-1) == labels).astype(jnp.float32)}

    return Problem(init, scores, train, valid, test)


def standardised(dataset: Dataset) -> tuple[Batch, Batch, Batch]:
    """Return the three sets of examples on the device, with standardised float32 images."""
    train, valid, test = (
        (_standardised(part.images, dataset.mean, dataset.std), jax.device_put(part.labels))
        for part in dataset[:3]
    )
    return train, valid, test


@jax.jit
def _standardised(images: Array, mean: float, std: float) -> Array:
    return (images.astype(jnp.float32) / 255 - mean) / std
