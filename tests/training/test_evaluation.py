"""Evaluation in pieces."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from fwdgrad.training import run_in_progress, unpack_flags
from fwdgrad.training.evaluation import make_evaluate
from tests.training.regression import SETTINGS, run


@pytest.mark.parametrize("n", [1, 999, 1_000, 2_500])
def test_evaluation_in_pieces_is_the_mean(n):
    x = np.random.default_rng(0).normal(size=n).astype(np.float32)
    evaluate = make_evaluate(lambda scale, batch: {"a": scale * batch, "b": batch**2})
    means, of_each = evaluate(2.0, x)
    np.testing.assert_array_equal(of_each["a"], 2 * x)
    np.testing.assert_allclose(means["a"], 2 * x.mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(means["b"], (x**2).mean(), rtol=1e-4)


def test_evaluation_is_compiled_with_the_settings_options(problem, tmp_path, monkeypatch):
    """For the CNN they halve its time."""
    taken = []

    def make(scores, compiler_options):
        taken.append(compiler_options)
        return make_evaluate(scores, compiler_options)

    monkeypatch.setattr(run_in_progress, "make_evaluate", make)
    options = {"xla_backend_optimization_level": 0}
    run(problem, tmp_path, settings=replace(SETTINGS, num_steps=1, compiler_options=options))
    assert taken == [options]
    with pytest.raises(Exception, match="xla_no_such_option"):
        make_evaluate(problem.scores, {"xla_no_such_option": True})(
            problem.init(jax.random.key(0)), problem.valid
        )


def test_the_test_set_is_left_alone_on_request(problem, tmp_path):
    """Not even the shape of it is read; without the request each example is in the record."""

    class Sealed(type(problem)):
        @property
        def test(self):
            raise AssertionError("the test set was read")

    sealed = Sealed(problem.train, problem.valid, ())
    record = run(sealed, tmp_path / "sealed", read_test_set=False)
    assert not {"test_loss", "test_accuracy"} & set(record.info["final"])
    assert "test_correct" not in record.info
    with pytest.raises(AssertionError, match="the test set was read"):
        run(sealed, tmp_path / "read")
    read = run(problem, tmp_path / "open")
    right = unpack_flags(read.info["test_correct"], len(problem.test[1]))
    assert right.mean() == pytest.approx(read.info["final"]["test_accuracy"])
    assert 0 < right.sum() < len(right)
