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
    INPUTS,
    PROGRAMS,
    estimates,
    floating,
    inputs,
    rnn,
    scanned,
    through_time,
)

GUESSES = ("diagonal", "immediate", "none")


def close(found, expected, rtol=1e-9):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale)


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


FORMS = {
    "sketch": Sketch(rank=2),
    "no guess": Sketch(rank=1, num_random=2, guess="none"),
    "rank one": RankOne(num_products=2),
    "normal": CarriedTangents(num_tangents=2),
    "low rank": CarriedTangents(LowRank(rank=1), num_tangents=2),
}


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


@pytest.mark.parametrize("form", ["exact", *FORMS])
def test_update_goes_into_jit_scan_and_vmap(form, key):
    """A minibatch of sequences, against one after the other."""
    step, params, state = PROGRAMS["gru"]()
    learner = online(step, (FORMS | {"exact": Sketch(rank=4)})[form])
    xs = jax.random.normal(key, (3, 5, INPUTS))
    keys = jax.random.split(key, 3)

    def run(key, xs):
        return scanned(learner, params)(learner.init(key, params, state, xs[0]), xs)

    carry, (values, grads) = jax.jit(jax.vmap(run))(keys, xs)
    assert carry.state["count"].tolist() == [5, 5, 5]
    alone = jax.jit(run)
    for i in range(3):
        _, (expected_values, expected) = alone(keys[i], xs[i])
        np.testing.assert_allclose(values[i], expected_values, rtol=1e-5)
        if not isinstance(learner.influence, Sketch) or form == "exact":
            # (The singular vectors of a sketch have signs that rounding decides.)
            close([g[i] for g in grads], expected, rtol=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_memory_does_not_grow_with_the_sequence(form, key):
    step, params, state = rnn()
    learner = online(step, FORMS[form])
    carry = learner.init(key, params, state, jnp.zeros(INPUTS))
    sums = [jnp.zeros_like(p) for p in floating(params)]

    @jax.jit
    def run(carry, sums, xs):
        def body(both, x):
            carry, _, grad = learner.update(both[0], params, x)
            return (carry, jax.tree.map(jnp.add, both[1], floating(grad))), None

        return jax.lax.scan(body, (carry, sums), xs)[0]

    compiled = [run.lower(carry, sums, jnp.zeros((n, INPUTS))).compile() for n in (100, 10_000)]
    short, long = (x.memory_analysis().temp_size_in_bytes for x in compiled)
    assert short == long


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_keeps_its_dtypes(form, dtype, key):
    step, params, state = rnn()
    params, state = jax.tree.map(
        lambda x: x.astype(dtype) if hasattr(x, "dtype") and x.dtype == jnp.float32 else x,
        (params, state),
    )
    xs = inputs(4).astype(dtype)
    learner = online(step, FORMS[form])
    carry = learner.init(key, params, state, xs[0])
    carry, (values, grads) = jax.jit(scanned(learner, params))(carry, xs)
    assert carry.state.dtype == values.dtype == dtype
    assert {g.dtype for g in grads} == {jnp.dtype(dtype)}
    carried = carry.influence
    if isinstance(FORMS[form], CarriedTangents):  # the tangents themselves are like θ
        carried = carried.of_state
    assert {x.dtype for x in floating(carried)} == {jnp.dtype(jnp.float32)}


NOT_A_STEP = {
    "no pair": (lambda p, s, x: s, TypeError, r"step_fn must return a pair, \(state, value\)"),
    "a vector": (lambda p, s, x: (s, s), TypeError, r"floating-point scalar; found float32\[2"),
    "an integer": (lambda p, s, x: (s, jnp.int32(1)), TypeError, "scalar; found int32"),
    "a shape": (lambda p, s, x: (s[:1], s.sum()), TypeError, "must return a state of the struct"),
    "a dtype": (
        lambda p, s, x: (s.astype(jnp.bfloat16), s.sum()), TypeError, "float32.*found.*bfloat16",
    ),
    "a structure": (lambda p, s, x: ([s], s.sum()), TypeError, "must return a state of the struct"),
}  # fmt: skip


@pytest.mark.parametrize("influence", [Sketch(), RankOne(), CarriedTangents()], ids=repr)
@pytest.mark.parametrize("wrong", NOT_A_STEP)
def test_what_is_no_step(wrong, influence, key):
    step, kind, said = NOT_A_STEP[wrong]
    learner = online(step, influence)
    with pytest.raises(kind, match=said):
        carry = learner.init(key, jnp.ones(2), jnp.ones(2), jnp.ones(2))
        learner.update(carry, jnp.ones(2), jnp.ones(2))


def good(params, state, x):
    return state * params + x, jnp.sum(state * params)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda k: online(3), TypeError, "fun must be a function"),
        (lambda k: online(good, Sketch), TypeError, "influence must be an object, found the class"),
        (lambda k: online(good, 3), TypeError, "influence must have first and advance"),
        (lambda k: Sketch(rank=1.5), TypeError, "rank must be an integer; found 1.5"),
        (lambda k: Sketch(num_random=-1), ValueError, "num_random must be 0 or more; found -1"),
        (lambda k: Sketch(guess="exact"), ValueError, "guess must be one of 'diagonal', "),
        (lambda k: Sketch(0, guess="none"), ValueError, "nothing is carried"),
        (lambda k: RankOne(0), ValueError, "num_products must be at least 1; found 0"),
        (lambda k: CarriedTangents(num_tangents=0), ValueError, "num_tangents must be at least 1"),
        (lambda k: CarriedTangents(LowRank), TypeError, "found the class LowRank"),
        (lambda k: online(good).init(0, *[jnp.ones(2)] * 3), TypeError, "typed PRNG key"),
        (
            lambda k: online(good).init(k, jnp.ones(2), 3, jnp.ones(2)),
            ValueError, "state must have a floating-point array",
        ),
        (
            lambda k: online(good).init(k, jnp.arange(2), jnp.ones(2), jnp.ones(2)),
            ValueError, "params has no differentiable leaf",
        ),
        (
            lambda k: online(good).update(jnp.ones(2), jnp.ones(2), jnp.ones(2)),
            TypeError, "carry must be an OnlineCarry",
        ),
    ],
)  # fmt: skip
def test_bad_arguments(call, kind, said, key):
    with pytest.raises(kind, match=said):
        call(key)


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
