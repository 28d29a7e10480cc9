"""Data sets of images as arrays, in a fixed train/validation/test split.

MNIST, Fashion-MNIST and KMNIST have 60,000 images for training and 10,000 for testing, 28×28 bytes;
CIFAR-10 has 50,000 and 10,000, 32×32×3 bytes. All have 10 classes. The split is never random:

    train   the images of the training files but the last 5,000
    valid   the last 5,000 images of the training files (of a data set of yours a tenth, if less)
    test    the test files; a run evaluates them once, at its end

MNIST is part of the repository, and not of the wheel. A data set that is not here is read from a
folder that the caller names, or downloaded once.
"""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fwdgrad.problems.cifar import Cifar10
from fwdgrad.problems.files import DataError, Examples
from fwdgrad.problems.idx import IdxImages

NUM_VALID = 5_000


class Dataset(NamedTuple):
    """Three sets of examples.

    Attributes:
      train, valid, test: images and labels.
      mean, std: of the training pixels over 255: numbers, or float32 arrays (channels,).
      num_classes: the number of classes.
    """

    train: Examples
    valid: Examples
    test: Examples
    mean: float | np.ndarray
    std: float | np.ndarray
    num_classes: int = 10


class Source(Protocol):
    """The protocol of a data set's source: a row of the table below, or one of your own."""

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        ...

    def read(self, name: str, folder: Path | None) -> tuple[Examples, Examples]:
        """Return the examples of the training files and of the test files.

        Args:
          name: of the data set.
          folder: the folder of its files; None: that of the repository, or a download.
        """
        ...


_SOURCES: dict[str, Source] = {
    "mnist": IdxImages(
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        packed=(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        unpacked=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": IdxImages(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        packed=(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    "kmnist": IdxImages(
        url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        packed=(
            "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        ),
    ),
    "cifar10": Cifar10(
        url="https://www.cs.toronto.edu/~kriz/",
        archive="cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
}
DATASET_NAMES = tuple(_SOURCES)


def load_dataset(
    name: str, folder: str | Path | None = None, source: Source | None = None
) -> Dataset:
    """Load a data set by name.

    Args:
      name: `mnist`, `fashion_mnist`, `kmnist` or `cifar10`; with a source any name.
      folder: the folder of its files: four IDX files, each plain or with `.gz`, or for CIFAR-10 the
        six files of the binary version or its archive. By default MNIST is read from the
        repository; the other data sets, and MNIST for an installed wheel, are downloaded once to
        the user's cache folder.
      source: of a data set of your own, an object with `num_classes` and `read(name, folder)`.

    Returns:
      A `Dataset` of NumPy arrays: images uint8 (n, 28, 28) or (n, 32, 32, 3), labels int32 (n,).

    Raises:
      TypeError, ValueError: `source` is no source; without one, `name` is none of these.
      DataError: a file is missing, damaged or of another format, or cannot be downloaded.

    >>> mnist = load_dataset("mnist")
    >>> [len(examples.labels) for examples in (mnist.train, mnist.valid, mnist.test)]
    [55000, 5000, 10000]
    """
    if source is None and name not in _SOURCES:
        raise ValueError(f"name must be one of {', '.join(_SOURCES)}; found {name!r}.")
    of_name = _SOURCES[name] if source is None else source
    if missing := [x for x in ("num_classes", "read") if not hasattr(of_name, x)]:
        raise TypeError(
            f"source must be an object with num_classes and read(name, folder); found "
            f"{type(source).__name__}, without {' and '.join(missing)}."
        )
    training, test = of_name.read(name, None if folder is None else Path(folder).expanduser())
    found = len(training.labels)
    num_valid = NUM_VALID if source is None else min(NUM_VALID, max(1, found // 10))
    if found <= num_valid:
        raise DataError(
            f"the training files of {name} have {found} images: expected more than {num_valid}, of "
            f"which the last {num_valid} are for validation. Take the files that `name` stands for."
        )
    train = Examples(*(array[:-num_valid] for array in training))
    valid = Examples(*(array[-num_valid:] for array in training))
    mean, std = _moments(train.images)
    return Dataset(train, valid, test, mean, std, of_name.num_classes)


def _moments(images: np.ndarray) -> tuple[Any, Any]:
    """Return mean and standard deviation of the pixels over 255, by channel if there are channels.

    Sums of integers are exact, and need no float copy of the images.
    """
    pixels = images[..., None] if images.ndim == 3 else images
    number = pixels[..., 0].size
    first = pixels.sum((0, 1, 2), dtype=np.uint64) / number
    second = np.square(pixels, dtype=np.uint16).sum((0, 1, 2), dtype=np.uint64) / number
    mean, std = first / 255, (second - first**2) ** 0.5 / 255
    if images.ndim == 3:
        return mean.item(), std.item()
    return mean.astype(np.float32), std.astype(np.float32)
