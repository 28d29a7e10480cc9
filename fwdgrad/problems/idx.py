"""A reader for IDX files, the format of MNIST, Fashion-MNIST and KMNIST, plain or gzipped.

An IDX file is two zero bytes, a type code, the number of axes, one big-endian 32-bit length
for each axis, and the entries in row-major order. The data sets here use type 8 alone,
unsigned bytes.
"""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

_UNSIGNED_BYTE = 8


class DataError(ValueError):
    """A data file is missing, truncated, corrupted or of another format."""


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
    content = _unpacked(path)
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
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(
            f"{path} is damaged: the SHA-256 sum of its unpacked content is {found}, expected "
            f"{sha256}. Get the file anew."
        )
    return np.frombuffer(content, np.uint8, offset=offset).reshape(shape)


def _unpacked(path: Path) -> bytes:
    """Return the unpacked content of a file; raise DataError if it cannot be read."""
    try:
        packed = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: expected an IDX file there. Put it there, or name another folder."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if path.suffix != ".gz":
        return packed
    try:
        return gzip.decompress(packed)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is damaged: expected a whole gzip file, but unpacking its {len(packed)} "
            f"bytes failed ({error}). Get the file anew."
        ) from error
