"""Step programs, memory, and measurements that are made once."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.measurement import (
    StepProgram,
    loss_step,
    measured_once,
    peak_bytes,
    proportion_interval,
    sgd_step,
)
from fwdgrad.training import make_descend


def quadratic(x):
    return jnp.sum(x**2) / 2


def loss(params, x):
    return jnp.mean((x @ params["w"]) ** 2)


PARAMS, BATCHES = {"w": jnp.ones((4, 3))}, jnp.arange(40.0).reshape(2, 5, 4) / 40


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_a_step_program_makes_the_steps_and_keeps_the_users_parameters(steps_per_call):
    step = sgd_step(fwdgrad.backprop_value_and_grad(loss))
    program = StepProgram(step, PARAMS, BATCHES, steps_per_call=steps_per_call)
    total = program() + program()
    expected = sum(loss(PARAMS, BATCHES[i % 2 if steps_per_call > 1 else 0])
                   for i in range(2 * steps_per_call))  # fmt: skip
    np.testing.assert_allclose(total, expected, rtol=1e-4)  # the rate is tiny
    assert not PARAMS["w"].is_deleted() and program.temp_bytes >= 0 and program.operations > 0
    timed = program.timed()
    assert timed.call is program and timed.steps == steps_per_call
    assert timed.facts["total_bytes"] >= program.temp_bytes + PARAMS["w"].nbytes
    assert timed.facts.keys() == {"compile_seconds", "temp_bytes", "total_bytes", "operations"}


class SignDescent:
    """An estimator with the protocol alone: the signs of the gradient, times a drawn scale."""

    draws_ahead = True

    def __init__(self, function):
        self.function = function

    def init(self, params, *args):
        return params

    def draw(self, key, params, *args):
        return jax.random.uniform(key)

    def along(self, scale, params, *args):
        value, grad = jax.value_and_grad(self.function)(params, *args)
        return value, jax.tree.map(lambda g: scale * jnp.sign(g), grad)

    def __call__(self, key, params, *args):
        return self.along(self.draw(key, params, *args), params, *args)


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_measurement_knows_an_estimator_by_its_protocol_alone(steps_per_call):
    """Made into a program, timed beside the loss, and followed along a descent."""
    programs = {
        name: StepProgram(step, PARAMS, BATCHES, steps_per_call=steps_per_call)
        for name, step in (("loss", loss_step(loss)), ("own", sgd_step(SignDescent(loss))))
    }
    assert programs["own"].operations > programs["loss"].operations > 0
    assert programs["own"].temp_bytes >= 0 and jnp.isfinite(programs["own"]())
    start, rate = jnp.array([1.0, -2.0]), 0.1
    path = make_descend(quadratic, start, SignDescent, learning_rate=rate, num_steps=40)(3)
    scales = [jax.random.uniform(jax.random.fold_in(jax.random.key(3), i)) for i in range(3)]
    expected = start - rate * jnp.sign(start) * jnp.cumsum(jnp.stack([*scales]))[:, None]
    np.testing.assert_allclose(path.points[1:4], expected, rtol=1e-5)


def test_operations_are_those_of_one_step():
    """A product of (5, 4) and (4, 3), and what is small beside it, however many steps."""
    counts = [
        StepProgram(loss_step(loss), PARAMS, BATCHES, steps_per_call=n).operations for n in (1, 3)
    ]
    assert all(2 * 5 * 4 * 3 <= n <= 2 * 5 * 4 * 3 + 100 for n in counts)


def test_the_total_is_parameters_and_temporaries_without_minibatches():
    """A step that updates its parameters in place; it does not read the labels."""
    params, batches = {"w": jnp.ones((256, 8))}, (jnp.ones((4, 64, 256)), jnp.ones((4, 64, 9)))
    step = sgd_step(fwdgrad.backprop_value_and_grad(lambda params, batch: loss(params, batch[0])))
    for steps_per_call in (1, 3):
        program = StepProgram(step, params, batches, steps_per_call=steps_per_call)
        rest = program.total_bytes - program.temp_bytes - params["w"].nbytes
        assert 0 <= rest < 1024 < batches[1].nbytes  # keys, the loss


def test_peak_memory_is_the_allocated_memory():
    """64 MiB that are written and freed; what was in use before does not count."""
    before = np.ones(2**25, np.uint8)
    found = peak_bytes(lambda: np.ones(2**26, np.uint8).sum())
    if found is None:
        pytest.skip("the kernel does not tell")
    assert abs(found - 2**26) < 2**23, before.nbytes  # the kernel counts in batches of pages


def test_measured_once(tmp_path):
    calls = []
    measure = functools.partial(measured_once, tmp_path, "label", measure=lambda: calls.append(1))
    first = measure({"n": 1})
    assert measure({"n": 1}) == first and len(calls) == 1
    assert measure({"n": 2})["config"] == {"n": 2} and len(calls) == 2
    assert first["wall_seconds"] >= 0 and first["versions"]["jax"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and all(name.startswith("label-") for name in names)
    assert json.loads((tmp_path / names[0]).read_text())["code"].keys() == {
        "commit",
        "dirty",
        "sum",
    }


def test_a_measurement_that_fails_leaves_nothing(tmp_path):
    def fail():
        raise OSError("no device")

    with pytest.raises(OSError, match="no device"):
        measured_once(tmp_path, "label", {}, fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (3, 20), (20, 20), (1, 1)])
def test_wilsons_interval_solves_its_equation(successes, n):
    """Its ends are the p with |successes/n − p| = z √(p (1 − p)/n)."""
    share = proportion_interval(successes, n)
    assert share.value == successes / n and share.n == n
    for p in (share.low, share.high):
        wanted = 1.959963984540054**2 * p * (1 - p) / n
        np.testing.assert_allclose((share.value - p) ** 2, wanted, atol=1e-15)
    assert (share.low == 0) == (successes == 0) and (share.high == 1) == (successes == n)
