"""Recurrent programs for the tests, and backprop through time as their oracle."""

import jax
import jax.numpy as jnp
import numpy as np

import fwdgrad
from fwdgrad import CarriedTangents, LowRank, RankOne, Sketch

UNITS, INPUTS = 4, 2


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape) / (shape[-1] if shape else 1) ** 0.5


def rnn(units=UNITS):
    """An RNN with a linear readout; some leaves are no parameters."""
    params = {
        "w": _normal(1, units, units), "u": _normal(2, units, INPUTS), "b": _normal(3, units),
        "v": _normal(4, units), "activation": "tanh", "scale": 2, "frozen": jnp.arange(3),
    }  # fmt: skip

    def step(params, state, x):
        state = jnp.tanh(params["w"] @ state + params["u"] @ x + params["b"])
        return state, (params["v"] @ state - x[0]) ** 2

    return step, params, jnp.zeros(units)


def gru(units=UNITS):
    """A gated unit with a counter in its state."""
    params = {
        name: {"w": _normal(i, units, units), "u": _normal(i + 9, units, INPUTS)}
        for i, name in enumerate(("update", "reset", "new"))
    }

    def step(params, state, x):
        h = state["h"]

        def gate(name, h):
            return params[name]["w"] @ h + params[name]["u"] @ x

        update, reset = jax.nn.sigmoid(gate("update", h)), jax.nn.sigmoid(gate("reset", h))
        new = jnp.tanh(params["new"]["u"] @ x + reset * (params["new"]["w"] @ h))
        h = (1 - update) * h + update * new
        return {"h": h, "count": state["count"] + 1}, jnp.sum((h - x[1]) ** 2)

    return step, params, {"h": jnp.zeros(units), "count": jnp.int32(0)}


def lstm(units=UNITS):
    """Two arrays in the state; a gate moves both."""
    params = [_normal(1, 4 * units, units), _normal(2, 4 * units, INPUTS)]

    def step(params, state, x):
        c, h = state
        i, f, o, g = jnp.split(params[0] @ h + params[1] @ x, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), jnp.sum(h**2) - h[0] * x[0]

    return step, params, (jnp.zeros(units), jnp.zeros(units))


def diagonal(units=UNITS):
    """A linear state-space model whose units do not see each other."""
    params = {"a": 0.5 + 0.1 * _normal(1, units), "b": _normal(2, units, INPUTS)}

    def step(params, state, x):
        state = params["a"] * state + params["b"] @ x
        return state, jnp.sum(jnp.sin(state)) + jnp.sum(params["a"] ** 2)

    return step, params, jnp.zeros(units)


def tied(units=UNITS):
    """A matrix that is used twice in a step, and a parameter that moves every unit."""
    params = (_normal(1, units, units), jnp.asarray(0.3))

    def step(params, state, x):
        w, gain = params
        state = jnp.tanh(gain * (w @ jnp.tanh(w @ state + x[0])) + x[1])
        return state, jnp.sum(state**3)

    return step, params, jnp.zeros(units)


@jax.custom_vjp
def _rounded(x):
    return jnp.round(4 * x) / 4


_rounded.defvjp(lambda x: (_rounded(x), None), lambda _, cotangent: (cotangent,))


def rounded(units=UNITS):
    """An RNN with a state of few bits and the reverse rule of a straight-through estimator."""
    step, params, state = rnn(units)

    def rounding(params, state, x):
        state, value = step(params, state, x)
        return _rounded(state), value

    return rounding, params, state


def looped(units=UNITS):
    """A step with a scan and a branch of its own."""
    params = {"w": _normal(1, units, units), "rates": 0.1 * jnp.ones(3)}

    def step(params, state, x):
        def inner(state, rate):
            slope = jnp.tanh(params["w"] @ state) + x[0]
            return jax.lax.cond(x[1] > 0, lambda: state + rate * slope, lambda: state * rate), None

        state, _ = jax.lax.scan(inner, state, params["rates"])
        return state, jnp.sum(state**2)

    return step, params, jnp.ones(units)


PROGRAMS = {
    "rnn": rnn, "gru": gru, "lstm": lstm, "diagonal": diagonal, "tied": tied,
    "rounded": rounded, "looped": looped,
}  # fmt: skip


def embedding():
    """Tokens that are looked up; the units do not see each other."""
    params = {"decay": 0.3 * jnp.ones(3), "table": _normal(1, 5, 3), "gate": jnp.zeros(3)}

    def step(params, state, token):
        state = params["decay"] * state + params["table"][token] * (1 + params["gate"])
        return state, jnp.sum(jnp.sin(state))

    return step, params, jnp.zeros(3)


def inputs(length):
    return jax.random.normal(jax.random.key(7), (length, INPUTS))


def floating(tree):
    return jax.tree.leaves(fwdgrad.partition(tree)[0])


def through_time(step, params, state, xs):
    """Return the values, and each one's gradient by the floating leaves, by reverse mode."""
    theta, rest = fwdgrad.partition(params)

    def values(theta):
        found, now = [], state
        for x in xs:
            now, value = step(fwdgrad.combine(theta, rest), now, x)
            found.append(value)
        return jnp.stack(found)

    found, grads = jax.jit(lambda theta: (values(theta), jax.jacrev(values)(theta)))(theta)
    return found, jax.tree.leaves(grads)


def estimates(learner, key, params, state, xs):
    """Return the last state, the values, and each one's estimate by the floating leaves."""

    @jax.jit
    def run(key, xs):
        carry = learner.init(key, params, state, xs[0])
        values, grads = [], []
        for x in xs:
            carry, value, grad = learner.update(carry, params, x)
            values.append(value)
            grads.append(floating(grad))
        return carry.state, jnp.stack(values), [jnp.stack(x) for x in zip(*grads, strict=True)]

    return run(key, xs)


def scanned(learner, params):
    """Return (carry, xs) -> (carry, (values, estimates by the floating leaves)), a scan."""

    def body(carry, x):
        carry, value, grad = learner.update(carry, params, x)
        return carry, (value, floating(grad))

    return lambda carry, xs: jax.lax.scan(body, carry, xs)


FORMS = {
    "sketch": Sketch(rank=2),
    "no guess": Sketch(rank=1, num_random=2, guess="none"),
    "rank one": RankOne(num_products=2),
    "normal": CarriedTangents(num_tangents=2),
    "low rank": CarriedTangents(LowRank(rank=1), num_tangents=2),
}


def close(found, expected, rtol=1e-9):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale)
