"""Evaluation in pieces."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from fwdgrad.training import (
    loop,
)
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

    monkeypatch.setattr(loop, "make_evaluate", make)
    options = {"xla_backend_optimization_level": 0}
    run(problem, tmp_path, settings=replace(SETTINGS, num_steps=1, compiler_options=options))
    assert taken == [options]
    with pytest.raises(Exception, match="xla_no_such_option"):
        make_evaluate(problem.scores, {"xla_no_such_option": True})(
            problem.init(jax.random.key(0)), problem.valid
        )
