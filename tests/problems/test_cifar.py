"""CIFAR-10's binary version: the split, moments by channel, damaged, cut and missing files."""

import functools
import gzip
import hashlib
import math
import tarfile
from dataclasses import replace

import numpy as np
import pooch
import pytest

from fwdgrad.problems import CNN, DataError, datasets, image_classification, load_dataset
from fwdgrad.problems.cifar import _FILES, _INSIDE, Cifar10

from ..problem_checks import cifar_rows, small_cifar

ROWS = 1_010  # of each file: 50 for training, 5,000 for validation
ARCHIVE = "cifar-10-binary.tar.gz"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a small CIFAR-10."""
    monkeypatch.setitem(datasets._SOURCES, "cifar10", small_cifar(tmp_path, ROWS))
    return tmp_path


def pack(folder, archive, without=()):
    with tarfile.open(archive, "w:gz") as packed:
        for file in _FILES:
            if file not in without:
                packed.add(folder / file, f"{_INSIDE}/{file}")


def test_the_split_and_the_layout_of_a_row(folder):
    cifar = load_dataset("cifar10", folder)
    assert [len(part.labels) for part in cifar[:3]] == [50, 5_000, ROWS]
    assert cifar.train.images.dtype == np.uint8 and cifar.train.labels.dtype == np.int32
    rows = np.concatenate([cifar_rows(file, ROWS) for file in _FILES])
    images = np.concatenate([part.images for part in cifar[:3]])
    assert images.shape == (6 * ROWS, 32, 32, 3)
    np.testing.assert_array_equal(np.concatenate([x.labels for x in cifar[:3]]), rows[:, 0])
    channel, i, j = np.indices((3, 32, 32)).reshape(3, -1)
    np.testing.assert_array_equal(images[:, i, j, channel], rows[:, 1:])


def test_moments_are_of_each_channel(folder):
    rows = cifar_rows(_FILES[0], ROWS)
    rows[:, 1:1025] //= 4  # the red channel
    (folder / _FILES[0]).write_bytes(rows.tobytes())
    cifar = load_dataset("cifar10", folder)
    pixels = cifar.train.images / 255
    assert cifar.mean.shape == (3,) and cifar.mean.dtype == cifar.std.dtype == np.float32
    assert cifar.mean[0] < 0.5 * cifar.mean[1]
    np.testing.assert_allclose(cifar.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(cifar.std, pixels.std((0, 1, 2)), rtol=1e-6)


@pytest.mark.thorough
def test_files_of_the_real_size(tmp_path):
    for file in _FILES:
        rows = np.full((10_000, 3_073), _FILES.index(file), np.uint8)
        rows[::2, 1:] += 50
        (tmp_path / file).write_bytes(rows.tobytes())
    cifar = load_dataset("cifar10", tmp_path)
    assert [len(part.labels) for part in cifar[:3]] == [45_000, 5_000, 10_000]
    assert cifar.valid.images.shape == (5_000, 32, 32, 3) and cifar.num_classes == 10
    assert set(cifar.valid.labels) == {4} and set(cifar.test.labels) == {5}
    mean = (9 * 25 + 2 * (0 + 1 + 2 + 3) + 4) / 9 / 255  # half of the last file is left out
    np.testing.assert_allclose(cifar.mean, mean, rtol=1e-6)


def test_an_archive_in_a_folder_is_read(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("archive")
    pack(folder, other / ARCHIVE)
    packed, plain = (load_dataset("cifar10", path) for path in (other, folder))
    for part in range(3):
        np.testing.assert_array_equal(packed[part].images, plain[part].images)
        np.testing.assert_array_equal(packed[part].labels, plain[part].labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-1], f"expected {ROWS} rows of 3073 bytes.*has {ROWS * 3073 - 1}"),
        (lambda x: x[:-3073], f"expected {ROWS} rows"),  # a whole row is cut
        (lambda x: x + b"\0", f"has {ROWS * 3073 + 1}"),
        (lambda x: b"", "but it has 0"),
        (lambda x: x[:3073] + b"\x0a" + x[3074:], "damaged: expected labels from 0 to 9, found 10"),
    ],
    ids=["cut", "row", "long", "empty", "label"],
)
@pytest.mark.parametrize("file", [_FILES[2], _FILES[-1]])
def test_a_damaged_file_is_an_error_that_names_it(folder, file, change, message):
    path = folder / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path} is damaged.*{message}|{path} is {message}"):
        load_dataset("cifar10", folder)


def test_a_missing_file_is_an_error(folder):
    (folder / _FILES[1]).unlink()
    with pytest.raises(
        DataError, match=f"{folder / _FILES[1]} is missing: expected {_FILES[1]} in"
    ):
        load_dataset("cifar10", folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[: len(x) // 2], "is damaged: expected a whole gzip file"),
        (lambda x: x[:5000] + bytes([x[5000] ^ 8]) + x[5001:], "is damaged: expected a whole gzip"),
        (lambda x: gzip.compress(b"<html>404</html>"), "is of another format: expected the six"),
    ],
    ids=["cut", "flipped", "page"],
)
def test_a_damaged_archive_is_an_error(folder, change, message):
    archive = folder / ARCHIVE
    pack(folder, archive)
    archive.write_bytes(change(archive.read_bytes()))
    with pytest.raises(DataError, match=f"{archive} {message}"):
        load_dataset("cifar10", folder)


def test_an_archive_without_a_file_is_an_error(folder):
    pack(folder, folder / ARCHIVE, without=[_FILES[3]])
    with pytest.raises(DataError, match=rf"is of another format: .*{_FILES[3]}.* not found"):
        load_dataset("cifar10", folder)


def test_the_archive_is_downloaded_once(folder, monkeypatch, tmp_path_factory, serve):
    served = tmp_path_factory.mktemp("served")
    pack(folder, served / ARCHIVE)
    server, url = serve(served)
    monkeypatch.setattr(pooch, "os_cache", lambda name: served / "cache")
    wrong = Cifar10(url, ARCHIVE, "0" * 64, rows=ROWS)
    monkeypatch.setitem(datasets._SOURCES, "cifar10", wrong)
    with pytest.raises(DataError, match=r"of cifar10 cannot be downloaded.*Put the files of"):
        load_dataset("cifar10")
    sha256 = hashlib.sha256((served / ARCHIVE).read_bytes()).hexdigest()
    monkeypatch.setitem(datasets._SOURCES, "cifar10", replace(wrong, sha256=sha256))
    first = load_dataset("cifar10")
    server.shutdown()  # the second call reads the cache
    np.testing.assert_array_equal(load_dataset("cifar10").test.images, first.test.images)


def test_a_cnn_reads_the_images(folder, key):
    problem = image_classification(
        functools.partial(CNN, channels=2, width=4), load_dataset("cifar10", folder)
    )
    batch = tuple(x[:5] for x in problem.train)
    assert problem.scores(problem.init(key), batch)["loss"].shape == (5,)
    standardised = np.asarray(problem.train[0])
    np.testing.assert_allclose(standardised.mean((0, 1, 2)), 0, atol=1e-5)
    assert math.isclose(standardised.std(), 1, rel_tol=1e-5)
