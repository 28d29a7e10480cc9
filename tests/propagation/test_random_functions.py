"""Random functions made of products, convolutions, rearrangements and control flow."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import fwdgrad
from tests.examples import examples
from tests.oracle import ROUNDING, assert_same, normal, push_both_ways
from tests.propagation.test_structural import LAYOUTS


@jax.custom_jvp
def bent(x):
    return jnp.where(x > 0, x, 0.1 * x)


bent.defjvp(lambda x, t: (bent(*x), jnp.where(x[0] > 0, 1, 0.3).astype(t[0].dtype) * t[0]))


def pooled(x):
    """Return the maximum of each pair of neighbours, repeated twice."""
    largest = lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, (1, 2), (1, 2), "VALID")
    return jnp.repeat(largest, 2, 1)


UNARY = [
    jnp.sin, jnp.tanh, jax.nn.relu, lambda x: x * 0.5, lambda x: x[::-1], lambda x: -x,
    lambda x: jax.nn.gelu(x, approximate=False), jax.nn.softmax, lambda x: jnp.cumsum(x, 1) / 6,
    lambda x: jnp.sort(x, 0), lambda x: jnp.concatenate([x[:, 3:], x[:, :3]], 1), bent, pooled,
    lambda x: lax.dynamic_update_slice(x, x[:2] ** 2, (3, 0)),
    lambda x: x.at[jnp.array([0, 4])].add(1.0),
]  # fmt: skip
WRAP = [
    lambda f: f,
    jax.jit,
    jax.checkpoint,
    lambda f: lambda w, x: lax.cond(x[0, 0] > 0, f, lambda w, x: 2 * f(w, x), w, x),
    lambda f: lambda w, x: lax.scan(lambda c, _: (jnp.tanh(f(w, c)), None), x, None, length=2)[0],
    lambda f: lambda w, x: jax.vmap(f, in_axes=(None, 0))(w, jnp.stack([x, 2 * x])).sum(0),
    lambda f: lambda w, x: lax.fori_loop(0, 2, lambda i, c: jnp.tanh(f(w, c)) * (1 + i), x),
    lambda f: (
        lambda w, x: lax.while_loop(
            lambda s: s[1] < 2, lambda s: (jnp.tanh(f(w, s[0])), s[1] + 1), (x, 0)
        )[0]
    ),
    lambda f: lambda w, x: lax.map(lambda each: f(w, each), jnp.stack([x, -x])).sum(0),
    lambda f: lambda w, x: lax.scan(lambda c, v: (c, f(v, c)), x, jnp.stack([w, w.T]))[1].sum(0),
]
SQUARE = ["transpose", "reverse", "negate and scale", "copy", "jit", "checkpoint", "sum"]
steps = st.lists(
    st.tuples(
        st.integers(0, 2),  # which weight
        st.lists(st.sampled_from(SQUARE), max_size=3),
        st.sampled_from(
            ["x @ w", "w @ x", "w.T @ x", "conv", "x + w", "sum of w**2", "lookup", "tied"]
        ),
        st.sampled_from(range(len(UNARY))),
        st.sampled_from(range(len(WRAP))),
    ),
    min_size=1,
    max_size=4,
)


def random_function(program):
    def apply(kind, w, x):
        if kind == "conv":  # rows as positions, columns as channels
            kernel = w.reshape(1, 6, 6)
            return lax.conv_general_dilated(
                x[None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )[0]
        return {
            "x @ w": lambda: x @ w,
            "w @ x": lambda: w @ x,
            "w.T @ x": lambda: w.T @ x,
            "x + w": lambda: x + w,
            "sum of w**2": lambda: x * jnp.sum(w**2) / 36,
            "lookup": lambda: x + w[jnp.argsort(x[:, 0])],
            "tied": lambda: jnp.tanh(x @ w) @ w[jnp.array([3, 0, 1, 1, -1, 2])].T,
        }[kind]()

    def loss(params, x):
        for which, arrangements, kind, unary, wrap in program:

            def layer(w, x, arrangements=arrangements, kind=kind, unary=unary):
                for name in arrangements:
                    w = LAYOUTS[name](w)
                return UNARY[unary](apply(kind, w, x))

            x = WRAP[wrap](layer)(params[which], x)
        return jnp.mean(x**2)

    return loss


FORMS = {
    "low rank": (fwdgrad.LowRank(), 1),
    "rank 2, three": (fwdgrad.LowRank(rank=2), 3),
    "blocks": (fwdgrad.BlockSparse(), 3),
    "dense": (fwdgrad.Normal(), 2),
}


@examples(12, thorough=24, each_night=50)
@given(steps, st.sampled_from([*FORMS]), st.sampled_from(["float32", "float64"]))
def test_derivatives_of_random_functions_are_those_of_jvp(program, form, dtype):
    distribution, num_tangents = FORMS[form]
    with jax.enable_x64(True):
        params = [normal(i, (6, 6), dtype) / 2 for i in range(3)]
        x = normal(9, (6, 6), dtype)
        found, expected, *_ = push_both_ways(
            lambda p: random_function(program)(p, x),
            params,
            distribution=distribution,
            num_tangents=num_tangents,
        )
        assert_same(found, expected, ROUNDING[dtype])
