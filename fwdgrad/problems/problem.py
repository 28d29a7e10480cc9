"""Problems: initial parameters, scores of each example, and three sets of examples."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from fwdgrad import combine, partition
from fwdgrad.problems.datasets import Dataset
from fwdgrad.util.trees import PyTree

Batch = PyTree  # arrays that share their first axis, the minibatch axis


@dataclass(frozen=True)
class Loader:
    """A set of examples that a loader of another library yields in minibatches, from host memory.

    Args:
      make: seed -> an iterable of minibatches, one epoch; a minibatch is a pytree of arrays that
        share their first axis (NumPy's, or PyTorch's on a CPU). It is called for each epoch with
        another seed, which decides the order: the same seed must yield the same minibatches, or a
        run that is interrupted ends with other numbers.

    >>> loader = Loader(lambda seed: ({"x": jnp.full((2, 3), i)} for i in range(4)))
    >>> [batch["x"][0, 0].item() for batch in loader.batches(0)]
    [0, 1, 2, 3]
    """

    make: Callable[[int], Iterable[PyTree]]

    def batches(self, seed: int) -> Iterator[PyTree]:
        """Return an iterator over the minibatches of an epoch."""
        return iter(self.make(seed))


class Problem(NamedTuple):
    """A problem, as training code uses it: an estimator minimises the mean loss of the examples.

    Attributes:
      init: key -> parameters, a pytree of floating arrays alone.
      scores: (parameters, batch) -> {"loss": (n,)}, one float for each of the n examples; with
        "accuracy": (n,), 1 if an example is classified rightly and else 0, where that has a
        meaning. Further names are recorded of the test set.
      train, valid, test: three sets of examples, each of arrays that share their first axis, or a
        `Loader`.
      augment: (key, batch) -> the batch that a step of training sees, of the same shapes and types
        (random crops, say); None: the batch itself. Only training calls it: the sets are evaluated
        as they are.
    """

    init: Callable[[Array], PyTree]
    scores: Callable[[PyTree, Batch], dict[str, Array]]
    train: Batch | Loader
    valid: Batch | Loader
    test: Batch | Loader
    augment: Callable[[Array, Batch], Batch] | None = None

    def loss(self, params: PyTree, batch: Batch) -> Array:
        """Return the mean loss over a batch, the scalar that training minimises."""
        return self.scores(params, batch)["loss"].mean()


class ImageSets(NamedTuple):
    """A data set of images on the device: standardised float32 images and int32 labels.

    Attributes:
      train, valid, test: pairs of images (n, rows, columns) or (n, rows, columns, channels), and
        labels (n,).
      num_classes: the number of classes.
    """

    train: tuple[Array, Array]
    valid: tuple[Array, Array]
    test: tuple[Array, Array]
    num_classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image."""
        return self.train[0].shape[1:]


def image_classification(
    make_model: Callable[..., eqx.Module], dataset: Dataset | ImageSets
) -> Problem:
    """Return the classification of a data set's images by softmax cross-entropy.

    The loss of an image with logits z and label y is log Σ_j exp z_j − z_y, in nats. The accuracy
    is 1 if z_y is the largest logit, else 0. If a model returns several rows of logits
    (`LocalHeads`), the losses of the rows are added and the last row is the prediction.

    Images are standardised once, to float32 (byte/255 − mean)/std with the mean and the standard
    deviation of all training pixels, the scaling that reproduces the paper's curves.
    (Standardised images take 4 bytes a pixel, 220 MB in all. Standardising them in every step would
    take longer than the rest of a step of logistic regression.)

    Args:
      make_model: (key=...) -> a module from one image to logits (classes,) or (rows, classes). If
        it has arguments `shape` and `num_classes`, they are those of the data set.
      dataset: the result of `load_dataset`, or of `standardised`, which several problems may share.

    >>> from fwdgrad.problems import Examples, LogisticRegression, load_dataset
    >>> mnist = load_dataset("mnist")
    >>> few = [Examples(part.images[:8], part.labels[:8]) for part in mnist[:3]]
    >>> problem = image_classification(LogisticRegression, Dataset(*few, mnist.mean, mnist.std))
    >>> problem.scores(problem.init(jax.random.key(0)), problem.train)["loss"].shape
    (8,)
    """
    sets = dataset if isinstance(dataset, ImageSets) else standardised(dataset)
    make_model = made_for(make_model, shape=sets.shape, num_classes=sets.num_classes)
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

    return Problem(init, scores, *sets[:3])


def made_for(make: Callable[..., Any], **facts: Any) -> Callable[..., Any]:
    """Return a constructor with those of `facts` that it has as arguments, not yet given.

    So do the constructors within it: a `make_model` that it was given.

    >>> made = made_for(lambda key, shape=(1,): (shape, key), shape=(4, 4), num_classes=3)
    >>> made(key=0)
    ((4, 4), 0)
    """
    own, args, keywords = make, (), {}
    if isinstance(make, functools.partial):
        own, args, keywords = make.func, make.args, make.keywords
    signature = inspect.signature(own)
    given = signature.bind_partial(*args, **keywords)
    for name, fact in facts.items():
        if name in signature.parameters:
            given.arguments.setdefault(name, fact)
    if "make_model" in given.arguments:
        given.arguments["make_model"] = made_for(given.arguments["make_model"], **facts)
    return functools.partial(own, *given.args, **given.kwargs)


def standardised(dataset: Dataset) -> ImageSets:
    """Return a data set on the device, with standardised float32 images."""
    train, valid, test = (
        (_standardised(part.images, dataset.mean, dataset.std), jax.device_put(part.labels))
        for part in dataset[:3]
    )
    return ImageSets(train, valid, test, dataset.num_classes)


@jax.jit
def _standardised(images: Array, mean: float, std: float) -> Array:
    return (images.astype(jnp.float32) / 255 - mean) / std
