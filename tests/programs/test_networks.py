"""Transformers, attention and recurrent layers of Flax and Equinox."""

import jax
import jax.numpy as jnp
import pytest

from .comparison import check_estimates, check_spaces, in_float64, lost_by_leaf

nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
eqx = pytest.importorskip("equinox")

N, LENGTH, WIDTH = 4, 3, 4


def data():
    x = jax.random.normal(jax.random.key(1), (N, LENGTH, WIDTH), "float64")
    return x, jnp.sin(x.sum((1, 2)))


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(x))))
        return nn.Dense(1)(x.mean(1))[:, 0]


def linen_transformer():
    model = LinenTransformer()
    params = in_float64(model.init(jax.random.key(0), data()[0]))
    return params, lambda params, x, y: jnp.mean((model.apply(params, x) - y) ** 2)


class NnxTransformer(nnx.Module):
    def __init__(self, rngs):
        options = {"num_heads": 2, "in_features": WIDTH, "decode": False, "rngs": rngs}
        self.attention = nnx.MultiHeadAttention(**options)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.into, self.back = nnx.Linear(WIDTH, 6, rngs=rngs), nnx.Linear(6, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        x = x + self.back(nnx.gelu(self.into(self.norms[1](x))))
        return self.head(x.mean(1))[:, 0]


def nnx_transformer():
    graph, params, rest = nnx.split(NnxTransformer(nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, x, y):
        return jnp.mean((nnx.merge(graph, params, rest)(x) - y) ** 2)

    return in_float64(params), loss


class EquinoxAttention(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, WIDTH, key=keys[0])
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.head = eqx.nn.Linear(WIDTH, 1, key=keys[1])

    def __call__(self, x):
        h = jax.vmap(self.norm)(x)
        return self.head(self.attention(h, h, h).mean(0))[0]


def equinox_attention():
    model = in_float64(EquinoxAttention(jax.random.key(0)))
    return model, lambda model, x, y: jnp.mean((jax.vmap(model)(x) - y) ** 2)


class EquinoxGRU(eqx.Module):
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(WIDTH, 3, key=keys[0])
        self.head = eqx.nn.Linear(3, 1, key=keys[1])

    def __call__(self, x):
        last, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(3), x)
        return self.head(last)[0]


def equinox_gru():
    model = in_float64(EquinoxGRU(jax.random.key(0)))
    return model, lambda model, x, y: jnp.mean((jax.vmap(model)(x) - y) ** 2)


def dot_product_attention():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        name: 0.5 * jax.random.normal(key, (WIDTH, WIDTH), "float64")
        for name, key in zip("qkvo", keys, strict=True)
    }

    def loss(params, x, y):
        q, k, v = (
            (x @ params[name]).reshape(*x.shape[:-1], 2, WIDTH // 2) for name in ("q", "k", "v")
        )
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
        return jnp.mean(((mixed @ params["o"]).sum((1, 2)) - y) ** 2)

    return params, loss


# (rounding, the number of matrices with factors); a part that always computes in float32 has
# coarser rounding.
NETWORKS = {
    linen_transformer: (1e-9, 6),
    nnx_transformer: (1e-6, 6),
    equinox_attention: (1e-9, 4),
    equinox_gru: (1e-9, 2),
    dot_product_attention: (2e-6, 4),
}


@pytest.mark.parametrize("make", NETWORKS)
def test_the_estimate_is_that_of_jvp(make):
    params, loss = make()
    check_estimates(loss, params, *data(), rounding=NETWORKS[make][0])


@pytest.mark.parametrize("make", NETWORKS)
def test_the_mean_is_the_gradient_in_each_space(make):
    params, loss = make()
    check_spaces(loss, params, *data(), rounding=NETWORKS[make][0])


@pytest.mark.parametrize("make", NETWORKS)
def test_factors_of_all_matrices_are_kept(make):
    params, loss = make()
    lost = lost_by_leaf(loss, params, *data())
    assert sum(not primitives for primitives in lost.values()) == NETWORKS[make][1]
    assert all(primitives <= {"add"} for primitives in lost.values())  # biases of each head
