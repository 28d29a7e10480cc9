"""The training loop: resuming to the bit, divergence, records, optimizers."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import fwdgrad
from fwdgrad.records import CheckpointError, Metrics, read_run
from fwdgrad.records.runs import read_metrics
from fwdgrad.training import (
    Batches,
    DivergedError,
    Programs,
    Settings,
    exponential_decay,
    loop,
    make_stepper,
    train,
)
from fwdgrad.training.run_in_progress import RunInProgress
from tests.training.regression import FORWARD, SETTINGS, assert_same_run, run, without_seconds


@pytest.mark.parametrize("steps_per_call", [1, 7, 50])
def test_backprop_run_equals_a_plain_loop(problem, tmp_path, steps_per_call):
    """SGD written out, with the same examples and rates."""
    settings = Settings(50, 8, 20, steps_per_call)
    record = run(problem, tmp_path, estimator=fwdgrad.backprop_value_and_grad, settings=settings)
    params = problem.init(jax.random.split(jax.random.key(3))[0])
    batches, losses = Batches(100, 8, seed=3), []
    for step in range(50):
        batch = jax.tree.map(lambda x: x[batches.indices(step, 1, capacity=1)[0]], problem.train)  # noqa: B023
        value, grad = jax.value_and_grad(problem.loss)(params, batch)
        losses.append(float(value))
        rate = 0.01 * np.exp(-1e-3 * step)
        params = jax.tree.map(lambda p, g: p - rate * g, params, grad)  # noqa: B023

    rows = record.metrics
    assert [row.step for row in rows] == [0, 20, 40, 50]
    np.testing.assert_allclose(rows[0].train_loss, losses[0], rtol=1e-5)
    np.testing.assert_allclose(
        [row.train_loss for row in rows[1:]],
        [np.mean(losses[:20]), np.mean(losses[20:40]), np.mean(losses[40:])],
        rtol=1e-4,
    )
    np.testing.assert_allclose(rows[-1].valid_loss, problem.loss(params, problem.valid), rtol=1e-4)
    rates = 0.01 * np.exp(-1e-3 * np.array([0, 20, 40, 50]))
    np.testing.assert_allclose([row.learning_rate for row in rows], rates, rtol=1e-6)
    np.testing.assert_allclose(
        record.info["final"]["test_loss"], problem.loss(params, problem.test), rtol=1e-4
    )


def test_forward_run_equals_a_plain_loop_with_a_tangent_of_its_own_every_step(problem, tmp_path):
    record = run(problem, tmp_path, estimator=FORWARD)
    init_key, steps_key = jax.random.split(jax.random.key(3))
    params, batches = problem.init(init_key), Batches(100, 8, seed=3)
    value_and_grad = jax.jit(FORWARD(problem.loss))
    for step in range(50):
        indices = batches.indices(step, 1, capacity=1)[0]
        batch = jax.tree.map(lambda x: x[indices], problem.train)  # noqa: B023
        _, grad = value_and_grad(jax.random.fold_in(steps_key, step), params, batch)
        rate = 0.01 * np.exp(-1e-3 * step)
        params = jax.tree.map(lambda p, g: p - rate * g, params, grad)  # noqa: B023
    expected = problem.loss(params, problem.valid)
    np.testing.assert_allclose(record.metrics[-1].valid_loss, expected, rtol=1e-3)


def test_the_folder_of_another_run_raises(problem, tmp_path):
    run(problem, tmp_path)
    with pytest.raises(ValueError, match=f"folder {tmp_path} holds another run, with seed 3"):
        run(problem, tmp_path, seed=4)
    with pytest.raises(ValueError, match="holds another run, with num_steps 50, eval_every 20"):
        run(problem, tmp_path, settings=Settings(60, 8, 30, 7))
    with pytest.raises(ValueError, match=r"seed must be an integer from 0 to .*; found -1"):
        run(problem, tmp_path, seed=-1)


def test_leftovers_of_a_killed_process_are_removed(problem, tmp_path):
    (tmp_path / ".checkpoint.eqx-abc.unfinished").write_bytes(b"half")
    run(problem, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint.eqx", "config.yaml", "metrics.csv", "run.json"]


def test_columns_and_record(problem, tmp_path):
    record = run(problem, tmp_path, config="seed: 3\n")
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header == "step,seconds,learning_rate,train_loss,valid_loss,valid_accuracy"
    assert (tmp_path / "config.yaml").read_text() == "seed: 3\n"
    info = json.loads((tmp_path / "run.json").read_text())
    assert info["status"] == "finished" and info["seed"] == 3
    assert {"commit", "dirty", "sum"} == set(info["code"])
    assert info["versions"]["jax"] == jax.__version__ and info["versions"]["python"]
    assert info["hardware"]["device"] == jax.devices()[0].platform and info["hardware"]["cpu"]
    assert set(Metrics._fields) | {"test_loss", "test_accuracy", "clip_rate"} == set(info["final"])
    assert record.metrics == read_metrics(tmp_path)
    seconds = [row.seconds for row in record.metrics]
    assert seconds[0] == 0 and seconds == sorted(seconds)


def test_clip_rate_of_the_whole_run_is_reported(problem, tmp_path):
    def clipped(clip, folder):
        estimator = functools.partial(FORWARD, clip=clip)
        return run(problem, tmp_path / folder, estimator=estimator).info["final"]["clip_rate"]

    assert clipped(1e9, "never") == 0 and clipped(1e-9, "always") == 1
    assert 0 < clipped(1.0, "sometimes") < 1


@pytest.mark.parametrize(
    ("calls", "checkpoint_seconds"), [(0, 0.0), (1, 0.0), (3, 0.0), (7, 0.0), (4, 1e9)]
)
def test_interrupted_run_ends_with_the_same_bits(
    problem, alone, tmp_path, calls, checkpoint_seconds, monkeypatch
):
    """Stopped between any two of its 8 calls, with or without a checkpoint."""
    advance = RunInProgress.advance
    made = []

    def stop_after(self, count):
        if len(made) == calls:
            raise KeyboardInterrupt
        made.append(count)
        advance(self, count)

    monkeypatch.setattr(RunInProgress, "advance", stop_after)
    with pytest.raises(KeyboardInterrupt):
        run(problem, tmp_path / "again", checkpoint_seconds=checkpoint_seconds)
    assert read_run(tmp_path / "again").info["status"] == "running"

    again = []
    monkeypatch.setattr(RunInProgress, "advance", lambda *a: (again.append(a), advance(*a)))
    record = run(problem, tmp_path / "again")
    assert_same_run(record, alone)
    # It went on from the last checkpoint, if there was one, and did not begin once more.
    kept = calls if checkpoint_seconds == 0 else 0
    assert len(made) + len(again) == 8 + calls - kept
    assert record.info["resumed_at"] == [sum(made[:kept])]
    assert len([row for row in record.metrics if row.seconds == 0]) == 1


def test_where_calls_end_changes_no_bit(problem, tmp_path):
    first = run(problem, tmp_path / "7", settings=Settings(50, 8, 20, 7))
    second = run(problem, tmp_path / "5", settings=Settings(50, 8, 20, 5))
    assert without_seconds(first.metrics) == without_seconds(second.metrics)


def test_interruption_between_row_and_checkpoint_repeats_no_row(
    problem, alone, tmp_path, monkeypatch
):
    def no_checkpoint(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunInProgress, "_save", no_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        run(problem, tmp_path / "again", settings=SETTINGS)
    monkeypatch.undo()
    record = run(problem, tmp_path / "again")
    assert [row.step for row in record.metrics] == [0, 20, 40, 50]
    assert_same_run(record, alone)


def test_finished_run_is_not_repeated(problem, tmp_path, monkeypatch):
    first = run(problem, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(loop, "make_stepper", None)
    assert run(problem, tmp_path) == first
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_runs_of_other_seeds_take_the_programs_of_the_first(problem, tmp_path):
    """They compile nothing, and have the numbers of a run alone to the bit."""
    made, compiled = [], []

    def estimator(loss, **options):
        made.append(loss)
        return FORWARD(loss, **options)

    def count(name, seconds, **more):
        if name.endswith("backend_compile_duration"):
            compiled.append(seconds)

    programs = Programs()
    shared = (problem, estimator, optax.sgd(0.01), lambda step: 0.01, SETTINGS)
    options = {"programs": programs, "show_progress": False}
    first = train(*shared, seed=2, folder=tmp_path / "first", **options)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        again = train(*shared, seed=3, folder=tmp_path / "again", **options)
        assert len(made) == 1 and not compiled
        alone = train(*shared, seed=3, folder=tmp_path / "alone", show_progress=False)
        assert len(made) == 2 and compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert again.info["compile_seconds"] == 0
    assert min(record.info["compile_seconds"] for record in (first, alone)) > 0
    assert_same_run(again, alone)
    with pytest.raises(ValueError, match=r"programs must be of one problem, estimator, optimizer"):
        run(problem, tmp_path / "other", programs=programs)
    assert not (tmp_path / "other").exists()


def test_seeds_differ_and_estimators_share_examples_and_start(problem, tmp_path):
    first, second = (run(problem, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert first.metrics[0].valid_loss != second.metrics[0].valid_loss
    exact = run(problem, tmp_path / "b", seed=0, estimator=fwdgrad.backprop_value_and_grad)
    assert exact.metrics[0] == first.metrics[0]


@pytest.mark.parametrize("steps_per_call", [1, 7])
def test_divergence_stops_the_run_and_keeps_the_record_so_far(problem, tmp_path, steps_per_call):
    settings = Settings(500, 8, 5, steps_per_call)
    message = (
        r"the training loss is (inf|nan) at step \d+ \(learning rate .*command of the run with "
        r"optimizer=sgd_clipped .*or with a lower learning_rate="
    )
    with pytest.raises(DivergedError, match=message) as first:
        run(problem, tmp_path, rate=5.0, settings=settings)
    record = read_run(tmp_path)
    assert record.info["status"] == "diverged" and record.info["message"] == str(first.value)
    stopped = int(str(first.value).split("at step ")[1].split()[0])
    assert [row.step for row in record.metrics] == list(range(0, stopped + 1, 5))
    with pytest.raises(DivergedError, match=message) as second:
        run(problem, tmp_path, rate=5.0, settings=settings)
    assert str(second.value) == str(first.value)


def test_nan_in_the_validation_set_alone(problem, tmp_path):
    x, y = problem.valid
    broken = problem._replace(valid=(x, y.at[3].set(jnp.nan)))
    with pytest.raises(DivergedError, match="the validation loss is nan at step 0"):
        run(broken, tmp_path)


def flip_a_bit(content):
    return content[:300] + bytes([content[300] ^ 1]) + content[301:]


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b"", flip_a_bit])
def test_damaged_checkpoint(problem, tmp_path, damage):
    run(problem, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    (tmp_path / "damaged" / "run.json").unlink()
    path = tmp_path / "damaged" / "checkpoint.eqx"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"{path} does not hold the state.*Delete the folder"):
        run(problem, tmp_path / "damaged")


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "eval_every", "steps_per_call"])
@pytest.mark.parametrize(("value", "kind"), [(0, ValueError), ("10", TypeError), (1.5, TypeError)])
def test_settings_are_checked(name, value, kind):
    values = {"num_steps": 1, "batch_size": 1, "eval_every": 1, "steps_per_call": 1, name: value}
    with pytest.raises(kind, match=f"{name} must be"):
        Settings(**values)


def test_minibatch_larger_than_the_training_set(problem, tmp_path):
    with pytest.raises(ValueError, match=r"batch_size must be at most .* 100; found 101"):
        run(problem, tmp_path, settings=Settings(1, 101, 1, 1))
    assert list(tmp_path.iterdir()) == []


def test_the_users_parameters_are_not_donated(problem, key):
    params = problem.init(key)
    stepper = make_stepper(
        problem.loss, lambda key: params, problem.train, fwdgrad.backprop_value_and_grad,
        optax.sgd(0.1), seed=0, batch_size=10, steps_per_call=1,
    )  # fmt: skip
    stepper.advance(stepper.state, problem.train, np.arange(10, dtype=np.int32)[None], 1)
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))


def test_every_epoch_uses_every_example_once():
    batches = Batches(num_examples=23, batch_size=5, seed=0)
    epochs = [batches.indices(first, 4, capacity=4) for first in (0, 4)]
    for epoch in epochs:
        assert len(np.unique(epoch)) == 20 and epoch.min() >= 0 and epoch.max() < 23
    assert not np.array_equal(*epochs)
    other_seed = Batches(num_examples=23, batch_size=5, seed=1).indices(0, 4, capacity=4)
    assert not np.array_equal(epochs[0], other_seed)
    padded = batches.indices(2, 1, capacity=3)
    np.testing.assert_array_equal(padded, [epochs[0][2], [0] * 5, [0] * 5])


OPTIMIZERS = {
    "adam": optax.adam,
    "needs the loss": lambda rate: optax.chain(
        optax.sgd(rate), optax.contrib.reduce_on_plateau(patience=1000)
    ),
    "has a key in its state": lambda rate: optax.noisy_sgd(rate, eta=1e-6, key=jax.random.key(0)),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer(problem, tmp_path, make):
    schedule = exponential_decay(0.05, 0.0)
    record = train(
        problem,
        fwdgrad.backprop_value_and_grad,
        make(schedule),
        schedule,
        Settings(200, 8, 100, 25),
        seed=0,
        folder=tmp_path,
        show_progress=False,
    )
    assert record.metrics[-1].valid_loss < 0.1 * record.metrics[0].valid_loss
