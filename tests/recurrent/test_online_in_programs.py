"""Online gradients under jit, scan and vmap: memory, dtypes, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad import CarriedTangents, LowRank, RankOne, Sketch, online
from tests.sweeps import thorough_but

from .programs import FORMS, INPUTS, PROGRAMS, close, floating, inputs, rnn, scanned


@pytest.mark.parametrize("form", thorough_but(["exact", "normal"], ["exact", *FORMS]))
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


@pytest.mark.parametrize("form", thorough_but(["sketch", "normal"], FORMS))
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
    "no pair": (lambda p, s, x: s, r"step_fn must return a pair, \(state, value\)"),
    "a vector": (lambda p, s, x: (s, s["h"]), r"floating-point scalar; found float32\[2"),
    "an integer": (lambda p, s, x: (s, jnp.int32(1)), "scalar; found int32"),
    "a shape": (
        lambda p, s, x: ({**s, "h": s["h"][:1]}, s["h"].sum()),
        r"state\['h'\] was float32\[2\]; found float32\[1\]",
    ),
    "a dtype": (
        lambda p, s, x: ({**s, "h": s["h"].astype(jnp.bfloat16)}, s["h"].sum()),
        r"state\['h'\] was float32\[2\]; found bfloat16\[2\]",
    ),
    "leaves in other places": (
        lambda p, s, x: ({"h": s["i"], "i": s["h"]}, s["h"].sum()),
        r"state\['h'\] was float32\[2\]; found int32\[2\]",
    ),
    "a structure": (lambda p, s, x: ([s], s["h"].sum()), "a state of the structure"),
}


@pytest.mark.parametrize("influence", [Sketch(), RankOne(), CarriedTangents()], ids=repr)
@pytest.mark.parametrize("wrong", NOT_A_STEP)
def test_what_is_no_step(wrong, influence, key):
    step, said = NOT_A_STEP[wrong]
    state = {"h": jnp.ones(2), "i": jnp.arange(2)}
    with pytest.raises(TypeError, match=said) as error:
        online(step, influence).init(key, jnp.ones(2), state, jnp.ones(2))
    assert "CarriedTangents" not in "".join(getattr(error.value, "__notes__", []))


def test_a_rule_that_cannot_be_transposed_has_a_remedy(key):
    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, None), lambda _, cotangent: (jnp.clip(cotangent, -1, 1),))

    def step(params, state, x):
        return clipped(params * state + x), jnp.sum(state)

    args = jnp.ones(2), jnp.ones(2), jnp.ones(2)
    with pytest.raises(NotImplementedError) as error:
        learner = online(step, RankOne())
        learner.update(learner.init(key, *args), *args[::2])
    assert "guess='diagonal'" in "".join(error.value.__notes__)
    learner = online(step, Sketch(rank=1))  # which needs no transpose
    learner.update(learner.init(key, *args), *args[::2])


def good(params, state, x):
    return state * params + x, jnp.sum(state * params)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda k: online(3), TypeError, "step_fn must be a function, .* found int"),
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
            lambda k: online(good).init(k, jnp.ones(2), [jnp.ones(2), 0.5], jnp.ones(2)),
            TypeError, r"state\[1\] is a Python float; make it an array: jnp.asarray\(0.5\)",
        ),
        (
            lambda k: online(good).init(k, jnp.ones(2), [jnp.ones(2) * 1j], jnp.ones(2)),
            TypeError, r"state\[0\] has the complex dtype complex64",
        ),
        (
            lambda k: online(good).update(
                online(good, RankOne()).init(k, *[jnp.ones(2)] * 3), jnp.ones(2), jnp.ones(2)
            ),
            TypeError, "carry is of another form of the influence",
        ),
        (
            lambda k: online(good, RankOne()).update(
                online(good, RankOne()).init(k, jnp.ones(1), *[jnp.ones(2)] * 2),
                jnp.ones(2), jnp.ones(2),
            ),
            ValueError, r"carry is of parameters of shapes \[\(1,\)\].* have \[\(2,\)\]",
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
