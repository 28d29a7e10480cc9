"""Estimators as objects: pickled, copied and printed with all their options."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.estimators.value_and_grad import ValueAndGrad


def squares(params, x, *, scale=1.0):
    """Return a mean of squares."""
    return scale * jnp.mean((jnp.tanh(x @ params["w"]) @ params["u"]) ** 2)


PARAMS = {"w": jnp.ones((3, 4)) / 3, "u": jnp.arange(4.0)}
X = jnp.arange(6.0).reshape(2, 3) / 6
ESTIMATORS = {
    "weights": fwdgrad.forward_value_and_grad(
        squares, tangents=fwdgrad.LowRank(rank=2), num_tangents=3, clip=0.5, has_report=True
    ),
    "chunks": fwdgrad.forward_value_and_grad(squares, num_tangents=3, chunk_size=2),
    "shrunk": fwdgrad.forward_value_and_grad(squares, shrink=True),
    "projection": fwdgrad.forward_value_and_grad(
        squares,
        tangents=fwdgrad.Orthogonal(),
        num_tangents=2,
        space=fwdgrad.Weights(layerwise=True),
        aggregation=fwdgrad.Projection(),
    ),
    "activities": fwdgrad.forward_value_and_grad(
        squares, space=fwdgrad.Activities(layerwise=True, exact_last=True)
    ),
    "backprop": fwdgrad.backprop_value_and_grad(squares, checkpoint=True),
    "spsa": fwdgrad.spsa_value_and_grad(squares, num_tangents=2, step=1e-2),
    "evolution": fwdgrad.evolution_value_and_grad(squares, num_tangents=2),
}


def kinds(kind=ValueAndGrad):
    """Return all classes of estimators of the library that can be made."""
    below = [k for sub in kind.__subclasses__() for k in kinds(sub)]
    is_ours = kind.__module__.startswith("fwdgrad.") and not getattr(kind, "__abstractmethods__", 0)
    return {*below, kind} if is_ours else set(below)


def test_every_kind_of_estimator_is_here():
    assert kinds() == {type(estimator) for estimator in ESTIMATORS.values()}


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_copy_has_the_same_options_and_estimates(name, again, key):
    estimator = ESTIMATORS[name]
    found = again(estimator)
    for field in dataclasses.fields(estimator):
        assert getattr(found, field.name) == getattr(estimator, field.name)
    assert (found.__name__, found.__doc__) == ("squares", estimator.__doc__)
    results = (
        jax.jit(found)(key, PARAMS, X, scale=2.0),
        jax.jit(estimator)(key, PARAMS, X, scale=2.0),
    )
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_another_process_reads_it(tmp_path):
    (tmp_path / "my_loss.py").write_text(
        "def loss(params, x: 'not.known'):\n    return params @ x\n"
    )
    (tmp_path / "estimator").write_bytes(b"")
    write = (
        "import pickle, my_loss, fwdgrad; e = fwdgrad.forward_value_and_grad(my_loss.loss);"
        "open('estimator', 'wb').write(pickle.dumps(e))"
    )
    read = (
        "import pickle, jax, jax.numpy as jnp; e = pickle.load(open('estimator', 'rb'));"
        "print(e(jax.random.key(0), jnp.ones(3), jnp.ones(3))[0], e)"
    )
    for program in (write, read):
        result = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
    assert result.stdout.startswith("3.0 ForwardGradient(fun=<function loss at ")
    assert "tangents=Normal(), num_tangents=1, space=Weights(" in result.stdout
