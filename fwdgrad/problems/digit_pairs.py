"""The sum of two digits: images side by side, classified by the sum of their labels."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from fwdgrad.problems.datasets import Dataset
from fwdgrad.problems.problem import ImageSets, Problem, image_classification, standardised


def digit_sum(
    make_model: Callable[..., eqx.Module], dataset: Dataset | ImageSets, seed: int = 0
) -> Problem:
    """Return the classification of two images side by side by (y₁ + y₂) mod C.

    y₁ and y₂ are the labels of the two images, C is the number of classes. Given one label, all
    classes are about equally likely, so a model has to read both images. Loss and accuracy are
    those of `image_classification`. Images are (28, 56) for MNIST. Each image is in one pair; the
    pairs of a set are of images of this set alone.

    Args:
      make_model: as in `image_classification`.
      dataset: as in `image_classification`.
      seed: of the pairs.

    Source: the addition of digits is a task of R. Manhaeve et al., DeepProbLog (2018).

    >>> import jax
    >>> from fwdgrad.problems import MLP, load_dataset
    >>> problem = digit_sum(MLP, load_dataset("mnist"))
    >>> [images.shape for images, labels in (problem.train, problem.valid, problem.test)]
    [(27500, 28, 56), (2500, 28, 56), (5000, 28, 56)]
    """
    sets = dataset if isinstance(dataset, ImageSets) else standardised(dataset)
    train, valid, test = (
        _paired(*part, sets.num_classes, np.random.default_rng([seed, index]))
        for index, part in enumerate(sets[:3])
    )
    return image_classification(make_model, ImageSets(train, valid, test, sets.num_classes))


def _paired(
    images: Array, labels: Array, num_classes: int, generator: np.random.Generator
) -> tuple[Array, Array]:
    order = generator.permutation(len(labels))
    left, right = np.split(order[: len(order) // 2 * 2], 2)
    both = jnp.concatenate([images[left], images[right]], axis=2)
    return both, (labels[left] + labels[right]) % num_classes
