"""Runs of several seeds in one program: the numbers, records and ends of each are its own."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fwdgrad
from fwdgrad.records import FolderInUseError, hold, read_info, read_run
from fwdgrad.training import (
    DivergedError,
    Programs,
    Settings,
    exponential_decay,
    first_params,
    train_together,
)
from fwdgrad.training.run_in_progress import RunInProgress
from tests.sweeps import thorough_but
from tests.training.regression import (
    FORWARD,
    SETTINGS,
    Regression,
    assert_same_run,
    run,
    run_and_kill,
)
from tests.training.test_minibatches import in_minibatches


def together(problem, folders, *, estimator=FORWARD, rate=0.01, settings=SETTINGS, **options):
    schedule = exponential_decay(rate, 1e-3)
    options = {"checkpoint_seconds": 0.0, "show_progress": False, **options}
    runs = {seed: (folder, f"seed: {seed}\n") for seed, folder in folders.items()}
    optimizer = optax.sgd(schedule)
    return train_together(problem, estimator, optimizer, schedule, settings, runs, **options)


def folders_of(path, seeds=(3, 4, 5)):
    return {seed: path / str(seed) for seed in seeds}


@pytest.mark.parametrize("steps_per_call", thorough_but([7], [1, 7]))
@pytest.mark.parametrize("estimator", [FORWARD, fwdgrad.backprop_value_and_grad])
def test_each_run_has_the_numbers_that_it_has_alone(problem, tmp_path, estimator, steps_per_call):
    settings = Settings(50, 8, 20, steps_per_call)
    made = together(problem, folders_of(tmp_path), estimator=estimator, settings=settings)
    assert list(made) == [3, 4, 5]
    for seed, found in made.items():
        alone = tmp_path / f"{seed} alone"
        expected = run(problem, alone, estimator=estimator, settings=settings, seed=seed)
        assert [row.step for row in found.metrics] == [row.step for row in expected.metrics]
        for name in ("train_loss", "valid_loss", "valid_accuracy"):
            np.testing.assert_allclose(
                [getattr(row, name) for row in found.metrics],
                [getattr(row, name) for row in expected.metrics],
                rtol=1e-4,
            )
        np.testing.assert_allclose(
            found.info["final"]["test_loss"], expected.info["final"]["test_loss"], rtol=1e-4
        )
        assert found.info["together"] == 3 and "together" not in expected.info
        assert found.metrics[-1].seconds > 0
        assert found.info["test_correct"] == expected.info["test_correct"]
        assert (found.folder / "config.yaml").read_text() == f"seed: {seed}\n"
    losses = {found.metrics[-1].valid_loss for found in made.values()}
    assert len(losses) == 3


def test_they_are_compiled_once_and_finished_runs_are_read_back(problem, tmp_path):
    programs = Programs()
    schedule = exponential_decay(0.01, 1e-3)
    optimizer = optax.sgd(schedule)
    how = problem, FORWARD, optimizer, schedule, SETTINGS
    first, second = (
        {seed: (tmp_path / str(seed), "") for seed in seeds} for seeds in ((3, 4), (5, 6))
    )
    options = {"show_progress": False, "programs": programs}
    made = train_together(*how, first, **options)
    assert made[3].info["compile_seconds"] > 0 == made[4].info["compile_seconds"]
    other = train_together(*how, second, **options)
    assert {x.info["compile_seconds"] for x in other.values()} == {0}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    again = train_together(*how, {**first, **second}, **options)
    assert again == {**made, **other}
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}


class Exploding(Regression):
    """A loss that becomes infinite on the way, for the seed with the largest "s"."""

    limit = 0.0

    def init(self, key):
        return {**super().init(key), "s": jax.random.normal(key)}

    def scores(self, params, batch):
        scores = super().scores(params, batch)
        ends = (params["s"] > self.limit) & (jnp.abs(params["b"]) > 0.02)
        return {**scores, "loss": scores["loss"] + jnp.where(ends, jnp.inf, 0)}


@pytest.mark.parametrize("steps_per_call", thorough_but([7], [1, 7]))
def test_a_run_that_diverges_ends_and_the_others_go_on(
    problem, tmp_path, monkeypatch, steps_per_call
):
    how = {
        "settings": Settings(50, 8, 20, steps_per_call),
        "estimator": fwdgrad.backprop_value_and_grad,  # a forward gradient would change "s"
    }
    exploding = Exploding(*problem)
    tags = {seed: float(first_params(exploding.init, seed)["s"]) for seed in (3, 4, 5)}
    *_, second, largest = sorted(tags.values())
    worst = max(tags, key=tags.get)
    monkeypatch.setattr(Exploding, "limit", (second + largest) / 2)
    made = together(exploding, folders_of(tmp_path), **how)
    with pytest.raises(DivergedError) as alone:
        run(exploding, tmp_path / "worst alone", **how, seed=worst)
    where = re.compile(r"the training loss is inf at step \d+")
    assert where.search(str(made[worst]))[0] == where.search(str(alone.value))[0]
    assert " at step 0" not in str(made[worst])
    assert read_info(tmp_path / str(worst))["status"] == "diverged"
    for seed in tags.keys() - {worst}:
        expected = run(exploding, tmp_path / f"{seed} alone", **how, seed=seed)
        found = made[seed].metrics[-1]
        np.testing.assert_allclose(found.valid_loss, expected.metrics[-1].valid_loss, rtol=1e-4)
    again = together(exploding, folders_of(tmp_path), **how)
    assert str(again[worst]) == str(made[worst])


def test_a_run_that_was_begun_goes_on_alone(problem, tmp_path):
    expected = run(problem, tmp_path / "whole")
    run_and_kill(problem, tmp_path / "3")
    made = together(problem, folders_of(tmp_path))
    assert_same_run(made[3], expected)
    assert "together" not in made[3].info and made[4].info["together"] == 2


def test_one_killed_together_is_resumed_and_says_so(problem, tmp_path, monkeypatch):
    made, record = [], RunInProgress.record

    def stop(self):
        record(self)
        made.append(self)
        if len(made) == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunInProgress, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            together(problem, folders_of(tmp_path))
    assert read_run(tmp_path / "4").info["status"] == "running"
    finished = together(problem, folders_of(tmp_path))
    whole = together(problem, folders_of(tmp_path / "whole"))
    for seed, found in finished.items():
        assert found.info["together"] == 3 and found.info["resumed_at"]
        np.testing.assert_allclose(
            found.metrics[-1].valid_loss, whole[seed].metrics[-1].valid_loss, rtol=1e-4
        )


def test_a_folder_that_another_process_holds_stops_them_before_any_step(problem, tmp_path):
    folders = folders_of(tmp_path)
    with hold(folders[4]), pytest.raises(FolderInUseError):
        together(problem, folders)
    assert not list(tmp_path.rglob("metrics.csv"))


def test_runs_of_a_loader_are_trained_one_by_one(problem, tmp_path):
    """Each reads minibatches of its own."""
    loader = in_minibatches(problem.train, 8)
    made = together(problem._replace(train=loader), folders_of(tmp_path, (3, 4)))
    for seed, found in made.items():
        assert "together" not in found.info
        alone = tmp_path / f"{seed} alone"
        assert_same_run(found, run(problem._replace(train=loader), alone, seed=seed))


def test_their_wall_times_add_up_to_that_of_all(problem, tmp_path):
    start = time.perf_counter()
    made = together(problem, folders_of(tmp_path, range(6)))
    took = time.perf_counter() - start
    assert 0 < sum(found.info["wall_seconds"] for found in made.values()) < took


class Invalid(Exploding):
    """A loss that is infinite on the validation set alone, which has 40 examples."""

    def scores(self, params, batch):
        scores = Regression.scores(self, params, batch)
        ends = (params["s"] > self.limit) & (jnp.abs(params["b"]) > 0.02)
        bad = ends & (len(batch[1]) == len(self.valid[1]))
        return {**scores, "loss": scores["loss"] + jnp.where(bad, jnp.inf, 0)}


@pytest.mark.parametrize("every", [False, True])
def test_runs_whose_validation_loss_is_not_finite_end(problem, tmp_path, monkeypatch, every):
    """One of them, or all."""
    invalid = Invalid(*problem)
    tags = {seed: float(first_params(invalid.init, seed)["s"]) for seed in (3, 4, 5)}
    *_, second, largest = sorted(tags.values())
    monkeypatch.setattr(Exploding, "limit", -np.inf if every else (second + largest) / 2)
    how = {"estimator": fwdgrad.backprop_value_and_grad}
    made = together(invalid, folders_of(tmp_path), **how)
    for seed, found in made.items():
        ends = every or tags[seed] == largest
        assert isinstance(found, DivergedError) == ends
        status = read_info(tmp_path / str(seed))["status"]
        assert status == ("diverged" if ends else "finished")
        if ends:
            assert "the validation loss is inf at step 20" in str(found)


def test_states_of_runs_that_diverge_are_not_kept(problem, tmp_path, monkeypatch):
    """The error of one has no traceback, which would hold the states of all."""
    monkeypatch.setattr(Exploding, "limit", -np.inf)
    made = together(Exploding(*problem), folders_of(tmp_path))
    assert all(isinstance(error, DivergedError) for error in made.values())
    assert all(error.__traceback__ is None for error in made.values())


def test_a_run_begun_anew_alone_was_not_trained_together(problem, tmp_path, monkeypatch):
    """Its group was killed before the first checkpoint."""
    options = {"checkpoint_seconds": 1e9}
    record, made = RunInProgress.record, []

    def stop(self):
        made.append(self)
        if len(made) == 6:
            raise KeyboardInterrupt
        record(self)

    with monkeypatch.context() as patched:
        patched.setattr(RunInProgress, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            together(problem, folders_of(tmp_path), **options)
    alone = run(problem, tmp_path / "4", seed=4, config="seed: 4\n", **options)
    assert "together" not in alone.info
