"""Estimators as objects: pickled, copied and printed with all their options."""

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.estimators.forward_gradient import GuidedGradient
from fwdgrad.estimators.value_and_grad import ValueAndGrad, method_of_fun
from tests.estimators.test_forward import VALUE_AND_GRADS
from tests.sweeps import thorough_but


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
    "guided": fwdgrad.forward_value_and_grad(squares, num_tangents=2, clip=0.5).guided(),
    "backprop": fwdgrad.backprop_value_and_grad(squares, checkpoint=True),
    "spsa": fwdgrad.spsa_value_and_grad(squares, num_tangents=2, step=1e-2),
    "evolution": fwdgrad.evolution_value_and_grad(squares, num_tangents=2),
}


assert_equal = partial(jax.tree.map, np.testing.assert_array_equal)


def kinds(kind=ValueAndGrad):
    """Return all classes of estimators of the library that can be made."""
    below = [k for sub in kind.__subclasses__() for k in kinds(sub)]
    is_ours = kind.__module__.startswith("fwdgrad.") and not getattr(kind, "__abstractmethods__", 0)
    return {*below, kind} if is_ours else set(below)


def test_every_kind_of_estimator_is_here():
    assert kinds() == {type(estimator) for estimator in ESTIMATORS.values()}


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
@pytest.mark.parametrize("name", thorough_but(["activities", "spsa"], ESTIMATORS))
def test_a_copy_has_the_same_options_and_estimates(name, again, key):
    estimator = ESTIMATORS[name]
    found = again(estimator)
    for field in dataclasses.fields(estimator):
        assert getattr(found, field.name) == getattr(estimator, field.name)
    assert (found.__name__, found.__doc__) == ("squares", estimator.__doc__)
    state = estimator.init(PARAMS, X)
    results = (
        jax.jit(found)(key, state, X, scale=2.0),
        jax.jit(estimator)(key, state, X, scale=2.0),
    )
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_has_the_protocol_of_training(name, key):
    """A state to start from, a gradient like it, and where tangents are drawn ahead the same."""
    estimator = ESTIMATORS[name]
    state = estimator.init(PARAMS, X)
    found = jax.jit(estimator)(key, state, X)
    assert jax.tree.structure(found[1]) == jax.tree.structure(state)
    assert estimator.draws_ahead == (name not in ("chunks", "backprop", "spsa", "evolution"))
    if estimator.draws_ahead:
        drawn = jax.jit(estimator.draw)(key, state, X)
        again = jax.jit(estimator.along)(drawn, state, X)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, again)


def test_a_guided_estimator_has_the_options_of_the_one_it_is_made_of(key):
    """And a guess of zero, as every training starts with, changes no estimate."""
    plain = ESTIMATORS["weights"]
    guided = plain.guided()
    for found in (guided, guided.guided()):
        for field in dataclasses.fields(plain):
            assert getattr(found, field.name) == getattr(plain, field.name)
    state = guided.init(PARAMS, X)
    assert state.params is PARAMS and not any(x.any() for x in jax.tree.leaves(state.guess))
    (_, found, _), (_, expected, _) = jax.jit(guided)(key, state, X), jax.jit(plain)(key, PARAMS, X)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found.params, expected)


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


class Scaled:
    """A loss with state of its own."""

    def __init__(self):
        self.scale = np.ones(1)

    def __call__(self, w):
        return self.scale[0] * jnp.sum(w)


def test_a_deep_copy_shares_no_state(key):
    estimator = fwdgrad.forward_value_and_grad(Scaled())
    found = copy.deepcopy(estimator)
    estimator.fun.scale[0] = 5.0
    assert found(key, jnp.ones(2))[0] == 2.0 and estimator(key, jnp.ones(2))[0] == 10.0


@pytest.mark.parametrize("make", VALUE_AND_GRADS)
def test_static_arguments_are_found_by_name(make, key):
    def loss(params, x, train=False, *, scale=1.0):
        """Has words of its own."""
        return jnp.sum((params * x) ** 2) * scale if train else jnp.sum(params)

    value_and_grad = make(loss)
    assert str(inspect.signature(value_and_grad)) == (
        "(key, params, /, x, train=False, *, scale=1.0)"
    )
    assert value_and_grad.__name__ == "loss" and "words of its own" in value_and_grad.__doc__
    compiled = jax.jit(value_and_grad, static_argnames="train")
    w = jnp.ones(2)
    for arguments, options in [((w, True), {}), ((w,), {"train": True}), ((w, False), {})]:
        found, _ = compiled(key, w, *arguments, **options)
        np.testing.assert_allclose(found, loss(w, *arguments, **options), rtol=1e-2)


def test_static_arguments_of_methods_are_found_by_name(key):
    def loss(params, x, train=False, *, scale=1.0):
        return jnp.sum((params * x) ** 2) * scale if train else jnp.sum(params)

    w, value_and_grad = jnp.ones(2), fwdgrad.forward_value_and_grad(loss)
    after = "/, x, train=False, *, scale=1.0)"
    for estimator in (value_and_grad, value_and_grad.guided()):
        compiled = {}
        for name, first in {"init": "", "draw": "key, ", "along": "drawn, "}.items():
            method = getattr(estimator, name)
            assert str(inspect.signature(method)) == f"({first}params, {after}"
            assert method is getattr(estimator, name) and method.__name__ == name
            assert method.__doc__ == getattr(type(estimator), name).__doc__
            compiled[name] = jax.jit(method, static_argnames="train")
        state = compiled["init"](w, w, True)
        drawn = compiled["draw"](key, state, w, True)
        found, _ = compiled["along"](drawn, state, w, True, scale=3.0)
        assert found == loss(w, w, True, scale=3.0)


def test_a_method_can_be_pickled():
    estimator = ESTIMATORS["weights"]
    found = pickle.loads(pickle.dumps(estimator.draw))
    assert found.__name__ == "draw" and inspect.signature(found) == inspect.signature(
        estimator.draw
    )


class Doubled(GuidedGradient):
    """Overrides `init` as a plain method, and `draw` as a method of `fun`."""

    def init(self, params, /, *args, **kwargs):
        state = super().init(params, *args, **kwargs)
        return state._replace(params=jax.tree.map(lambda x: 2 * x, state.params))

    @method_of_fun
    def draw(self, key, params, /, *args, **kwargs):
        return jax.tree.map(lambda v: 2 * v, super().draw(key, params, *args, **kwargs))


def test_a_subclass_may_override_a_method_and_call_its_parent(key):
    plain = ESTIMATORS["guided"]
    doubled = Doubled(**{x.name: getattr(plain, x.name) for x in dataclasses.fields(plain)})
    for found in (doubled, copy.copy(doubled), pickle.loads(pickle.dumps(doubled))):
        for _ in range(2):  # the first call must not change the second
            state = found.init(PARAMS, X)
            assert_equal(state.params, jax.tree.map(lambda x: 2 * x, PARAMS))
            drawn, of_plain = found.draw(key, state, X), plain.draw(key, state, X)
            assert_equal(drawn, jax.tree.map(lambda v: 2 * v, of_plain))
        assert found.draw is found.draw and found.draw.__doc__ is None
        assert str(inspect.signature(found.draw)) == "(key, params, /, x, *, scale=1.0)"


@pytest.mark.parametrize(
    ("fun", "signature"),
    [
        (lambda w: w.sum(), "(key, params, /)"),
        (lambda *args: args[0].sum(), "(key, params, /, *args)"),
        (lambda w, *, key: w.sum(), "(key_, params, /, *, key)"),
        (partial(lambda w, x: w.sum(), x=1.0), "(key, params, /, *, x=1.0)"),
        (jax.jit(lambda w, y: w.sum()), "(key, params, /, y)"),
    ],
)
def test_signatures(fun, signature):
    for make in VALUE_AND_GRADS:
        assert str(inspect.signature(make(fun))) == signature
