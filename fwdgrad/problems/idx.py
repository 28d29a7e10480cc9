"""IDX files, the format of MNIST, Fashion-MNIST and KMNIST, plain or gzipped.

An IDX file is two zero bytes, a type code, the number of axes, one big-endian 32-bit length
for each axis, and the entries in row-major order. The data sets here use type 8 alone,
unsigned bytes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fwdgrad.problems import files
from fwdgrad.problems.files import DataError, Examples

_UNSIGNED_BYTE = 8
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class IdxImages:
    """A data set of gray images in four IDX files.

    Attributes:
      url: the folder of the download.
      packed: the SHA-256 sums of the .gz files of the download, in the order of `FILES`.
      unpacked: the sums of their content, of a data set of the repository, whose .gz files differ.
      shape: of an image.
      num_classes: the number of classes.
    """

    url: str
    packed: tuple[str, ...]
    unpacked: tuple[str, ...] | None = None
    shape: tuple[int, int] = (28, 28)
    num_classes: int = 10

    def read(self, name: str, folder: Path | None) -> tuple[Examples, Examples]:
        """Return the examples of the training files and of the test files.

        Raises:
          DataError: a file is missing, damaged or of another format, or cannot be downloaded.
        """
        if folder is not None:
            paths = [files.find(name, folder, f"{file}.gz", file) for file in FILES]
        elif (files.REPOSITORY / name / f"{FILES[0]}.gz").exists():
            paths = [files.REPOSITORY / name / f"{file}.gz" for file in FILES]
        else:
            paths = [
                files.download(name, self.url, f"{file}.gz", sha256)
                for file, sha256 in zip(FILES, self.packed, strict=True)
            ]
        arrays = [
            read_idx(path, ndim=3 if "images" in path.name else 1, sha256=sha256)
            for path, sha256 in zip(paths, self.unpacked or (None,) * len(FILES), strict=True)
        ]
        return self._paired(paths[:2], arrays[:2]), self._paired(paths[2:], arrays[2:])

    def _paired(self, paths: list[Path], arrays: list[np.ndarray]) -> Examples:
        """Return images and labels of two files; raise DataError unless they fit each other."""
        images, labels = arrays
        if len(images) != len(labels):
            raise DataError(
                f"{paths[0]} and {paths[1]} do not belong together: expected as many images as "
                f"labels, but found {len(images)} and {len(labels)}. Take both files from one data "
                "set."
            )
        if images.shape[1:] != self.shape:
            raise DataError(
                f"{paths[0]} is of another data set: expected images of {_by(self.shape)} pixels, "
                f"found {_by(images.shape[1:])}. Take the files that `name` stands for."
            )
        return Examples(images, files.checked_labels(paths[1], labels, self.num_classes))


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def read_idx(path: str | Path, *, ndim: int, sha256: str | None = None) -> np.ndarray:
    """Read an IDX file of unsigned bytes.

    Args:
      path: the file; gzipped if it ends in `.gz`.
      ndim: the number of axes it must have: 3 for images (n, rows, columns), 1 for labels.
      sha256: the SHA-256 sum of the unpacked file; None for no check.

    Returns:
      An array of dtype uint8 with `ndim` axes, read-only.

    Raises:
      DataError: the file is missing, is no valid gzip or IDX file, is shorter or longer than
        its header says, or has another sum. The message names the file and the expected content.

    >>> file = Path(__file__).parent / "data" / "mnist" / "t10k-labels-idx1-ubyte.gz"
    >>> read_idx(file, ndim=1)[:3]
    array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    content = files.content(path, "an IDX file")
    offset = 4 + 4 * ndim
    magic = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    if len(content) < offset or content[:4] != magic:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes with {ndim} axes: expected it to begin "
            f"with the bytes {magic.hex(' ')} and {ndim} lengths, found "
            f"{content[:4].hex(' ') or 'an empty file'}."
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=ndim, offset=4))
    expected = offset + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path} is damaged: its header announces the shape {shape}, so {expected} bytes "
            f"were expected, but it has {len(content)}. Get the file anew."
        )
    if sha256 is not None:
        files.check_sum(path, content, sha256)
    return np.frombuffer(content, np.uint8, offset=offset).reshape(shape)
