"""MNIST, Fashion-MNIST and KMNIST as arrays, in a fixed train/validation/test split.

Each data set has 60,000 images for training and 10,000 for testing, 28×28 unsigned bytes in 10
classes, in four IDX files. The split is the same for all and never random:

    train   the first 55,000 images of the training files
    valid   the last   5,000 images of the training files
    test    the test files; a run evaluates them once, at its end

MNIST is part of the repository, and not of the wheel. A data set that is not here is read from a
folder that the caller names, or downloaded once.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fwdgrad.problems.idx import DataError, read_idx

NUM_VALID = 5_000
NUM_CLASSES = 10
IMAGE_SHAPE = (28, 28)


class Examples(NamedTuple):
    """Images, uint8 (n, rows, columns) or (n, rows, columns, channels), and labels, int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Three sets of examples.

    Attributes:
      train, valid, test: images and labels.
      mean, std: of the training pixels over 255: numbers, or arrays (channels,).
      num_classes: the number of classes.
    """

    train: Examples
    valid: Examples
    test: Examples
    mean: float | np.ndarray
    std: float | np.ndarray
    num_classes: int = NUM_CLASSES


class _Source(NamedTuple):
    """The source of a data set, and the SHA-256 sums of its files, in the order of `_FILES`.

    Attributes:
      url: the folder of the download.
      packed: the sums of the .gz files of the download.
      unpacked: the sums of their content, of a data set of the repository, whose .gz files differ.
    """

    url: str
    packed: tuple[str, ...]
    unpacked: tuple[str, ...] | None = None


_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

_REPOSITORY = Path(__file__).parent / "data"

_SOURCES = {
    "mnist": _Source(
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
    "fashion_mnist": _Source(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        packed=(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    "kmnist": _Source(
        url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        packed=(
            "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        ),
    ),
}
DATASET_NAMES = tuple(_SOURCES)


def load_dataset(name: str, folder: str | Path | None = None) -> Dataset:
    """Load a data set by name.

    Args:
      name: `mnist`, `fashion_mnist` or `kmnist`.
      folder: the folder of its four IDX files, each plain or with `.gz`. By default MNIST is read
        from the repository; the other data sets, and MNIST for an installed wheel, are downloaded
        once to the user's cache folder.

    Returns:
      A `Dataset` of NumPy arrays: images uint8 (n, 28, 28), labels int32 (n,).

    Raises:
      ValueError: `name` is none of the three.
      DataError: a file is missing, damaged or of another format, or cannot be downloaded.

    >>> mnist = load_dataset("mnist")
    >>> [len(examples.labels) for examples in (mnist.train, mnist.valid, mnist.test)]
    [55000, 5000, 10000]
    """
    if name not in _SOURCES:
        raise ValueError(f"name must be one of {', '.join(_SOURCES)}; found {name!r}.")
    source = _SOURCES[name]
    if folder is not None:
        paths = [_find(name, Path(folder).expanduser(), file) for file in _FILES]
    elif (_REPOSITORY / name / f"{_FILES[0]}.gz").exists():
        paths = [_REPOSITORY / name / f"{file}.gz" for file in _FILES]
    else:
        paths = [_download(name, source, index) for index in range(len(_FILES))]
    sums = source.unpacked or (None,) * len(_FILES)
    arrays = [
        read_idx(path, ndim=3 if "images" in path.name else 1, sha256=sha256)
        for path, sha256 in zip(paths, sums, strict=True)
    ]
    train, test = _paired(paths[:2], arrays[:2]), _paired(paths[2:], arrays[2:])
    return _split(train, test)


def _split(training: Examples, test: Examples) -> Dataset:
    """Split the training files into train and valid, and compute the moments of the pixels."""
    train = Examples(*(array[:-NUM_VALID] for array in training))
    valid = Examples(*(array[-NUM_VALID:] for array in training))
    # Sums of integers are exact, and need no float copy of the images.
    pixels = train.images.size
    first = int(train.images.sum(dtype=np.uint64)) / pixels
    second = int(np.square(train.images, dtype=np.uint16).sum(dtype=np.uint64)) / pixels
    return Dataset(train, valid, test, first / 255, (second - first**2) ** 0.5 / 255)


def _paired(paths: list[Path], arrays: list[np.ndarray]) -> Examples:
    """Return images and labels of a pair of files; raise DataError unless they fit each other."""
    images, labels = arrays
    if len(images) != len(labels) or len(labels) <= NUM_VALID:
        raise DataError(
            f"{paths[0]} and {paths[1]} do not belong together: expected as many images as "
            f"labels, more than {NUM_VALID}, but found {len(images)} and {len(labels)}. Take both "
            "files from one data set."
        )
    if images.shape[1:] != IMAGE_SHAPE:
        raise DataError(
            f"{paths[0]} is of another data set: expected images of 28×28 pixels, found "
            f"{images.shape[1]}×{images.shape[2]}. Take the files that `name` stands for."
        )
    if labels.max() >= NUM_CLASSES:
        raise DataError(
            f"{paths[1]} is damaged: expected labels from 0 to {NUM_CLASSES - 1}, found "
            f"{labels.max()}. Get the file anew."
        )
    return Examples(images, labels.astype(np.int32))


def _find(name: str, folder: Path, file: str) -> Path:
    """Return the path of a file in a folder, packed or plain; raise DataError if it is missing."""
    candidates = (folder / f"{file}.gz", folder / file)
    for path in candidates:
        if path.exists():
            return path
    raise DataError(
        f"{candidates[0]} is missing: expected it, or {file}, in the folder of {name}. Put it "
        "there, or name another folder (dataset.folder=...)."
    )


def _download(name: str, source: _Source, index: int) -> Path:
    """Return the path of a file in the user's cache folder, downloaded if it is not there."""
    import pooch  # here, so that a data set of the repository needs no download library

    file = f"{_FILES[index]}.gz"
    try:
        # pooch downloads to a temporary file, checks the sum, and renames the file after that.
        path = pooch.retrieve(
            url=source.url + file,
            known_hash=f"sha256:{source.packed[index]}",
            fname=file,
            path=pooch.os_cache("fwdgrad") / name,
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} of {name} cannot be downloaded from {source.url}: {error}. Put its four "
            "files in a folder by hand and name that folder (dataset.folder=...)."
        ) from error
    return Path(path)
