"""Structured dual propagation: each derivative is that of `jax.jvp` with the tangent written out.

First the models that matter, then every rule, then random functions made of all of them.
"""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import fwdgrad
from fwdgrad.core.factored import Factored, add, dense, stack
from tests.core.oracle import ROUNDING, assert_same, push_both_ways


def normal(seed, shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


# Models: each function makes (params, loss, the rules that must have used factors).


def mlp(dtype):
    model = eqx.nn.MLP(6, 3, 16, 2, key=jax.random.key(0), dtype=dtype)
    return model, lambda m, x: jnp.mean(jax.vmap(m)(x[:, :6]) ** 2)


def cnn(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    model = [
        eqx.nn.Conv2d(1, 8, 3, padding="SAME", key=keys[0], dtype=dtype),
        eqx.nn.Conv2d(8, 8, 3, stride=2, padding=1, key=keys[1], dtype=dtype),
        eqx.nn.Linear(8 * 4 * 2, 4, key=keys[2], dtype=dtype),
    ]

    def loss(model, x):
        first, second, last = model

        def each(image):
            hidden = jax.nn.relu(first(image.reshape(1, 8, 4)))
            return last(jax.nn.relu(second(hidden)).reshape(-1))

        return jnp.mean(jax.vmap(each)(x) ** 2)

    return model, loss


def linen_cnn(dtype):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), dtype=dtype, param_dtype=dtype)(x))
            x = nn.relu(nn.Conv(8, (3, 3), strides=2, dtype=dtype, param_dtype=dtype)(x))
            return nn.Dense(4, dtype=dtype, param_dtype=dtype)(x.reshape(len(x), -1))

    net = Net()
    params = net.init(jax.random.key(0), jnp.zeros((1, 8, 4, 1), dtype))
    return params, lambda p, x: jnp.mean(net.apply(p, x.reshape(-1, 8, 4, 1)) ** 2)


def residual_block(dtype):
    keys = jax.random.split(jax.random.key(0), 2)
    model = [eqx.nn.Linear(32, 32, key=k, dtype=dtype) for k in keys]

    def loss(model, x):
        for layer in model:
            x = x + jnp.tanh(jax.vmap(layer)(x))
        return jnp.mean(x**2)

    return model, loss


def layer_norm(dtype):
    model = (
        eqx.nn.LayerNorm(32, dtype=dtype),
        eqx.nn.Linear(32, 16, key=jax.random.key(0), dtype=dtype),
    )
    return model, lambda m, x: jnp.mean(jnp.sin(jax.vmap(lambda v: m[1](m[0](v)))(x)))


def attention(dtype):
    model = eqx.nn.MultiheadAttention(2, 16, key=jax.random.key(0), dtype=dtype)

    def loss(model, x):
        tokens = x.reshape(-1, 2, 16)
        return jnp.mean(jax.vmap(lambda t: model(t, t, t))(tokens) ** 2)

    return model, loss


def lstm(dtype):
    cell = eqx.nn.LSTMCell(8, 12, key=jax.random.key(0), dtype=dtype)

    def loss(cell, x):
        def each(sequence):
            start = (jnp.zeros(12, dtype), jnp.zeros(12, dtype))
            (h, _), hs = lax.scan(lambda c, s: (cell(s, c), c[0]), start, sequence.reshape(4, 8))
            return jnp.sum(h**2) + jnp.mean(hs)

        return jnp.mean(jax.vmap(each)(x))

    return cell, loss


MODELS = [mlp, cnn, linen_cnn, residual_block, layer_norm, attention, lstm]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(("dtype", "rank", "num_tangents"), [("float32", 1, 1), ("float64", 2, 3)])
def test_models(make, dtype, rank, num_tangents, x64):
    model, loss = make(jnp.dtype(dtype))
    params, static = fwdgrad.partition(model)
    x = normal(1, (4, 32), dtype)
    found, expected, events, factored = push_both_ways(
        lambda p: loss(fwdgrad.combine(p, static), x), params, rank=rank, num_tangents=num_tangents
    )
    assert_same(found, expected, ROUNDING[dtype])
    assert any(factored) and not any(kept is False for _, kept in events), events


# Rules.


CONVOLUTIONS = [
    # strides, padding, dilation of the input, dilation of the kernel, groups, batch groups
    ((1, 1), "SAME", (1, 1), (1, 1), 1, 1),
    ((2, 1), ((1, 2), (0, 1)), (1, 1), (1, 2), 1, 1),
    ((1, 2), ((1, -1), (2, 2)), (2, 3), (2, 1), 1, 1),
    ((2, 2), "VALID", (1, 1), (1, 1), 1, 1),
    ((1, 1), "VALID", (1, 1), (1, 1), 4, 1),
    ((1, 1), "SAME", (1, 1), (1, 1), 16, 1),
    ((1, 1), "SAME", (1, 1), (1, 1), 1, 2),
]


@pytest.mark.parametrize("layout", ["NCHW OIHW NCHW", "NHWC HWIO NHWC", "HWNC IHWO CNHW"])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions(layout, options, x64):
    strides, padding, lhs_dilation, rhs_dilation, groups, batch_groups = options
    layout = tuple(layout.split())
    sizes = {"N": 4, "C": 16, "H": 9, "W": 8}, {"O": 16, "I": 16 // groups, "H": 3, "W": 2}
    x = normal(0, [sizes[0][axis] for axis in layout[0]], "float64")
    params = {
        "kernel": normal(1, [sizes[1][axis] for axis in layout[1]], "float64"),
        "scale": jnp.ones((), "float64"),
    }

    def loss(params):
        y = lax.conv_general_dilated(
            x * params["scale"],
            params["kernel"],
            strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            layout,
            groups,
            batch_groups,
        )
        return jnp.mean(jnp.sin(y))

    for rank, num_tangents in ((2, 3),) if layout[0] != "NCHW" else ((1, 1), (2, 3)):
        found, expected, events, factored = push_both_ways(
            loss, params, rank=rank, num_tangents=num_tangents
        )
        assert_same(found, expected, 1e-11)
        dense = groups == 16 or batch_groups > 1  # depthwise: a factor would save nothing
        assert factored == [not dense, False]
        assert dense or ("conv_general_dilated", True) in events


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bi,ij->bj", [(5, 6), (6, 7)]),
        ("ij,bj->bi", [(7, 6), (5, 6)]),
        ("i,ij->j", [(6,), (6, 7)]),
        ("bhd,hde->be", [(5, 3, 6), (3, 6, 7)]),
        ("bd,dhe->bhe", [(5, 6), (6, 3, 7)]),
        ("gbi,gij->gbj", [(3, 5, 6), (3, 6, 7)]),
        ("abij,jk->kiab", [(2, 3, 4, 6), (6, 7)]),
    ],
)
def test_products(equation, shapes, x64):
    """Any dimension numbers, with the parameter on either side, and with two parameters."""
    a, b = (normal(i, shape, "float64") for i, shape in enumerate(shapes))

    def loss(params):
        y = jnp.einsum(equation, params.get("a", a), params.get("b", b))
        return jnp.mean(jnp.sin(y * params["s"]))

    for given_params, rank, num_tangents in (
        ({"b": b}, 1, 1),
        ({"a": a}, 2, 3),
        ({"a": a, "b": b}, 2, 3),
    ):
        params = {**given_params, "s": jnp.ones((), "float64")}
        found, expected, events, _ = push_both_ways(
            loss, params, rank=rank, num_tangents=num_tangents
        )
        assert_same(found, expected, 1e-11)
        assert not any(kept is False for _, kept in events)


LAYOUTS = {
    "transpose": lambda w: w.T,
    "reshape": lambda w: w.reshape(4, 3, 10).reshape(12, 10),
    "reshape to one column": lambda w: w.reshape(12, 1, 10)[:, 0],
    "broadcast": lambda w: jnp.broadcast_to(w[:, None], (12, 1, 10))[:, 0],
    "slice": lambda w: w[1:11:2],
    "dynamic slice": lambda w: lax.dynamic_slice(w, (jnp.int32(2), jnp.int32(0)), (8, 10)),
    "reverse": lambda w: w[::-1],
    "pad": lambda w: jnp.pad(w, ((1, 2), (0, 0))),
    "pad within and cut": lambda w: lax.pad(w, jnp.zeros((), w.dtype), ((-1, 1, 2), (0, -3, 0))),
    "convert": lambda w: w.astype("float32").astype(w.dtype),
    "negate and scale": lambda w: -2 * w / 3,
    "concatenate": lambda w: jnp.concatenate([w, jnp.ones((2, 10), w.dtype), 3 * w]),
    "stack": lambda w: jnp.stack([w, jnp.ones_like(w), 3 * w], 1)[:, 0],
    "sum": lambda w: 2 * w + w[:, ::-1] - w[::-1],
    "copy": lambda w: jnp.copy(w),
    "jit": lambda w: jax.jit(lambda w: w.T)(w),
    "checkpoint": lambda w: jax.checkpoint(lambda w: w.T)(w),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_keep_the_factors(name, x64):
    w = normal(0, (12, 10), "float64")
    arrange = LAYOUTS[name]
    x = normal(1, (3, arrange(w).shape[0]), "float64")

    def loss(params):
        return jnp.mean(jnp.sin(x @ arrange(params["w"])))

    found, expected, events, factored = push_both_ways(loss, {"w": w}, num_tangents=2)
    assert_same(found, expected, 1e-6 if name == "convert" else 1e-11)
    assert factored == [True] and ("dot_general", True) in events
    assert not any(kept is False for _, kept in events), events


ELSEWHERE = {
    "power": (lambda w, x: jnp.mean((x @ w) ** 2) + 0.1 * jnp.sum(w**2), True),
    "by a matrix": (lambda w, x: jnp.mean(x @ (w * jnp.cos(w))), False),
    "transcendental": (lambda w, x: jnp.mean(jnp.sin(w) @ x.T[:10]), False),
    "tied, gathered": (lambda w, x: jnp.mean(jnp.tanh(x @ w)[0] @ w[jnp.array([1, 5])].T), True),
    "softmax of weights": (lambda w, x: jnp.mean(x @ jax.nn.softmax(w)), False),
    "low-rank adaptation": (lambda w, x: jnp.mean(jnp.sin(x @ (w @ w.T) @ w)), True),
    "integers": (lambda w, x: jnp.mean((x @ w) * jnp.argmax(x @ w, 1)[:, None]), True),
    "complex": (lambda w, x: jnp.mean(jnp.abs(jnp.fft.fft(x @ w))), True),
    "stop gradient": (lambda w, x: jnp.mean((x @ w) * lax.stop_gradient(x @ w)), True),
    "no parameter": (lambda w, x: jnp.mean(x), False),
    "sort": (lambda w, x: jnp.sort(x @ w)[:, 0].sum(), True),
    "solve": (lambda w, x: jnp.sum(jnp.linalg.solve(w.T @ w + jnp.eye(10), x[0, :10])), True),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_everything_else_is_right_too(name, x64):
    loss, is_factored = ELSEWHERE[name]
    x = normal(1, (3, 12), "float64")
    for num_tangents in (1, 2):
        found, expected, _, factored = push_both_ways(
            lambda p: loss(p, x), normal(0, (12, 10), "float64"), num_tangents=num_tangents
        )
        assert_same(found, expected, 1e-10)
        assert factored == [is_factored]


def scan_constant(w, x):
    return jnp.mean(lax.scan(lambda c, s: (jnp.tanh(c @ w + s), c), x, jnp.arange(3.0))[1])


def scan_stacked(w, x):
    stack = jnp.stack([w, 2 * w, -w])
    return jnp.mean(lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, stack, reverse=True)[0])


def scan_carried(w, x):
    carry, ys = lax.scan(lambda c, _: (0.5 * c, x @ c), w, None, length=3)
    return jnp.mean(ys**2) + jnp.mean(carry)


def scan_late(w, x):
    """What is carried gets a tangent in the second turn only."""
    (a, _), _ = lax.scan(lambda c, _: ((c[1] + 0 * c[0], x @ w), None), (x * 0, x), None, length=3)
    return jnp.mean(a**2)


def loop(w, x):
    def turn(state):
        i, x = state
        return i + 1, jnp.tanh(x @ w)

    return jnp.mean(lax.while_loop(lambda s: s[0] < 3, turn, (0, x))[1])


def fori_indexed(w, x):
    stack = jnp.stack([w, 2 * w])
    return jnp.mean(lax.fori_loop(0, 2, lambda i, x: jnp.tanh(x @ stack[i]), x))


def cond(w, x):
    return jnp.mean(lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: -x, w) ** 2)


def switch(w, x):
    branches = [lambda w: x @ w, lambda w: jnp.sin(w), lambda w: jnp.zeros_like(w)]
    return sum(jnp.sum(lax.switch(i, branches, w) ** 2) for i in jnp.arange(3))


def nested(w, x):
    def outer(c, _):
        def inner(d, s):
            return lax.cond(s > 1, lambda d: jnp.tanh(d @ w), lambda d: d, d), jnp.sum(d)

        c, sums = lax.scan(inner, c, jnp.arange(3.0))
        return c, sums

    carry, sums = lax.scan(outer, x, None, length=2)
    return jnp.mean(carry) + jnp.mean(sums**2)


@pytest.mark.parametrize(
    "loss",
    [
        scan_constant,
        scan_stacked,
        scan_carried,
        scan_late,
        loop,
        fori_indexed,
        cond,
        switch,
        nested,
    ],
)
@pytest.mark.parametrize("num_tangents", [1, 2])
def test_control_flow(loss, num_tangents, x64):
    w, x = normal(0, (8, 8), "float64"), normal(1, (8, 8), "float64")
    found, expected, events, factored = push_both_ways(
        functools.partial(loss, x=x), w, num_tangents=num_tangents
    )
    assert_same(found, expected, 1e-11)
    assert factored == [loss is not scan_carried]
    if loss in (scan_constant, scan_stacked, loop, cond, nested):  # factors go inside
        assert ("dot_general", True) in events and not any(not kept for _, kept in events)


@jax.custom_vjp
def clipped(x):
    return jnp.sin(x)


clipped.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jnp.clip(g, -1, 1),))


def test_custom_vjp_is_entered(x64):
    """What it computes is differentiated; its reverse rule plays no part."""
    w, x = normal(0, (8, 8), "float64"), normal(1, (4, 8), "float64")

    def loss(w, function):
        return 10 * jnp.sum(lax.scan(lambda c, _: (function(c @ w), None), x, None, length=2)[0])

    estimate = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank())
    key = jax.random.key(0)
    for call in (estimate, jax.jit(estimate, static_argnums=2)):
        found, expected = call(key, w, clipped), call(key, w, jnp.sin)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found, expected)


def test_custom_jvp_rules_are_used():
    @jax.custom_jvp
    def double(x):
        return 2 * x

    double.defjvp(lambda primals, tangents: (2 * primals[0], 3 * tangents[0]))
    found, expected, *_ = push_both_ways(lambda w: jnp.sum(double(w @ w)), normal(0, (4, 4)))
    assert_same(found, expected, 1e-6)


@pytest.mark.parametrize("num_tangents", [1, 5])
def test_a_loss_that_asks_for_a_parameters_value(num_tangents):
    """It cannot be traced; outside of jit it works as it does with `jax.jvp`."""

    def loss(w):
        return jnp.sum(w @ w) if w[0, 0] > 0 else jnp.sum(w)

    w = jnp.eye(4)
    estimate = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.LowRank(), num_tangents=num_tangents
    )
    assert estimate(jax.random.key(0), w)[0] == 4 and estimate(jax.random.key(0), -w)[0] == -4


def vmapped_loop(w, x):
    """Each row ends at its own turn: the loop's condition is an array."""

    def each(row):
        return lax.while_loop(lambda s: jnp.sum(s) < 1, lambda s: s + jnp.abs(s @ w) + 0.1, row)

    return jnp.mean(jax.vmap(each)(x) ** 2)


def by_platform(w, x):
    return jnp.mean(lax.platform_dependent(x @ w, cpu=jnp.sin, default=jnp.cos))


def broadcast_weight(w, x):
    return jnp.mean(jnp.sin(jnp.einsum("bi,gij->gbj", x, jnp.broadcast_to(w, (3, 8, 8)))))


def nothing(w, x):
    return jnp.sum(jnp.sin(x[:0] @ w)) + jnp.sum(x @ w[:, :0]) + jnp.sum(x @ w)


def references(w, x):
    reference = jax.new_ref(x @ w)
    reference[...] = reference[...] * 2
    return jnp.mean(reference[...] ** 2)


def split(w, x):
    first, second = jnp.split(w, 2, axis=1)
    return jnp.mean(jnp.tanh(x @ first) * (x @ second))


@pytest.mark.parametrize(
    "loss", [vmapped_loop, by_platform, broadcast_weight, nothing, references, split]
)
def test_what_has_gone_wrong_once(loss, x64):
    w, x = normal(0, (8, 8), "float64"), normal(1, (8, 8), "float64") / 10
    for num_tangents in (1, 2):
        found, expected, *_ = push_both_ways(
            functools.partial(loss, x=x), w, num_tangents=num_tangents
        )
        assert_same(found, expected, 1e-11)


def test_a_stack_has_the_rank_of_its_parts():
    """And so each slice of it in a scan; the parts may have different ranks, or no tangent."""
    v = Factored(normal(0, (2, 1, 3, 1)), normal(1, (2, 1, 1, 4)), (3, 4))
    u = Factored(normal(2, (2, 3, 3, 1)), normal(3, (2, 3, 1, 4)), (3, 4))
    for axis in range(3):
        shape = (*(3, 4)[:axis], 3, *(3, 4)[axis:])
        found = stack([v, None, u], axis, shape)
        assert found.rank == 3 and found.shape == shape
        expected = jnp.stack([dense(v), jnp.zeros((2, 3, 4)), dense(u)], 1 + axis)
        np.testing.assert_allclose(dense(found), expected, atol=1e-6)


def test_a_sum_with_a_transpose_stays_factored():
    v = Factored(normal(0, (1, 1, 9, 1)), normal(1, (1, 1, 1, 9)), (9, 9))
    transposed = v.map(lambda f: f.T)
    total = add(v, transposed)
    assert isinstance(total, Factored) and total.rank == 2
    np.testing.assert_allclose(dense(total), dense(v) + dense(transposed), atol=1e-6)


# Random functions of everything above.

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
