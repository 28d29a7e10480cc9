"""The problems besides images: pairs of digits, rows in order, one teacher, windows of a text."""

import gzip
import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.problems import (
    CNN,
    MLP,
    DataError,
    Frozen,
    ImageSets,
    LocalHeads,
    LogisticRegression,
    RowReader,
    Transformer,
    digit_sum,
    files,
    language_model,
    regression,
    sequence,
    transformer,
)


def numbered(number, first, shape=(8, 8)):
    """Return images of one value each, which names the image, and labels."""
    values = jnp.arange(first, first + number, dtype=jnp.float32)
    images = jnp.broadcast_to(values.reshape(-1, *[1] * len(shape)), (number, *shape))
    return images, (jnp.arange(number) * 7 % 10).astype(jnp.int32)


def sets(shape=(8, 8)):
    return ImageSets(*(numbered(n, 100 * i, shape) for i, n in enumerate((21, 10, 6))), 10)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_each_image_is_in_one_pair_of_its_set(shape):
    """But the last of an odd number."""
    given = sets(shape)
    problem = digit_sum(MLP, given)
    for (images, labels), (pairs, both) in zip(given[:3], problem[2:5], strict=True):
        assert pairs.shape == (len(images) // 2, 8, 16, *shape[2:])
        left, right = pairs[:, 0, :8].reshape(len(pairs), -1), pairs[:, 0, 8:]
        right = right.reshape(len(pairs), -1)
        assert (left == left[:, :1]).all() and (right == right[:, :1]).all()
        found = np.concatenate([left[:, 0], right[:, 0]]).astype(int)
        assert len(set(found)) == len(images) // 2 * 2
        assert set(found) <= set(np.asarray(images).reshape(len(images), -1)[:, 0].astype(int))
        label_of = dict(zip(np.asarray(images).reshape(len(images), -1)[:, 0], labels, strict=True))
        sides = np.stack([left[:, 0], right[:, 0]], axis=1)
        assert both.dtype == jnp.int32
        np.testing.assert_array_equal(both, np.vectorize(label_of.get)(sides))


def test_the_class_of_a_pair_is_the_sum_of_its_labels(key):
    problem = digit_sum(MLP, sets())
    params = problem.init(key)
    images, labels = problem.train
    sums = (labels[:, 0] + labels[:, 1]) % 10
    assert (np.asarray(labels.sum(1)) >= 10).any()  # so that the modulo counts
    static = eqx.partition(MLP(shape=(8, 16), key=key), eqx.is_array)[1]
    logits = jax.vmap(eqx.combine(params, static))(images)
    losses = jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(sums)), sums]
    found = problem.scores(params, problem.train)
    np.testing.assert_allclose(found["loss"], losses, rtol=1e-5)
    np.testing.assert_array_equal(found["accuracy"], logits.argmax(1) == sums)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_a_minibatch_of_pairs_is_paired_anew(shape, key):
    problem = digit_sum(MLP, sets(shape))
    images, labels = batch = jax.tree.map(lambda x: x[:5], problem.train)
    new_images, new_labels = problem.augment(key, batch)
    for i in range(5):
        np.testing.assert_array_equal(new_images[i, :, :8], images[i, :, :8])
        np.testing.assert_array_equal(new_images[i, :, 8:], images[i - 1, :, 8:])
        assert list(new_labels[i]) == [labels[i, 0], labels[i - 1, 1]]


@pytest.mark.parametrize("channels", [(), (2,)])
@pytest.mark.parametrize("max_shift", [1, 3])
def test_training_images_are_shifted(max_shift, channels, key):
    """Each half by an offset of its own, all offsets equally often; borders repeat."""
    number, size = 600, 2 * max_shift + 1
    random = np.random.default_rng(0)
    images = random.normal(size=(2 * number, 5, 4, *channels)).astype(np.float32)
    labels = np.arange(2 * number, dtype=np.int32) % 10
    given = ImageSets(*[(jnp.asarray(images), jnp.asarray(labels))] * 3, 10)
    shifted = digit_sum(MLP, given, max_shift=max_shift)
    pairs, both = digit_sum(MLP, given).augment(key, shifted.train)
    found, found_labels = jax.jit(shifted.augment)(key, shifted.train)
    np.testing.assert_array_equal(found_labels, both)
    counts = []
    for side in (slice(0, 4), slice(4, 8)):
        border = [(0, 0), (max_shift, max_shift), (max_shift, max_shift), *[(0, 0)] * len(channels)]
        padded = np.pad(pairs[:, :, side], border, mode="edge")
        offsets = [(r, c) for r in range(size) for c in range(size)]
        same = [padded[:, r : r + 5, c : c + 4] == found[:, :, side] for r, c in offsets]
        same = np.array(same).reshape(len(offsets), number, -1).all(2)
        assert (same.sum(0) == 1).all()  # each image is there, by one offset
        counts.append(same.argmax(0))
    # Chi-squared over offsets, and over pairs of the two sides' rows: 6 standard deviations.
    for classes, values in [
        (size**2, counts[0]),
        (size**2, counts[1]),
        (size**2, counts[0] // size * size + counts[1] // size),
    ]:
        expected = number / classes
        chi_squared = ((np.bincount(values, minlength=classes) - expected) ** 2 / expected).sum()
        assert abs(chi_squared - (classes - 1)) < 6 * (2 * (classes - 1)) ** 0.5
    for fixed, same in zip(shifted[2:5], digit_sum(MLP, given)[2:5], strict=True):
        np.testing.assert_array_equal(fixed[0], same[0])


@pytest.mark.parametrize(
    ("max_shift", "error", "said"),
    [
        (1.0, TypeError, "max_shift must be an integer; found 1.0"),
        (True, TypeError, "max_shift must be an integer; found True"),
        (-1, ValueError, "max_shift must be 0 or more .* 8 × 8 pixels; found -1"),
        (8, ValueError, "max_shift must be .* smaller than the images.* found 8"),
    ],
)
def test_a_shift_that_cannot_be_is_an_error(max_shift, error, said):
    with pytest.raises(error, match=said):
        digit_sum(MLP, sets(), max_shift=max_shift)


def test_pairs_are_fixed_by_the_seed():
    first, second, other = (digit_sum(MLP, sets(), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train[0], second.train[0])
    assert not np.array_equal(first.train[0], other.train[0])


@pytest.mark.parametrize(
    "make",
    [
        LogisticRegression,
        partial(MLP, (4,)),
        partial(CNN, 2, 4),
        partial(Frozen, num_frozen=1, make_model=partial(MLP, (4,))),
        partial(LocalHeads, partial(CNN, 2, 4)),
        partial(LocalHeads, make_model=partial(CNN, 2, 4)),
    ],
    ids=["logistic", "mlp", "cnn", "frozen", "local", "local by name"],
)
def test_every_model_takes_two_images(make, key):
    problem = digit_sum(make, sets())
    scores = problem.scores(problem.init(key), problem.train)
    assert scores["loss"].shape == scores["accuracy"].shape == (10,)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_the_rows_of_an_image_are_read_in_order(shape, key):
    model = RowReader(6, shape=shape, num_classes=3, key=key)
    image = jax.random.normal(key, shape)
    state = jnp.zeros(6)
    for row in image:
        state = model.cell(row.ravel(), state)
    np.testing.assert_allclose(model(image), model.output(state), rtol=1e-5, atol=1e-6)
    assert not np.allclose(model(image), model(image[::-1]))


def test_a_sequence_has_the_shape_of_its_data_set(key):
    problem = sequence(sets((8, 8, 3)), width=5)
    params = problem.init(key)
    assert params.cell.weight_ih.shape == (15, 24) and params.output.weight.shape == (10, 5)


def test_one_teacher_makes_all_three_sets():
    problem = regression(num_inputs=1, teacher_width=1, num_examples=20_000)
    assert [len(y) for _, y in (problem.train, problem.valid, problem.test)] == [20_000, 2000, 2000]
    x, y = (np.asarray(a).reshape(-1) for a in problem.train)
    order = np.argsort(x)
    for inputs, outputs in (problem.valid, problem.test):
        inside = np.abs(inputs[:, 0]) < 2
        assert not np.array_equal(inputs[:, 0], x[:2000])
        found = np.interp(inputs[inside, 0], x[order], y[order])
        np.testing.assert_allclose(found, outputs[inside], atol=1e-4)


def test_the_seed_decides_teacher_and_examples():
    first, second, other = (regression(num_examples=20, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train[1], second.train[1])
    assert not np.allclose(first.train[0], other.train[0])


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"num_inputs": 0}, ValueError, "num_inputs must be at least 1; found 0"),
        ({"teacher_width": 1.5}, TypeError, "teacher_width must be an integer"),
        ({"num_examples": 9}, ValueError, "num_examples must be at least 10.*found 9"),
    ],
)
def test_wrong_sizes_of_a_regression_are_errors(given, kind, message):
    with pytest.raises(kind, match=message):
        regression(**given)


SMALL = {"length": 16, "width": 8, "depth": 1, "heads": 2}


def test_the_windows_of_the_poem_are_the_whole_text():
    problem = language_model(**SMALL)
    text = gzip.decompress((files.REPOSITORY / "paradise_lost/paradise_lost.txt.gz").read_bytes())
    assert text.startswith(b"Book I\n\nOf Man's first disobedience, and the fruit\n")
    assert text.endswith(b"Through Eden took their solitary way.\n") and text.isascii()
    letters = np.array(sorted(set(text)), np.uint8)
    starts = [0, len(text) * 90 // 100, len(text) * 95 // 100, len(text)]
    for part, start, end in zip(problem[2:], starts, starts[1:], strict=False):
        assert part.dtype == jnp.int32 and part.shape[1] == 17
        windows = letters[np.asarray(part)]
        np.testing.assert_array_equal(windows[1:, 0], windows[:-1, -1])
        joined = windows[:, :-1].tobytes() + windows[-1:, -1].tobytes()
        assert text[start : start + len(joined)] == joined
        assert 0 <= end - start - len(joined) < 16


def test_the_loss_is_the_cross_entropy_of_the_next_byte(key):
    problem = language_model(**SMALL)
    params, batch = problem.init(key), problem.train[:3]
    model = Transformer(65, **SMALL, key=key)
    log_p = jax.nn.log_softmax(
        eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(model, batch[:, :-1])
    )
    expected = -np.take_along_axis(np.asarray(log_p), np.asarray(batch)[:, 1:, None], 2).mean(
        (1, 2)
    )
    losses = jax.jit(problem.scores)(params, batch)["loss"]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert abs(losses.mean() - np.log(65)) < 0.5


def test_logits_depend_on_no_later_token(key):
    model = Transformer(9, **SMALL, key=key)
    tokens = jax.random.randint(key, (16,), 0, 9)
    logits = eqx.filter_jit(model)(tokens)
    for changed in (0, 7, 15):
        other = eqx.filter_jit(model)(tokens.at[changed].add(1) % 9)
        np.testing.assert_array_equal(logits[:changed], other[:changed])
        assert not np.allclose(logits[changed], other[changed])


@pytest.mark.parametrize("packed", [False, True])
def test_a_text_of_ones_own(tmp_path, packed):
    text = "Grüße und viele Zeichen. ".encode() * 100
    path = tmp_path / ("text.gz" if packed else "text")
    path.write_bytes(gzip.compress(text) if packed else text)
    problem = language_model(str(path), **SMALL)
    assert int(problem.train.max()) < len(set(text))
    assert len(problem.valid) == (len(text) * 95 // 100 - len(text) * 90 // 100 - 1) // 16


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"heads": 3}, ValueError, "heads must divide width=8; found 3"),
        ({"depth": 0}, ValueError, "depth must be at least 1; found 0"),
        ({"length": 2.0}, TypeError, "length must be an integer"),
        ({"path": "text"}, DataError, r"text has 100 bytes, and 5 of them for .* than length=16"),
        ({"path": "nowhere"}, DataError, "nowhere is missing: expected a text there"),
        ({"path": "cut.gz"}, DataError, "cut.gz is damaged: expected a whole gzip file"),
    ],
)
def test_wrong_arguments_of_a_language_model_are_errors(
    tmp_path, monkeypatch, given, kind, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_bytes(b"a" * 100)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a" * 100)[:-9])
    with pytest.raises(kind, match=message):
        language_model(**(SMALL | given))


def test_the_text_is_missing_in_a_wheel_and_checked_elsewhere(tmp_path, monkeypatch):
    path = tmp_path / "poem.gz"
    monkeypatch.setattr(transformer, "_TEXT", path)
    with pytest.raises(DataError, match=re.escape("or a file of yours (problem.path=...)")):
        language_model(**SMALL)
    path.write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError, match="is damaged: the SHA-256 sum"):
        language_model(**SMALL)


def test_the_text_has_a_readme_with_its_source_and_licence():
    readme = (files.REPOSITORY / "paradise_lost" / "README.md").read_text(encoding="utf-8")
    assert "public domain" in readme and "Source: " in readme
    size = (files.REPOSITORY / "paradise_lost" / "paradise_lost.txt.gz").stat().st_size
    assert size < 2e6
