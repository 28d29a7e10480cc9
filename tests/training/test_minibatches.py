"""Minibatches of loaders: the numbers of arrays, resumed to the bit, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.problems import Loader
from fwdgrad.training import Batches, Settings, first_examples, is_loader, minibatches
from tests.training.regression import Regression, assert_same_run, run, run_and_kill


def in_minibatches(examples, size):
    """A loader of arrays, which orders each epoch by its seed; the last minibatch may be short."""
    number = len(examples[0])

    def make(seed):
        order = np.random.default_rng(seed).permutation(number)
        for start in range(0, number, size):
            yield [np.asarray(x)[order[start : start + size]] for x in examples]

    return Loader(make)


@pytest.fixture
def loaded(problem):
    """The problem of the other tests, from host memory."""
    sets = [in_minibatches(x, 8) for x in (problem.train, problem.valid, problem.test)]
    return Regression(*sets)


@pytest.mark.parametrize("steps_per_call", [1, 3, 20])
def test_a_run_equals_that_of_arrays_of_the_same_minibatches(loaded, tmp_path, steps_per_call):
    """50 steps of 12 whole minibatches an epoch, in blocks that end at evaluations."""
    record = run(loaded, tmp_path / "a", settings=Settings(50, 8, 20, steps_per_call))
    batches = []
    for epoch in range(5):
        seed = int(np.random.default_rng([3, epoch]).integers(2**31))
        batches += [x for x in loaded.train.batches(seed) if len(x[0]) == 8]
    arrays = tuple(jnp.concatenate(x[:50]) for x in zip(*batches[:50], strict=True))
    flat = Regression(arrays, *[tuple(map(jnp.concatenate, zip(*x.batches(0), strict=True)))
                                for x in (loaded.valid, loaded.test)])  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        in_order = lambda self, first, count, capacity: np.pad(  # noqa: E731
            np.arange(8 * first, 8 * (first + count), dtype=np.int32).reshape(count, 8),
            ((0, capacity - count), (0, 0)),
        )
        patched.setattr(Batches, "indices", in_order)
        expected = run(flat, tmp_path / "b", settings=Settings(50, 8, 20, steps_per_call))
    for row, other in zip(record.metrics, expected.metrics, strict=True):
        np.testing.assert_allclose(row[3:5], other[3:5], rtol=1e-5)
    assert record.info["final"]["test_loss"] == pytest.approx(expected.info["final"]["test_loss"])


def test_a_run_that_was_killed_ends_with_the_same_bits(loaded, tmp_path):
    alone = run(loaded, tmp_path / "alone")
    run_and_kill(loaded, tmp_path / "killed")
    assert_same_run(run(loaded, tmp_path / "killed"), alone)


def test_the_first_examples(problem, loaded):
    assert is_loader(loaded.train) and not is_loader(problem.train)
    every = [np.concatenate(x) for x in zip(*loaded.train.batches(0), strict=True)]
    for number, skip in ((5, 0), (20, 3), (8, 16), (1000, 0)):
        for found, whole in zip(
            first_examples(loaded.train, number, skip=skip), every, strict=True
        ):
            np.testing.assert_array_equal(found, whole[skip : skip + number])
    for found, whole in zip(first_examples(problem.train, 5, skip=3), problem.train, strict=True):
        np.testing.assert_array_equal(found, whole[3:8])


def test_blocks_can_be_read_in_any_order(loaded):
    def batch(first, of):
        examples, indices = of.block(first, 1)
        return jax.tree.map(lambda x: x[indices[0]], examples)

    def new():
        return minibatches(loaded.train, batch_size=8, steps_per_call=4, seed=1)

    in_order, back = new(), new()
    expected = [batch(step, in_order) for step in range(30)]
    for step in (29, 3, 4, 0, 17):
        found = batch(step, back)
        assert all((a == b).all() for a, b in zip(found, expected[step], strict=True))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (Loader(lambda seed: []), "yields none"),
        (Loader(lambda seed: [(np.zeros((9, 4)), np.zeros(9))]), r"batch_size=8 .*found 9"),
        (Loader(lambda seed: [(np.zeros((5, 4)), np.zeros(5))] * 3), r"batch_size=8 .*found 5"),
    ],
)
def test_a_loader_of_no_whole_minibatches_is_an_error(problem, tmp_path, loader, message):
    with pytest.raises(ValueError, match=message):
        run(problem._replace(train=loader), tmp_path)


def test_an_error_of_the_loader_is_raised(problem, tmp_path):
    def make(seed):
        yield from in_minibatches(problem.train, 8).batches(seed)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run(problem._replace(train=Loader(make)), tmp_path)
