"""A wrong problem of the user's own is an error that names the part, before any compiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.problems import Loader, Problem, check_problem

X = jnp.ones((8, 2))
EXAMPLES = {"x": X, "y": jnp.ones(8)}


def init(key):
    return {"w": jax.random.normal(key, (2,))}


def scores(params, batch):
    loss = (batch["x"] @ params["w"] - batch["y"]) ** 2
    return {"loss": loss, "accuracy": (loss < 1).astype(int)}


RIGHT = Problem(init, scores, EXAMPLES, EXAMPLES, EXAMPLES)


@pytest.mark.parametrize(
    "right",
    [
        RIGHT,
        RIGHT._replace(test=jax.tree.map(lambda x: x[:1], EXAMPLES)),
        RIGHT._replace(train=jax.tree.map(lambda x: np.asarray(x, float), EXAMPLES)),
        RIGHT._replace(valid=Loader(lambda seed: iter([EXAMPLES]))),
        RIGHT._replace(init=lambda key: {"w": np.ones(2)}),
        RIGHT._replace(augment=lambda key, batch: {**batch, "x": -batch["x"]}),
    ],
    ids=["arrays", "one", "NumPy", "loader", "NumPy parameters", "augmented"],
)
def test_a_right_problem_passes(right):
    check_problem(right)


def with_scores(change):
    return {"scores": lambda params, batch: change(scores(params, batch))}


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"init": lambda key: {"w": 3}}, TypeError, r"init\(key\)\['w'\] must be .*found int\. "),
        ({"init": lambda key: {"w": jnp.arange(2)}}, TypeError, "floating array; found int32"),
        ({"init": lambda key: {"w": jnp.ones(2), "f": jnp.tanh}}, TypeError, r"\['f'\] must be a"),
        (with_scores(lambda x: x["loss"]), TypeError, "return a dict with 'loss'; found .*Tracer"),
        (with_scores(lambda x: {"losses": x["loss"]}), TypeError, "found a dict with 'losses'"),
        (with_scores(lambda x: {"loss": x["loss"].mean()}), ValueError, r"of shape \(\)\. Take no"),
        (with_scores(lambda x: {"loss": x["loss"][:, None]}), ValueError, r"of shape \(3, 1\)"),
        (with_scores(lambda x: {"loss": x["accuracy"]}), ValueError, "floats of .*found int32"),
        (
            with_scores(lambda x: {**x, "accuracy": x["accuracy"].mean()}),
            ValueError,
            r"\['accuracy'\] must be numbers of shape \(3,\)",
        ),
        ({"train": {"x": X, "y": X[:5]}}, ValueError, r"train\['x'\]: 8, train\['y'\]: 5"),
        ({"valid": {"x": X[:0], "y": X[:0]}}, ValueError, r"valid must .*found valid\['x'\]: 0"),
        ({"test": {}}, ValueError, "test must have arrays .*; found no arrays"),
        ({"train": {"x": X, "y": 1.0}}, TypeError, r"train\['y'\] must be an array .*found float"),
        ({"train": {"x": X, "y": X[0, 0]}}, TypeError, r"found \w+ of shape \(\)"),
        ({"train": Loader(lambda seed: [])}, ValueError, "train must yield .*yields none"),
        (
            {"augment": lambda key, batch: {**batch, "x": batch["x"][:, :1]}},
            ValueError,
            r"augment\(key, batch\) must return .*same shapes.*\[3, 2\].*found .*\[3, 1\]",
        ),
    ],
)
def test_a_wrong_part_is_named(parts, error, message):
    with pytest.raises(error, match=message):
        check_problem(RIGHT._replace(**parts))


def mean_over_rows(params, batch):
    loss = (batch["x"] @ params["w"] - batch["y"]) ** 2
    return {"loss": loss.reshape(len(loss), -1).mean(1)}


def test_the_examples_of_a_set_may_have_another_shape():
    longer = {"x": jnp.ones((8, 5, 2)), "y": jnp.ones((8, 5))}
    check_problem(RIGHT._replace(scores=mean_over_rows, test=longer))


def test_examples_that_cannot_be_scored_are_named():
    with pytest.raises(TypeError, match="dot_general requires") as caught:
        check_problem(RIGHT._replace(test={"x": X[:, :1], "y": EXAMPLES["y"]}))
    note = "An example of test is {'x': 'float32[1]', 'y': 'float32[]'}, one of train {"
    assert note in caught.value.__notes__[-1]


def test_an_error_of_the_problem_is_its_own():
    def broken(params, batch):
        raise RuntimeError("a mistake in the loss")

    with pytest.raises(RuntimeError, match="a mistake in the loss"):
        check_problem(RIGHT._replace(scores=broken))
