"""Each problem of `configs/problem` trains; those of `examples/problems` are measured, too."""

import math

import numpy as np
import pytest

from experiments.common import costs, from_config
from experiments.common.unrecorded import Training
from fwdgrad.problems import datasets

from ..problem_checks import check_measured, check_problem, small_cifar
from .conftest import CONFIGS

SMALL = {
    "image_classification": ["model=logistic"],
    "digit_sum": ["model.make.widths=[8]"],
    "digit_sum_shifted": ["model.make.widths=[8]"],
    "sequence": ["problem.width=8"],
    "regression": ["problem.widths=[8]", "problem.num_examples=200"],
    "language_model": [
        "problem.length=16", "problem.width=8", "problem.depth=1", "problem.heads=2",
    ],
}  # fmt: skip
WITH_ACCURACY = {"image_classification", "digit_sum", "digit_sum_shifted", "sequence"}
ESTIMATORS = {
    "backprop": ["estimator=backprop"],
    "low_rank": ["tangents=low_rank"],
    "activities": ["space=activities", "tangents=rademacher"],
}
SHORT = ("num_steps=4", "eval_every=2", "batch_size=8", "steps_per_call=2")
EXAMPLES = CONFIGS.parent / "examples" / "problems"


@pytest.fixture
def config(compose, tmp_path):
    return lambda *more: compose("train", f"output.root={tmp_path}", *SHORT, *more)


def test_each_problem_has_small_sizes():
    assert {path.stem for path in (CONFIGS / "problem").glob("*.yaml")} == set(SMALL)


@pytest.mark.thorough
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", SMALL)
def test_each_problem_trains(config, name, estimator):
    cfg = config(f"problem={name}", *SMALL[name], *ESTIMATORS[estimator])
    record = from_config.run(cfg)
    assert [row.step for row in record.metrics] == [0, 2, 4]
    assert all(math.isfinite(row.valid_loss) for row in record.metrics)
    assert math.isfinite(float(record.info["final"]["test_loss"]))
    assert ("test_correct" in record.info) == (name in WITH_ACCURACY)


@pytest.mark.parametrize("name", SMALL)
def test_the_arrays_of_each_problem(config, name, key):
    check_problem(from_config.problem(config(f"problem={name}", *SMALL[name])), key)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("sequence", "model=cnn"),
        *(
            (name, g)
            for name in ("regression", "language_model")
            for g in ("model=cnn", "dataset=kmnist")
        ),
    ],
)
def test_a_group_that_a_problem_does_not_read_is_an_error(config, name, group):
    with pytest.raises(ValueError, match=f"problem={name} takes no choice of .* out {group}"):
        from_config.run(config(f"problem={name}", group))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("problem=language_model problem.heads=3", "problem: heads must divide width=64; found 3"),
        ("problem=language_model problem.length=0", r"problem\.length must be an integer of at"),
        ("problem=language_model problem.path=no", r"problem: no is missing: expected a text the"),
        (
            "problem=regression problem.num_examples=9",
            "num_examples must be at least 10, .*found 9",
        ),
        ("problem=regression problem.widths=8", r"problem\.widths must be a list"),
        ("problem=digit_sum problem.seed=-1", r"problem\.seed must be an integer from 0"),
        ("problem=digit_sum +problem.pairs=1", "problem: .*pairs"),
        ("problem=digit_sum ~model learning_rate=1", "takes a choice of model. Say model=NAME"),
    ],
)
def test_a_wrong_argument_is_an_error(config, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        from_config.run(config(*override.split()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.parametrize("problem", ["image_classification", "digit_sum", "sequence"])
def test_images_in_colour(config, tmp_path, monkeypatch, problem):
    (folder := tmp_path / "cifar").mkdir()
    monkeypatch.setitem(datasets._SOURCES, "cifar10", small_cifar(folder, 1_010))
    small = ["model=cnn", "model.make.channels=2", "model.make.width=4"]
    if problem == "sequence":
        small = ["problem.width=4"]
    cfg = config(f"problem={problem}", "dataset=cifar10", f"dataset.folder={folder}", *small)
    record = from_config.run(cfg)
    assert math.isfinite(record.metrics[-1].valid_loss)
    assert "cifar10" in record.folder.parent.name


def test_a_problem_sets_its_own_rate_and_form_of_the_step(compose):
    cfg = compose("train", "problem=language_model", "estimator=backprop")
    assert "model" not in cfg and "dataset" not in cfg and "tangents" not in cfg
    assert cfg.optimizer._target_ == "optax.adam"
    assert compose("train", "problem=language_model", "learning_rate=7").learning_rate == 7


@pytest.mark.parametrize(("size", "minibatches"), [(8, 2), (20, 1), (5, 4), (4, 4)])
def test_the_cost_of_a_step_on_few_examples(config, size, minibatches):
    cfg = config("problem=regression", "problem.num_examples=20", f"batch_size={size}")
    program = costs._program(costs._step(cfg), cfg, 4, 1)
    assert program._arguments[0][0].shape == (minibatches, size, 16)
    cfg.batch_size = 21
    with pytest.raises(ValueError, match="at most the number of training examples, 20; found 21"):
        costs._program(costs._step(cfg), cfg, 4, 1)


def test_there_are_four_examples_of_under_forty_lines():
    paths = sorted(EXAMPLES.glob("*.py"))
    assert len(paths) == 4
    assert all(len(path.read_text().splitlines()) < 40 for path in paths)


OF_EXAMPLES = sorted({path.stem for path in EXAMPLES.glob("*.py")} - {"diffrax_model"})


@pytest.fixture
def example(config):
    """(name, *overrides) -> a config of a problem of `examples/problems`."""
    return lambda name, *more: config(
        f"problem._target_=examples.problems.{name}.make_problem", "learning_rate=1e-3", *more
    )


@pytest.mark.thorough
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_an_example_trains(example, name, estimator):
    """That of diffrax does in `tests/programs`."""
    record = from_config.run(example(name, *ESTIMATORS[estimator]))
    losses = [row.valid_loss for row in record.metrics]
    assert len(losses) == 3 and np.isfinite(losses).all()
    assert record.folder.parent.name.startswith(f"{name}-")


@pytest.mark.thorough
@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_an_example_is_measured(compose, tmp_path, name):
    check_measured(name, compose, tmp_path)


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_the_arrays_of_an_example(example, name, key):
    check_problem(from_config.problem(example(name)), key)


def test_examples_read_files_of_the_user(example, tmp_path):
    (tmp_path / "frame.csv").write_text("a,b,rent\n" + "1,x,2\n2,y,3\n" * 100)
    (tmp_path / "text").write_bytes(b"abcdefgh" * 200)
    cfg = example("regression_on_a_frame", f"+problem.path={tmp_path}/frame.csv")
    assert from_config.problem(cfg).train["x"].shape == (100, 3)
    cfg = example("transformer_on_text", f"+problem.path={tmp_path}/text", "+problem.length=4")
    assert from_config.problem(cfg).train.shape == (359, 5)


def test_a_training_without_a_record_sees_the_same_minibatches(compose, tmp_path):
    """Also those that the problem augments: the first loss is that of a recorded run."""
    small = (*SMALL["digit_sum"], "batch_size=32", "steps_per_call=1", "learning_rate=1e-3")
    cfg = compose(
        "train", "problem=digit_sum", "model=mlp", "estimator=backprop", *small,
        "num_steps=2", "eval_every=1", f"output.root={tmp_path}",
    )  # fmt: skip
    losses = [row.train_loss for row in from_config.run(cfg).metrics]
    training = Training(cfg)
    assert [float(training.advance(1)) for _ in range(2)] == pytest.approx(losses[1:], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # of the first minibatch
