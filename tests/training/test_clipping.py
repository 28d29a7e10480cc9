"""Clipping at a running quantile: the bound against NumPy, the history, divergence without it."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fwdgrad
from fwdgrad.records import load_checkpoint, save_checkpoint
from fwdgrad.training import (
    Batches,
    clip_by_running_quantile,
    clipped_sgd,
    guided_optimizer,
    make_stepper,
)


def run(clipping, norms, state=None):
    """Estimates of these norms, in turn -> the norms after clipping, and the last state."""
    update = jax.jit(clipping.update)
    state = clipping.init(None) if state is None else state
    after = []
    for norm in norms:
        updates, state = update({"a": jnp.array([0.0, 0.6 * norm]), "b": 0.8 * norm}, state)
        after.append(np.hypot(updates["a"][1], updates["b"]))
    return np.array(after), state


def expected(norms, quantile, multiple, size, warmup):
    """The same by NumPy: of the finite norms before, every stride-th, at most `size` of them."""
    after, before, stride, num_clipped = [], [], 1, 0
    for norm in norms:
        while len(before[::stride]) > size:
            stride *= 2
        bound = np.inf
        if len(before) >= warmup:
            bound = multiple * np.quantile(before[::stride], quantile)
        after.append(min(norm, bound))
        num_clipped += norm > bound
        before.append(norm)
    return np.array(after), before[::stride], num_clipped


@pytest.mark.parametrize(
    ("quantile", "multiple", "size", "warmup"),
    [(0.5, 2.0, 8, 3), (0.9, 1.0, 16, 16), (0.25, 1.5, 2, 1), (0.5, 2.0, 256, 32)],
)
def test_the_bound_is_the_quantile_of_the_norms_before(quantile, multiple, size, warmup):
    norms = np.abs(np.random.default_rng(0).standard_cauchy(100)).astype(np.float32)
    clipping = clip_by_running_quantile(quantile, multiple, size=size, warmup=warmup)
    after, state = run(clipping, norms)
    wanted, history, num_clipped = expected(norms, quantile, multiple, size, warmup)
    assert num_clipped > 3
    np.testing.assert_allclose(after, wanted, rtol=1e-5)
    assert int(state.num_clipped) == num_clipped
    np.testing.assert_allclose(state.history[: len(history)], history, rtol=1e-6)
    assert int(state.num_kept) == len(history) and int(state.num_finite) == 100


def test_nothing_is_clipped_in_the_warm_up():
    norms = [1.0, 1.0, 1.0, 1e6]
    for warmup, last in ((4, 1e6), (3, 2.0)):
        after, state = run(clip_by_running_quantile(warmup=warmup), norms)
        np.testing.assert_allclose(after, [1, 1, 1, last], rtol=1e-6)
        assert int(state.num_clipped) == (warmup == 3)


def test_a_bound_of_zero_clips_nothing():
    after, _ = run(clip_by_running_quantile(warmup=1), [0.0, 0.0, 0.0, 5.0])
    np.testing.assert_allclose(after, [0, 0, 0, 5], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])  # the square of the last is no float32
def test_estimates_that_are_not_finite(bad):
    clipping = clip_by_running_quantile(warmup=1, max_skips=2)
    after, state = run(clipping, [1.0, bad, bad, 8.0, bad])
    np.testing.assert_allclose(after, [1, 0, 0, 2, 0], rtol=1e-6)
    assert int(state.num_skipped) == 3 and int(state.skipped_in_a_row) == 1
    np.testing.assert_allclose(state.history[:3], [1, 8, 0], rtol=1e-6)
    after, state = run(clipping, [bad, bad, bad], state)  # the second of these is the third
    assert after[0] == 0 and not (np.isfinite(after[1:]) & (after[1:] < 1e29)).any()
    assert int(state.skipped_in_a_row) == 4 and int(state.num_finite) == 2


def test_below_the_bound_every_bit_stays_and_other_leaves_do_always():
    estimate = {
        "half": jnp.array([1 / 3, 7.0], jnp.float16), "brain": jnp.array([1 / 3], jnp.bfloat16),
        "none": None, "count": jnp.array([3, 4]), "single": jnp.array([1 / 3]),
    }  # fmt: skip
    clipping = clip_by_running_quantile(multiple=1.0, warmup=1)
    same, state = jax.jit(clipping.update)(estimate, clipping.init(estimate))
    jax.tree.map(np.testing.assert_array_equal, same, estimate)
    assert all(same[k].dtype == x.dtype for k, x in estimate.items() if x is not None)
    larger = {k: x if k in ("none", "count") else 4 * x for k, x in estimate.items()}
    shorter, _ = jax.jit(clipping.update)(larger, state)
    assert shorter["none"] is None
    for name in ("half", "brain", "single", "count"):
        assert shorter[name].dtype == estimate[name].dtype
        np.testing.assert_array_equal(shorter[name], estimate[name])


def test_a_norm_of_half_precision_does_not_overflow():
    clipping = clip_by_running_quantile(multiple=1.0, warmup=1)
    large = jnp.full(100, 3e4, jnp.float16)  # of norm 3e5, and squares of 9e8
    _, state = clipping.update(large, clipping.init(large))
    np.testing.assert_allclose(state.history[0], 3e5, rtol=1e-3)
    shorter, _ = clipping.update(2 * large, state)
    np.testing.assert_allclose(shorter, large, rtol=2e-3)


def heavy(key):
    """A loss of one parameter, w⁴/4 + x w, whose data x are heavy-tailed."""
    x = jax.random.t(key, 1.5, (4000, 1))

    def scores(params, batch):
        w = params["w"]
        return {"loss": (w**4).sum() / 4 + batch @ w}

    return SimpleNamespace(
        init=lambda key: {"w": jnp.ones(1), "none": None}, scores=scores, train=x,
        loss=lambda p, batch: scores(p, batch)["loss"].mean(), valid=x, test=x,
    )  # fmt: skip


def states(optimizer, estimator, pieces, save=None):
    """The state after steps in `pieces`, saved in and loaded from a folder between two of them."""
    problem = heavy(jax.random.key(1))
    stepper = make_stepper(
        problem.loss, problem.init, problem.train, estimator, optimizer, seed=0, batch_size=4,
        steps_per_call=50,
    )  # fmt: skip
    state, batches, step = stepper.state, Batches(4000, 4, 0), 0
    for count in pieces:
        if save is not None and step:
            save_checkpoint(save, state, {})
            state = load_checkpoint(save, jax.tree.map(jnp.zeros_like, state))
        indices = batches.indices(step, count, capacity=50)
        state, step = stepper.advance(state, problem.train, indices, count), step + count
    return state


def test_heavy_tails_diverge_but_for_clipping():
    """One large minibatch is enough: from |w| > √(2/rate) = 3.2 on each step of SGD is longer."""
    pieces = [50] * 20
    free = states(optax.sgd(0.2), fwdgrad.backprop_value_and_grad, pieces)
    bound = states(clipped_sgd(0.2, warmup=8), fwdgrad.backprop_value_and_grad, pieces)
    assert not np.isfinite(free.loss) and int(free.step) < 1000
    assert int(bound.step) == 1000 and abs(bound.params["w"][0]) < 1.5
    assert 20 < int(bound.opt_state[0].num_clipped) < 300


def test_resuming_from_a_checkpoint_gives_the_same_bits(tmp_path):
    def estimator(loss, **options):
        return fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank(), **options)

    optimizer = clipped_sgd(0.05, momentum=0.5, size=16, warmup=4)
    whole = states(optimizer, estimator, [50, 40])
    parts = states(optimizer, estimator, [7, 30, 13, 40], tmp_path)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert int(whole.opt_state[0].stride) == 8 and int(whole.opt_state[0].num_clipped) > 5


def test_a_guess_is_not_clipped_with_the_parameters():
    plain = heavy(jax.random.key(1))
    value_and_grad = fwdgrad.forward_value_and_grad(plain.loss, tangents=fwdgrad.Rademacher())
    guided = value_and_grad.guided().init(plain.init(jax.random.key(0)), plain.train[:4])
    optimizer = guided_optimizer(clipped_sgd(1.0, multiple=1.0, warmup=1), 0.5)
    state = optimizer.init(guided)
    for scale in (1.0, 10.0):
        grad = fwdgrad.Guided({"w": jnp.array([scale]), "none": None}, guided.guess)
        grad.guess["w"] = jnp.array([scale])
        updates, state = optimizer.update(grad, state, guided)
    assert updates.params["w"] == -1 and updates.guess["w"] == -5


@pytest.mark.thorough
def test_the_norm_of_an_estimate_by_signs_is_the_derivative(key):
    """‖g‖ = |d| √n for dense and rank-one signs, so that the bound on it is one on |d|."""
    params = {"w": jnp.arange(12.0).reshape(4, 3), "b": jnp.ones(3)}

    def loss(p):
        return jnp.sum(jnp.tanh(jnp.ones((2, 4)) @ p["w"] / 9 + p["b"]) ** 2)

    for tangents in (fwdgrad.Rademacher(), fwdgrad.LowRank()):
        free, clipped = (
            fwdgrad.forward_value_and_grad(loss, tangents=tangents, clip=clip)(key, params)[1]
            for clip in (None, 1e-3)
        )
        clipping = clip_by_running_quantile(multiple=1.0, warmup=1)
        small = {"w": jnp.zeros((4, 3)), "b": jnp.array([1e-3 * 15**0.5, 0, 0])}
        _, state = clipping.update(small, clipping.init(params))
        found, _ = clipping.update(free, state)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, clipped)


def test_the_mean_of_clipped_normal_estimates_is_a_multiple_of_the_gradient(key):
    """E[clip(d) v] = P(|d| ≤ c) ∇f, by Stein's lemma; the standard error bounds the deviation."""
    gradient, c, n = np.array([3.0, -4.0, 0.0]), 5 * 1.349, 200_000  # twice the median of |d|
    v = np.asarray(jax.random.normal(key, (n, 3)))
    samples = np.clip(v @ gradient, -c, c)[:, None] * v
    error = samples.std(0) / n**0.5
    assert np.all(np.abs(samples.mean(0) - 0.8227 * gradient) < 4.5 * error)
    assert np.all(np.abs(samples.mean(0) - gradient)[:2] > 20 * error[:2])


def test_wrong_arguments_are_errors():
    wrong = [
        ({"quantile": 0.0}, "quantile must be between 0 and 1; found 0.0."),
        ({"quantile": 1}, "quantile must be between 0 and 1; found 1."),
        ({"quantile": float("nan")}, "quantile must be between 0 and 1; found nan."),
        ({"quantile": "half"}, "quantile must be a number; found 'half'."),
        ({"multiple": 0}, "multiple must be positive and finite; found 0."),
        ({"multiple": True}, "multiple must be a number; found True."),
        ({"size": 7}, "size must be even; found 7."),
        ({"size": 16}, "warmup must be at most size=16; found 32."),
        ({"warmup": 0}, "warmup must be at least 1; found 0."),
        ({"max_skips": 1.5}, "max_skips must be an integer of at least 1; found 1.5."),
    ]
    for arguments, message in wrong:
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            clip_by_running_quantile(**arguments)
