"""The binary version of CIFAR-10: six files of rows, plain or in one archive.

A row is a byte for the label and 3,072 bytes for the image: its red, green and blue channel one
after the other, each 32×32 in row-major order. Source: A. Krizhevsky, Learning multiple layers of
features from tiny images (2009).
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fwdgrad.problems import files
from fwdgrad.problems.files import DataError, Examples

_SIDE, _CHANNELS = 32, 3
_ROW = 1 + _SIDE * _SIDE * _CHANNELS
_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
_INSIDE = "cifar-10-batches-bin"  # the folder in the archive


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10: 32×32 images of three channels in ten classes.

    Attributes:
      url: the folder of the download.
      archive: the name of the archive there.
      sha256: the SHA-256 sum of the archive.
      rows: the number of images in each of the six files.
      num_classes: the number of classes.
    """

    url: str
    archive: str
    sha256: str
    rows: int = 10_000
    num_classes: int = 10

    def read(self, name: str, folder: Path | None) -> tuple[Examples, Examples]:
        """Return the examples of the five training files, and of the test file.

        Raises:
          DataError: a file is missing, damaged or of another format, or cannot be downloaded.
        """
        if folder is None:
            parts = self._unpacked(files.download(name, self.url, self.archive, self.sha256))
        elif (folder / self.archive).exists():
            parts = self._unpacked(folder / self.archive)
        else:
            paths = [files.find(name, folder, file) for file in _FILES]
            parts = [(path, files.content(path, "a file of CIFAR-10")) for path in paths]
        *training, test = (self._examples(path, content) for path, content in parts)
        return Examples(*map(np.concatenate, zip(*training, strict=True))), test

    def _unpacked(self, archive: Path) -> list[tuple[Path, bytes]]:
        content = files.content(archive, "the archive of CIFAR-10")
        try:
            with tarfile.open(fileobj=io.BytesIO(content)) as opened:
                members = [opened.extractfile(f"{_INSIDE}/{file}") for file in _FILES]
                return [
                    (archive / file, member.read() if member else b"")
                    for file, member in zip(_FILES, members, strict=True)
                ]
        except (KeyError, tarfile.TarError) as error:
            raise DataError(
                f"{archive} is of another format: expected the six files of CIFAR-10's binary "
                f"version in a folder {_INSIDE}, but unpacking them failed ({error}). Get the file "
                "anew."
            ) from error

    def _examples(self, path: Path, content: bytes) -> Examples:
        """Return the examples of a file: images (rows, 32, 32, 3) and labels (rows,)."""
        if len(content) != self.rows * _ROW:
            raise DataError(
                f"{path} is damaged or of another format: expected {self.rows} rows of {_ROW} "
                f"bytes, so {self.rows * _ROW} bytes, but it has {len(content)}. Get the binary "
                "version of CIFAR-10 anew."
            )
        found = np.frombuffer(content, np.uint8).reshape(self.rows, _ROW)
        images = found[:, 1:].reshape(self.rows, _CHANNELS, _SIDE, _SIDE).transpose(0, 2, 3, 1)
        labels = files.checked_labels(path, found[:, 0], self.num_classes)
        return Examples(np.ascontiguousarray(images), labels)
