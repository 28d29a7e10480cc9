"""The files of data sets: found in a folder, or downloaded with a pinned sum; read whole."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

REPOSITORY = Path(__file__).parent / "data"  # not in the wheel


class DataError(ValueError):
    """A data file is missing, truncated, corrupted or of another format."""


class Examples(NamedTuple):
    """Images, uint8 (n, rows, columns) or (n, rows, columns, channels), and labels, int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray


def find(name: str, folder: Path, *files: str) -> Path:
    """Return the path of a file in the folder of a data set.

    Args:
      name: of the data set.
      folder: its folder.
      files: the names that the file may have.

    Raises:
      DataError: there is none of them.
    """
    for file in files:
        if (folder / file).exists():
            return folder / file
    raise DataError(
        f"{folder / files[0]} is missing: expected {' or '.join(files)} in the folder of {name}. "
        "Put it there, or name another folder (dataset.folder=...)."
    )


def download(name: str, url: str, file: str, sha256: str) -> Path:
    """Return the path of a file in the user's cache folder, downloaded if it is not there.

    Args:
      name: of the data set.
      url: the folder of the download, which ends in /.
      file: the name of the file.
      sha256: the SHA-256 sum of the file.

    Raises:
      DataError: it cannot be downloaded, or has another sum.
    """
    import pooch  # here, so that a data set of the repository needs no download library

    try:
        # pooch downloads to a temporary file, checks the sum, and renames the file after that.
        path = pooch.retrieve(
            url=url + file,
            known_hash=f"sha256:{sha256}",
            fname=file,
            path=pooch.os_cache("fwdgrad") / name,
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} of {name} cannot be downloaded from {url}: {error}. Put the files of {name} "
            "in a folder by hand and name that folder (dataset.folder=...)."
        ) from error
    return Path(path)


def content(path: Path, kind: str, sha256: str | None = None) -> bytes:
    """Return the content of a file, unpacked if its name ends in `.gz`.

    Args:
      path: the file.
      kind: the kind of file, in errors.
      sha256: the SHA-256 sum of the unpacked content; None for no check.

    Raises:
      DataError: the file is missing or cannot be read, is no whole gzip file, or has another sum.
    """
    try:
        found = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: expected {kind} there. Put it there, or name another folder."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if path.suffix == ".gz":
        try:
            found = gzip.decompress(found)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path} is damaged: expected a whole gzip file, but unpacking its {len(found)} "
                f"bytes failed ({error}). Get the file anew."
            ) from error
    if sha256 is not None:
        check_sum(path, found, sha256)
    return found


def check_sum(path: Path, unpacked: bytes, sha256: str) -> None:
    """Raise DataError unless the unpacked content of a file has a SHA-256 sum."""
    if (found := hashlib.sha256(unpacked).hexdigest()) != sha256:
        raise DataError(
            f"{path} is damaged: the SHA-256 sum of its unpacked content is {found}, expected "
            f"{sha256}. Get the file anew."
        )


def checked_labels(path: Path, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return labels as int32; raise DataError if one names no class."""
    if labels.max() >= num_classes:
        raise DataError(
            f"{path} is damaged: expected labels from 0 to {num_classes - 1}, found "
            f"{labels.max()}. Get the file anew."
        )
    return labels.astype(np.int32)
