"""The sum of two digits: images side by side, classified by the sum of their labels."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fwdgrad.problems.datasets import Dataset
from fwdgrad.problems.problem import (
    Batch,
    ImageSets,
    Problem,
    image_classification,
    standardised,
)
from fwdgrad.util.trees import PyTree


def digit_sum(
    make_model: Callable[..., eqx.Module],
    dataset: Dataset | ImageSets,
    seed: int = 0,
    max_shift: int = 0,
) -> Problem:
    """Return the classification of two images side by side by (y₁ + y₂) mod C.

    y₁ and y₂ are the labels of the two images, C is the number of classes. Given one label, all
    classes are about equally likely, so a model has to read both images. Loss and accuracy are
    those of `image_classification`. Images are (28, 56) for MNIST; a label is the two labels (2,).

    Each image of a set is in one pair, and the pairs of a set are of its images alone. In training
    each minibatch is paired anew: the right image of an example comes from the example before it,
    so that in every epoch, which has a new order, the pairs are others: fixed pairs would be half
    as many as the images. With `max_shift` s each image of a training pair is also shifted, by a
    row and a column offset drawn uniformly from −s … s; what comes in repeats the border.
    Validation and test images are not shifted.

    Args:
      make_model: as in `image_classification`.
      dataset: as in `image_classification`.
      seed: of the pairs of the three sets.
      max_shift: the largest shift of a training image, in pixels; 0: no shifts.

    Raises:
      TypeError, ValueError: `max_shift` is not an integer, is negative, or is not smaller than
        the images.

    Source: the addition of digits is a task of R. Manhaeve et al., DeepProbLog (2018).

    >>> import jax
    >>> from fwdgrad.problems import MLP, load_dataset
    >>> problem = digit_sum(MLP, load_dataset("mnist"))
    >>> [images.shape for images, labels in (problem.train, problem.valid, problem.test)]
    [(27500, 28, 56), (2500, 28, 56), (5000, 28, 56)]
    """
    sets = dataset if isinstance(dataset, ImageSets) else standardised(dataset)
    _check_shift(max_shift, sets.shape)
    train, valid, test = (
        _paired(*part, np.random.default_rng([seed, index])) for index, part in enumerate(sets[:3])
    )
    of_sum = image_classification(make_model, ImageSets(train, valid, test, sets.num_classes))

    def scores(params: PyTree, batch: Batch) -> dict[str, Array]:
        images, labels = batch
        return of_sum.scores(params, (images, labels.sum(1) % sets.num_classes))

    def augment(key: Array, batch: Batch) -> Batch:
        images, labels = _paired_anew(batch)
        if max_shift:
            halves = jnp.concatenate(jnp.split(images, 2, axis=2))
            halves = _shifted(key, halves, max_shift)
            images = jnp.concatenate(jnp.split(halves, 2), axis=2)
        return images, labels

    return of_sum._replace(scores=scores, augment=augment)


def _check_shift(max_shift: int, shape: tuple[int, ...]) -> None:
    if not isinstance(max_shift, int) or isinstance(max_shift, bool):
        raise TypeError(f"max_shift must be an integer; found {max_shift!r}.")
    if not 0 <= max_shift < min(shape[:2]):
        raise ValueError(
            f"max_shift must be 0 or more and smaller than the images, which have "
            f"{shape[0]} × {shape[1]} pixels; found {max_shift}."
        )


def _paired(images: Array, labels: Array, generator: np.random.Generator) -> tuple[Array, Array]:
    order = generator.permutation(len(labels))
    left, right = np.split(order[: len(order) // 2 * 2], 2)
    return (
        jnp.concatenate([images[left], images[right]], axis=2),
        jnp.stack([labels[left], labels[right]], axis=1),
    )


def _paired_anew(batch: Batch) -> Batch:
    """Return pairs of each left image with the right one of the example before it."""
    # The order of examples is random, so no randomness of its own is needed.
    images, labels = batch
    columns = images.shape[2] // 2
    return (
        jnp.concatenate(
            [images[:, :, :columns], jnp.roll(images[:, :, columns:], 1, axis=0)], axis=2
        ),
        jnp.stack([labels[:, 0], jnp.roll(labels[:, 1], 1)], axis=1),
    )


def _shifted(key: Array, images: Array, max_shift: int) -> Array:
    """Return each image (n, rows, columns, ...) shifted by an offset of its own."""
    more = [(0, 0)] * (images.ndim - 3)
    padded = jnp.pad(images, [(0, 0), *[(max_shift, max_shift)] * 2, *more], mode="edge")
    starts = jax.random.randint(key, (len(images), 2), 0, 2 * max_shift + 1)
    starts = jnp.pad(starts, ((0, 0), (0, len(more))))

    def crop(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, start, images.shape[1:])

    return jax.vmap(crop)(padded, starts)
