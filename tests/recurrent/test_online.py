"""Online gradients: the mean is that of backprop through time, in each form of the influence."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad import CarriedTangents, LowRank, RankOne, Sketch, online
from fwdgrad.recurrent import rank_one, sketch

from .programs import (
    FORMS,
    INPUTS,
    PROGRAMS,
    close,
    embedding,
    estimates,
    floating,
    inputs,
    rnn,
    scanned,
    through_time,
)

GUESSES = ("diagonal", "immediate", "none")


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_with_as_many_directions_as_units_the_gradient_is_exact(name, guess, key, x64):
    """Also with random directions, for which nothing is left."""
    step, params, state = PROGRAMS[name]()
    xs = inputs(5)
    values, grads = through_time(step, params, state, xs)
    learner = online(step, Sketch(rank=99, num_random=1, guess=guess))
    last, found, estimated = estimates(learner, key, params, state, xs)
    np.testing.assert_allclose(found, values)
    close(estimated, grads)
    if name == "gru":
        assert last["count"] == 5 and last["count"].dtype == jnp.int32


def mean_over_all_signs(monkeypatch, module, influence, program, bits_a_step, length):
    """Return the mean of the estimates over all signs of all steps but the last, and the oracle."""
    step, params, state = program
    xs, num_bits = inputs(length), bits_a_step * (length - 1)

    def of(bits):
        used = 0

        def signs(key, shape, dtype):
            nonlocal used
            first, used = used, used + int(np.prod(shape))
            if first >= num_bits:  # those of the last step enter no estimate
                return jnp.ones(shape, dtype)
            return bits[first:used].reshape(shape).astype(dtype)

        monkeypatch.setattr(module, "random_signs", signs)
        grads = estimates(online(step, influence), jax.random.key(0), params, state, xs)[2]
        assert used == bits_a_step * length
        return grads

    every = np.array(list(itertools.product([-1.0, 1.0], repeat=num_bits)))
    mean = jax.tree.map(lambda g: g.mean(0), jax.jit(jax.vmap(of))(every))
    return mean, through_time(step, params, state, xs)[1]


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("name", ["rnn", "gru", "tied"])
def test_the_mean_of_a_sketch_over_all_signs(monkeypatch, name, guess, x64):
    """Of 2 units: 2 signs for the rest, and 2 for the mixture of 2 singular values."""
    program = PROGRAMS[name](units=2)
    influence = Sketch(1, guess=guess)
    found, expected = mean_over_all_signs(monkeypatch, sketch, influence, program, 4, 4)
    close(found, expected)


@pytest.mark.parametrize(
    ("units", "rank", "num_random", "bits"), [(3, 2, 1, 3 + 2), (2, 1, 2, 4 + 2)]
)
def test_the_mean_of_larger_sketches(monkeypatch, units, rank, num_random, bits, x64):
    program, influence = rnn(units), Sketch(rank, num_random)
    found, expected = mean_over_all_signs(monkeypatch, sketch, influence, program, bits, 3)
    close(found, expected)


@pytest.mark.parametrize("name", ["rnn", "gru", "tied"])
def test_the_mean_of_rank_one_over_all_signs(monkeypatch, name, x64):
    program = PROGRAMS[name](units=2)
    found, expected = mean_over_all_signs(monkeypatch, rank_one, RankOne(), program, 2, 4)
    close(found, expected)


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_the_mean_over_keys(name, form):
    """Within 5 standard errors in each of few directions: one in 10⁵ by chance."""
    step, params, state = PROGRAMS[name]()
    xs, number = inputs(6), 4000
    expected = [g.sum(0) for g in through_time(step, params, state, xs)[1]]
    learner = online(step, FORMS[form])

    @jax.jit
    @jax.vmap
    def estimate(key):
        return [g.sum(0) for g in estimates(learner, key, params, state, xs)[2]]

    found = estimate(jax.random.split(jax.random.key(1), number))
    directions = np.random.default_rng(0).normal(size=(5, sum(g.size for g in expected)))
    flat = np.concatenate([np.asarray(g).reshape(number, -1) for g in found], 1) @ directions.T
    truth = directions @ np.concatenate([np.ravel(g) for g in expected])
    errors = (flat.mean(0) - truth) / (flat.std(0, ddof=1) / number**0.5)
    assert np.abs(errors).max() < 5


def test_carried_tangents_are_those_of_the_whole_sequence(key, x64):
    """The sum of the estimates is (1/K) Σ (∇L·v) v."""
    step, params, state = rnn()
    xs = inputs(6)
    learner = online(step, CarriedTangents(num_tangents=3))
    drawn = learner.init(key, params, state, xs[0]).influence.tangents
    gradient = [g.sum(0) for g in through_time(step, params, state, xs)[1]]
    along = sum(jnp.tensordot(v, g, g.ndim) for v, g in zip(drawn, gradient, strict=True))
    expected = [jnp.tensordot(along, v, 1) / 3 for v in drawn]
    found = [g.sum(0) for g in estimates(learner, key, params, state, xs)[2]]
    close(found, expected)


def test_carried_low_rank_tangents_stay_factors(key):
    step, params, state = rnn()
    learner = online(step, CarriedTangents(LowRank(rank=1)))
    tangents = learner.init(key, params, state, inputs(1)[0]).influence.tangents
    kinds = {type(v).__name__ for v in tangents}
    assert kinds == {"Factored", "ArrayImpl"}  # of matrices, and of vectors


def test_a_step_that_reverse_mode_cannot_go_through(key, x64):
    """Against the derivative along each tangent, by forward mode through the whole sequence."""

    def step(params, state, x):
        def go_on(state):
            return jnp.sum(state**2) > 1

        state = jax.lax.while_loop(go_on, lambda s: params["a"] * s, params["w"] @ state + x)
        return state, jnp.sum(jnp.sin(state))

    params = {"a": jnp.asarray(0.8), "w": jnp.eye(2) + 0.3}
    xs, state = inputs(5), jnp.zeros(2)
    learner = online(step, CarriedTangents())
    drawn = learner.init(key, params, state, xs[0]).influence.tangents
    tangent = jax.tree.unflatten(jax.tree.structure(params), [v[0] for v in drawn])

    def values(params):
        return jnp.stack(list(_values(step, params, state, xs)))

    along = jax.jvp(values, (params,), (tangent,))[1]
    expected = [along.reshape(-1, *[1] * (v.ndim - 1)) * v for v in drawn]
    close(estimates(learner, key, params, state, xs)[2], expected)
    with pytest.raises(ValueError) as error:
        online(step, Sketch(1, 1)).init(key, params, state, xs[0])
    assert "CarriedTangents" in "".join(error.value.__notes__)


def _values(step, params, state, xs):
    for x in xs:
        state, value = step(params, state, x)
        yield value


@pytest.mark.parametrize("guess", ["diagonal", "immediate"])
def test_without_a_sketch_it_is_the_sparse_approximation(guess, key, x64):
    """SnAp-1 of an RNN, by hand: one row of J for each parameter."""
    step, params, state = rnn()
    xs = inputs(6)
    learner = online(step, Sketch(rank=0, guess=guess))
    carry = learner.init(key, params, state, xs[0])
    w, u, b, v = (params[name] for name in ("w", "u", "b", "v"))
    traces = [jnp.zeros_like(w), jnp.zeros_like(u), jnp.zeros_like(b)]
    for x in xs:
        new = jnp.tanh(w @ state + u @ x + b)
        slopes = 1 - new**2
        error = 2 * (v @ new - x[0]) * v
        # J before the step, and what the step itself adds.
        back = w.T @ (slopes * error)
        added = [jnp.outer(slopes, state), jnp.outer(slopes, x), slopes]
        expected = {
            name: back.reshape(-1, *[1] * (t.ndim - 1)) * t
            + error.reshape(-1, *[1] * (t.ndim - 1)) * a
            for name, t, a in zip(("w", "u", "b"), traces, added, strict=True)
        }
        carry, _, grad = learner.update(carry, params, x)
        for name, g in expected.items():
            np.testing.assert_allclose(grad[name], g, rtol=1e-9, atol=1e-12)
        keep = slopes * jnp.diagonal(w) * (guess == "diagonal")
        traces = [
            keep.reshape(-1, *[1] * (t.ndim - 1)) * t + a
            for t, a in zip(traces, added, strict=True)
        ]
        state = new


def test_the_guess_is_exact_for_a_diagonal_state(key, x64):
    step, params, state = PROGRAMS["diagonal"]()
    xs = inputs(6)
    learner = online(step, Sketch(rank=0))
    close(estimates(learner, key, params, state, xs)[2], through_time(step, params, state, xs)[1])


def test_each_parameter_owns_the_unit_that_it_moves(key):
    step, params, state = PROGRAMS["gru"]()
    carry = online(step, Sketch()).init(key, params, state, jnp.zeros(INPUTS))
    for owner in carry.influence.owners:
        np.testing.assert_array_equal(owner, np.broadcast_to(np.arange(4)[:, None], owner.shape))


def test_owners_of_what_has_no_effect_at_first(key, x64):
    """Rows of tokens that come later, and a factor whose gate is zero: the guess is exact."""
    step, params, state = embedding()
    tokens = jnp.asarray([0, 1, 2, 1, 3])
    learner = online(step, Sketch(rank=0))
    owners = learner.init(key, params, state, tokens[0]).influence.owners
    for owner in owners:
        np.testing.assert_array_equal(owner, np.broadcast_to(np.arange(3), owner.shape))
    found = estimates(learner, key, params, state, tokens)[2]
    close(found, through_time(step, params, state, tokens)[1])


def test_owners_of_inputs_that_cannot_be_random(key):
    """The square root of a normal number may be NaN; then the input as it is counts."""

    def step(params, state, x):
        return 0.5 * state + params["used"] * jnp.sqrt(x), jnp.sum(state)

    params = {"used": jnp.ones(3), "idle": jnp.ones(3)}
    carry = online(step, Sketch()).init(key, params, jnp.zeros(3), jnp.ones(3))
    idle, used = carry.influence.owners
    assert used.tolist() == [0, 1, 2]
    assert idle.tolist() == [3, 3, 3]  # no unit
    carry, _, grad = online(step, Sketch()).update(carry, params, jnp.ones(3))
    assert (grad["idle"] == 0).all()


@pytest.mark.parametrize("small", [1e-2, 1e-4, 1e-6])
def test_small_singular_values_are_not_lost_in_float32(monkeypatch, small):
    """The mean over all signs, of a product with three singular values far below the others."""
    random = np.random.default_rng(0)
    left = np.linalg.qr(random.normal(size=(8, 5)))[0]
    right = np.linalg.qr(random.normal(size=(9, 5)))[0].T
    values = np.array([1, 1, small, small, small])
    total = 0
    for signs in itertools.product([-1.0, 1.0], repeat=3):
        monkeypatch.setattr(sketch, "random_signs", lambda *_, s=signs: jnp.asarray(s))
        args = jnp.asarray(left, jnp.float32), [jnp.asarray(values[:, None] * right, jnp.float32)]
        new_left, (new_right,) = sketch._reduced(jax.random.key(0), *args, 3)
        assert new_left.shape == (8, 3) and new_right.shape == (3, 9)
        total = total + np.asarray(new_left, np.float64) @ np.asarray(new_right, np.float64) / 8
    kept = np.diag(left.T @ total @ right.T) / values
    np.testing.assert_allclose(kept, 1, rtol=0.05)


def test_parameters_that_change(key, x64):
    """Real-time recurrent learning, by hand: J is carried as it was."""
    step, params, state = rnn()
    learner = online(step, Sketch(rank=4, num_random=0))
    xs = inputs(5)
    carry = learner.init(key, params, state, xs[0])
    theta, rest = fwdgrad.partition(params)

    def parts(theta, state, x):
        return step(fwdgrad.combine(theta, rest), state, x)

    influence = jax.tree.map(lambda p: jnp.zeros((4, *p.shape)), theta)
    for x in xs:
        of_theta, of_state = jax.jacrev(parts, (0, 1))(theta, state, x)[1]
        expected = jax.tree.map(
            lambda g, j, along=of_state: g + jnp.tensordot(along, j, 1), of_theta, influence
        )
        carry, _, grad = learner.update(carry, fwdgrad.combine(theta, rest), x)
        close(floating(grad), jax.tree.leaves(expected))
        of_theta, of_state = jax.jacrev(parts, (0, 1))(theta, state, x)[0]
        influence = jax.tree.map(
            lambda b, j, a=of_state: b + jnp.tensordot(a, j, 1), of_theta, influence
        )
        state = parts(theta, state, x)[0]
        theta = jax.tree.map(lambda p, g: p - 0.1 * g, theta, expected)


@pytest.mark.thorough
def test_a_sketch_has_less_noise_than_rank_one_with_more_memory(key):
    """Of an RNN of 16 units, with 6 and 10 arrays of the size of θ; by 8 keys."""
    step, params, state = rnn(units=16)
    xs = inputs(20)
    expected = jnp.concatenate([g[-1].ravel() for g in through_time(step, params, state, xs)[1]])

    def error(influence):
        learner = online(step, influence)

        @jax.jit
        @jax.vmap
        def last(key):
            carry = learner.init(key, params, state, xs[0])
            grads = scanned(learner, params)(carry, xs)[1][1]
            return jnp.concatenate([g[-1].ravel() for g in grads])

        found = last(jax.random.split(key, 8))
        return float(jnp.mean(jnp.sum((found - expected) ** 2, 1)) / jnp.sum(expected**2))

    assert error(Sketch(rank=4)) < 0.5 * error(RankOne(num_products=10))
