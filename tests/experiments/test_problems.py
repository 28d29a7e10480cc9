"""The group `problem`: any function that returns a problem, by its name."""

import sys
import types
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from hydra.utils import instantiate

from experiments.common import from_config, problems
from fwdgrad.problems import CNN, MLP, Frozen, Loader, LocalHeads, LogisticRegression, Problem
from fwdgrad.problems.problem import made_for
from tests.sweeps import thorough_but

from .conftest import CONFIGS

OWN = "a_package_of_mine"
SHORT = ("num_steps=4", "eval_every=2", "batch_size=5", "steps_per_call=2", "learning_rate=0.01")


def line(width=3, noise=0.0):
    """A linear regression: no accuracy, and parameters that are no model of the library."""
    x = jax.random.normal(jax.random.key(0), (40, width))
    examples = {"x": x, "y": x.sum(1) + noise}
    return Problem(
        init=lambda key: {"w": jax.random.normal(key, (width,))},
        scores=lambda params, batch: {"loss": (batch["x"] @ params["w"] - batch["y"]) ** 2},
        train=examples, valid=examples, test=examples,
    )  # fmt: skip


def from_a_loader():
    made = line()
    loader = Loader(
        lambda seed: [jax.tree.map(lambda x: x[i : i + 5], made.train) for i in range(0, 40, 5)]  # noqa: B023
    )
    return made._replace(train=loader, valid=loader, test=loader)


def of_images(make_model, dataset):
    return line(dataset.num_classes)


@pytest.fixture(autouse=True)
def package(monkeypatch):
    module = types.ModuleType(OWN)
    vars(module).update(line=line, from_a_loader=from_a_loader, of_images=of_images, no=lambda: 3)
    monkeypatch.setitem(sys.modules, OWN, module)
    problems._problem.cache_clear()
    yield module
    problems._problem.cache_clear()


SHAPES = [((28, 28),), ((28, 56),), ((32, 32, 3),)]


@pytest.fixture
def config(compose, tmp_path):
    return lambda name, *more: compose(
        "train", f"problem._target_={OWN}.{name}", f"output.root={tmp_path}", *SHORT, *more
    )


@pytest.mark.parametrize(
    "estimator",
    [
        ["estimator=backprop"],
        ["tangents=low_rank"],
        ["space=activities", "tangents=rademacher"],
        ["estimator=spsa"],
        ["guess=learned"],
    ],
)
@pytest.mark.parametrize("name", thorough_but(["line"], ["line", "from_a_loader"]))
def test_a_function_of_ones_own_trains(config, name, estimator):
    record = from_config.run(config(name, *estimator))
    assert [row.step for row in record.metrics] == [0, 2, 4]
    assert "test_loss" in record.info["final"] and "test_correct" not in record.info
    assert from_config.run(config(name, *estimator)).info == record.info  # it is read back
    assert "accuracy" not in from_config.summary(record)
    assert record.folder.parent.name.startswith(f"{name}-")


def test_arguments_are_part_of_the_identity(config):
    folders = [
        from_config.folder(config("line", *more))
        for more in ((), ("+problem.width=3",), ("+problem.width=4",))
    ]
    assert len(set(folders)) == 3
    assert from_config.problem(config("line", "+problem.width=4")).train["x"].shape == (40, 4)


def test_the_groups_are_given_to_a_function_that_names_them(config):
    made = config("of_images", "model=logistic")
    assert from_config.problem(made).train["x"].shape == (40, 10)
    assert from_config.folder(made).parent.name.startswith("of_images-logistic-forward")
    assert from_config.folder(made) != from_config.folder(config("of_images", "model=mlp"))


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("line", ("model=cnn",), "problem=line takes no choice of model.*Leave out model=cnn"),
        ("line", ("dataset=kmnist",), "takes no choice of dataset.*Leave out dataset=kmnist"),
        ("of_images", ("~model",), "takes a choice of model. Say model=NAME"),
        ("no", (), r"_target_=a_package_of_mine\.no must return .*found int, without init"),
        ("missing", (), r"problem\._target_: 'a_package_of_mine\.missing' cannot be imported"),
        ("line", ("+problem.size=3",), "problem: .*size"),
    ],
)
def test_a_wrong_choice_is_an_error(config, name, more, message):
    with pytest.raises(ValueError, match=message):
        from_config.run(config(name, *more))


@pytest.mark.parametrize(("shape",), thorough_but([((32, 32, 3),)], SHAPES))
@pytest.mark.parametrize(
    "make",
    [LogisticRegression, MLP, CNN, "frozen", "local"],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_models_of_any_shape_of_images(make, shape, key):
    """The constructors within a constructor are told, too."""
    small = partial(CNN, channels=2, width=4) if isinstance(make, str) else make
    if make == "frozen":
        made = partial(Frozen, num_frozen=1, make_model=small)
    elif make == "local":
        made = partial(LocalHeads, make_model=small)
    else:
        made = make
    model = made_for(made, shape=shape, num_classes=7)(key=key)
    assert model(jnp.zeros(shape)).shape[-1] == 7


@pytest.mark.parametrize(("shape",), thorough_but([((32, 32, 3),)], SHAPES))
@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml")))
def test_each_model_of_the_configs_takes_the_shape_of_a_data_set(compose, name, shape, key):
    make = instantiate(compose("train", f"model={name}").model.make, _convert_="all")
    model = eqx.filter_eval_shape(made_for(make, shape=shape, num_classes=7), key=key)
    logits = eqx.filter_eval_shape(lambda model, x: model(x), model, jnp.zeros(shape))
    assert logits.shape[-1] == 7


def test_images_that_pooling_would_cut_are_an_error(key):
    with pytest.raises(ValueError, match=r"multiples of 4 .*found 30×28"):
        CNN(shape=(30, 28), key=key)
