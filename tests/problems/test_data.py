"""Data sets in IDX files: MNIST in the repository, the split, damaged files, downloads."""

import gzip
import hashlib
import math

import numpy as np
import pooch
import pytest

from fwdgrad.problems import DATASET_NAMES, DataError, datasets, files, idx, load_dataset, read_idx

MNIST = files.REPOSITORY / "mnist"


def idx_bytes(array):
    """Return the content of the IDX file of an array."""
    lengths = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + lengths + array.astype(np.uint8).tobytes()


def write_small_dataset(folder, *, packed, labels=5_002):
    """Write four files in the format of MNIST; all pixels but the first of an image are zero."""
    folder.mkdir(exist_ok=True)
    for name in idx.FILES:
        part = np.arange(labels) % 10
        if "images" in name:
            part = np.zeros((5_002, 28, 28))
            part[:, 0, 0] = 255
        content = idx_bytes(part)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content, mtime=0) if packed else content)


def test_embedded_mnist_and_its_split():
    mnist = load_dataset("mnist")
    train = read_idx(MNIST / "train-images-idx3-ubyte.gz", ndim=3)
    labels = read_idx(MNIST / "train-labels-idx1-ubyte.gz", ndim=1)
    np.testing.assert_array_equal(np.concatenate([mnist.train.images, mnist.valid.images]), train)
    np.testing.assert_array_equal(np.concatenate([mnist.train.labels, mnist.valid.labels]), labels)
    assert [len(part.labels) for part in mnist[:3]] == [55_000, 5_000, 10_000]
    assert mnist.test.images.shape == (10_000, 28, 28) and mnist.test.labels.dtype == np.int32
    assert list(mnist.test.labels[:5]) == [7, 2, 1, 0, 4]
    pixels = mnist.train.images / 255
    np.testing.assert_allclose([mnist.mean, mnist.std], [pixels.mean(), pixels.std()], rtol=1e-10)


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_of_packed_or_plain_files_is_loaded(tmp_path, packed):
    write_small_dataset(tmp_path, packed=packed)
    dataset = load_dataset("kmnist", tmp_path)
    assert [len(part.labels) for part in dataset[:3]] == [2, 5_000, 5_002]
    assert math.isclose(dataset.mean, 1 / 784)


@pytest.fixture(scope="module")
def labels_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("idx") / "train-labels-idx1-ubyte.gz"
    path.write_bytes((MNIST / path.name).read_bytes())
    return path


@pytest.mark.parametrize("fraction", [0, 0.3, 0.999])
def test_a_truncated_file_is_an_error(labels_file, tmp_path, fraction):
    path = tmp_path / labels_file.name
    content = labels_file.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    expected = (
        "not an IDX file.*an empty file" if fraction == 0 else "damaged: expected a whole gzip"
    )
    with pytest.raises(DataError, match=f"{path}.*{expected}"):
        read_idx(path, ndim=1)


def test_a_flipped_byte_is_an_error_or_changes_no_data(labels_file, tmp_path):
    """At positions all over the file, header and trailer included."""
    content = bytearray(labels_file.read_bytes())
    original = read_idx(labels_file, ndim=1)
    path = tmp_path / labels_file.name
    sums = datasets._SOURCES["mnist"].unpacked
    noticed = 0
    positions = [
        *range(30),
        *range(30, len(content) - 8, 997),
        *range(len(content) - 8, len(content)),
    ]
    for position in positions:
        content[position] ^= 0x10
        path.write_bytes(content)
        content[position] ^= 0x10
        try:
            found = read_idx(path, ndim=1, sha256=sums[1])
        except DataError as error:
            assert str(path) in str(error) and "expected" in str(error)
            noticed += 1
        else:  # a byte of the gzip header that carries no data, such as the time
            np.testing.assert_array_equal(found, original)
    assert noticed >= len(positions) - 10


def test_a_flipped_byte_in_a_plain_file_is_an_error(labels_file, tmp_path):
    path = tmp_path / "train-labels-idx1-ubyte"
    content = bytearray(gzip.decompress(labels_file.read_bytes()))
    content[1_000] ^= 1
    path.write_bytes(content)
    sums = datasets._SOURCES["mnist"].unpacked
    with pytest.raises(
        DataError, match=f"{path} is damaged: the SHA-256 sum .* expected {sums[1]}"
    ):
        read_idx(path, ndim=1, sha256=sums[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<html>404</html>", "expected it to begin with the bytes 00 00 08 01"),
        (idx_bytes(np.zeros((2, 2))), "with 1 axes.*found 00 00 08 02"),
        (idx_bytes(np.zeros(10))[:-1], r"shape \(10,\), so 18 bytes were expected.*has 17"),
        (idx_bytes(np.zeros(10)) + b"x", "18 bytes were expected.*has 19"),
    ],
)
def test_a_file_of_another_format_or_length_is_an_error(tmp_path, content, message):
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path, ndim=1)


def test_missing_files_are_errors(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}/train-images-idx3-ubyte.gz is missing"):
        load_dataset("mnist", tmp_path)
    with pytest.raises(DataError, match="labels is missing: expected an IDX file there"):
        read_idx(tmp_path / "labels", ndim=1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder cannot be read"):
        read_idx(tmp_path / "folder", ndim=1)


def test_images_and_labels_of_different_numbers_are_an_error(tmp_path):
    write_small_dataset(tmp_path, packed=False, labels=5_003)
    with pytest.raises(DataError, match=r"do not belong together.*found 5002 and 5003"):
        load_dataset("kmnist", tmp_path)


def test_too_few_images_for_a_validation_set_are_an_error(tmp_path):
    write_small_dataset(tmp_path, packed=False)
    for name, content in zip(idx.FILES, (np.zeros((5_000, 28, 28)), np.zeros(5_000)), strict=False):
        (tmp_path / name).write_bytes(idx_bytes(content))
    with pytest.raises(DataError, match=r"training files of kmnist have 5000 images: .* than 5000"):
        load_dataset("kmnist", tmp_path)


def test_images_of_another_size_are_an_error(tmp_path):
    write_small_dataset(tmp_path, packed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx_bytes(np.zeros((5_002, 32, 32))))
    with pytest.raises(DataError, match=f"{path} .*expected images of 28×28 pixels, found 32×32"):
        load_dataset("kmnist", tmp_path)


def test_labels_out_of_range_are_an_error(tmp_path):
    write_small_dataset(tmp_path, packed=False)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.full(5_002, 10)))
    with pytest.raises(
        DataError, match=f"{path} is damaged: expected labels from 0 to 9, found 10"
    ):
        load_dataset("fashion_mnist", tmp_path)


def test_an_unknown_name_is_an_error():
    with pytest.raises(
        ValueError, match=f"name must be one of {', '.join(DATASET_NAMES)}; found 'x'"
    ):
        load_dataset("x")


@pytest.fixture
def served(tmp_path, monkeypatch, serve):
    """Serve a small data set as KMNIST and MNIST from a local server, with an empty cache."""
    write_small_dataset(tmp_path / "served", packed=True)
    server, url = serve(tmp_path / "served")
    sums = tuple(
        hashlib.sha256((tmp_path / "served" / f"{name}.gz").read_bytes()).hexdigest()
        for name in idx.FILES
    )
    source = idx.IdxImages(url, packed=sums)
    monkeypatch.setitem(datasets._SOURCES, "kmnist", source)
    monkeypatch.setitem(datasets._SOURCES, "mnist", source)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    return server, tmp_path


def test_files_are_downloaded_once(served):
    server, _ = served
    first = load_dataset("kmnist")
    server.shutdown()  # the second call reads the cache
    second = load_dataset("kmnist")
    np.testing.assert_array_equal(first.test.labels, second.test.labels)


def test_mnist_is_downloaded_where_the_repository_is_not(served, monkeypatch):
    """In an installed wheel, which has no data."""
    server, tmp_path = served
    here = files.REPOSITORY / "mnist" / "README.md"
    assert "Creative Commons" in here.read_text(encoding="utf-8")
    monkeypatch.setattr(files, "REPOSITORY", tmp_path / "wheel")
    first = load_dataset("mnist")
    assert len(first.test.labels) == 5_002
    server.shutdown()
    server.server_close()  # refuses connections at once
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "empty")
    with pytest.raises(
        DataError,
        match=r"of mnist cannot be downloaded.*Put the files of mnist in a folder",
    ):
        load_dataset("mnist")


def test_a_corrupted_download_is_an_error_and_leaves_no_file(served):
    _, tmp_path = served
    path = tmp_path / "served" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte.gz of kmnist cannot be downloaded.*folder"
    ):
        load_dataset("kmnist")
    assert not (tmp_path / "cache" / "kmnist" / path.name).exists()
