"""Random functions made of products, convolutions, rearrangements and control flow."""

import jax
import jax.numpy as jnp
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from tests.core.oracle import ROUNDING, assert_same, normal, push_both_ways
from tests.core.test_layouts import LAYOUTS

UNARY = [jnp.sin, jnp.tanh, jax.nn.relu, lambda x: x * 0.5, lambda x: x[::-1], lambda x: -x]
WRAP = [
    lambda f: f,
    jax.jit,
    jax.checkpoint,
    lambda f: lambda w, x: lax.cond(x[0, 0] > 0, f, lambda w, x: 2 * f(w, x), w, x),
    lambda f: lambda w, x: lax.scan(lambda c, _: (jnp.tanh(f(w, c)), None), x, None, length=2)[0],
    lambda f: lambda w, x: jax.vmap(f, in_axes=(None, 0))(w, jnp.stack([x, 2 * x])).sum(0),
]
SQUARE = ["transpose", "reverse", "negate and scale", "copy", "jit", "checkpoint", "sum"]
steps = st.lists(
    st.tuples(
        st.integers(0, 2),  # which weight
        st.lists(st.sampled_from(SQUARE), max_size=3),
        st.sampled_from(["x @ w", "w @ x", "w.T @ x", "conv", "x + w", "sum of w**2"]),
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


@settings(max_examples=20, deadline=None, derandomize=True)
@given(steps, st.sampled_from([(1, 1), (2, 3)]), st.sampled_from(["float32", "float64"]))
def test_random_functions(program, rank_and_number, dtype):
    with jax.enable_x64(True):
        params = [normal(i, (6, 6), dtype) / 2 for i in range(3)]
        x = normal(9, (6, 6), dtype)
        rank, num_tangents = rank_and_number
        found, expected, *_ = push_both_ways(
            lambda p: random_function(program)(p, x), params, rank=rank, num_tangents=num_tangents
        )
        assert_same(found, expected, ROUNDING[dtype])
