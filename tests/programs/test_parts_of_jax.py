"""Losses with Pallas kernels, sparse arrays, associative scans, custom_vmap and ragged products."""

import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental import sparse

import fwdgrad

from .comparison import ACTIVITIES, SPACES, WEIGHTS, check_estimates, check_spaces, lost_by_leaf

N = 4


def data(*shape):
    x = jax.random.normal(jax.random.key(1), (N, *shape), "float64")
    return x, jnp.sin(x.reshape(N, -1).sum(1))


def matrices(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        f"w{i}": 0.5 * jax.random.normal(key, shape, "float64")
        for i, (key, shape) in enumerate(zip(keys, shapes, strict=True))
    }


def kernel(x):
    """Return SiLU by a Pallas kernel on a grid."""

    def body(x, out):
        out[...] = x[...] / (1 + jnp.exp(-x[...]))

    block = pl.BlockSpec((1, x.shape[1]), lambda i: (i, 0))
    return pl.pallas_call(
        body,
        grid=(x.shape[0],),
        in_specs=[block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        interpret=True,
    )(x)


def layers_with(activation):
    def loss(params, x, y):
        return jnp.mean(((activation(x @ params["w0"]) @ params["w1"]).sum(1) - y) ** 2)

    return loss, matrices((5, 4), (4, 3)), data(5)


def attention(in_kernel):
    """Return the loss of attention by JAX's kernel, a custom_vjp function, or by its reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu import attention

    blocks = attention.BlockSizes(block_q=2, block_k=2)

    def loss(params, x, y):
        # The kernel computes in float32.
        q, k, v = ((x @ params[f"w{i}"])[:, :, None].astype("float32") for i in range(3))
        if in_kernel:
            options = {"block_sizes": blocks, "interpret": True}
            mixed = attention.mha(q, k, v, None, **options)
        else:
            mixed = attention.mha_reference(q, k, v, None)
        return jnp.mean((mixed[:, :, 0] @ params["w3"] - y[:, None, None]) ** 2)

    return loss, matrices((3, 2), (3, 2), (3, 2), (2, 3)), data(4, 3)


def associative_scan():
    def loss(params, x, y):
        decay, drive = jax.nn.sigmoid(x @ params["w0"]), x @ params["w1"]

        def joined(first, second):
            (a, b), (c, d) = first, second
            return a * c, b * c + d

        _, states = jax.lax.associative_scan(joined, (decay, drive), axis=1)
        return jnp.mean(((states @ params["w2"]).sum((1, 2)) - y) ** 2)

    return loss, matrices((3, 4), (3, 4), (4, 3)), data(5, 3)


def ragged():
    def loss(params, x, y):
        sizes = jnp.array([1, 3], jnp.int32)
        hidden = jnp.tanh(jax.lax.ragged_dot(x, params["w0"], sizes))
        return jnp.mean((hidden @ params["w1"] - y[:, None]) ** 2)

    return loss, matrices((2, 3, 4), (4, 3)), data(3)


@custom_vmap
def doubled_softplus(x):
    return 2 * jnp.logaddexp(x, 0)


@doubled_softplus.def_vmap
def _(size, mapped, x):
    return 2 * jnp.logaddexp(x, 0), True


def sparse_product():
    graph = sparse.BCOO.fromdense(jnp.array([[0, 1.5, 0], [2, 0, 0], [0, 0, -1], [1, 1, 0]]))

    def loss(params, x, y):
        hidden = jnp.tanh((graph @ (x @ params["w0"]).T).T)
        return jnp.mean((hidden @ params["w1"] - y[:, None]) ** 2)

    return loss, matrices((5, 3), (4, 3)), data(5)


def sparse_weights():
    """Return a loss whose parameters are the values of a sparse matrix."""
    pattern = sparse.BCOO.fromdense(jnp.array([[0, 1.5, 0], [2, 0, 0], [0, 0, -1], [1, 1, 0]]))
    params = {"values": pattern.data, **matrices((5, 3))}

    def loss(params, x, y):
        graph = sparse.BCOO((params["values"], pattern.indices), shape=pattern.shape)
        return jnp.mean((jnp.tanh(graph @ (x @ params["w0"]).T).sum(0) - y) ** 2)

    return loss, params, data(5)


PROGRAMS = {  # (loss, for each parameter the primitives that lose its factors)
    "associative scan": (associative_scan, {"w0": set(), "w1": set(), "w2": set()}),
    "custom_vmap": (lambda: layers_with(doubled_softplus), {"w0": set(), "w1": set()}),
    "sparse product": (sparse_product, {"w0": set(), "w1": set()}),
    "sparse weights": (sparse_weights, {"w0": set()}),
    "ragged product": (ragged, {"w0": {"ragged_dot_general"}, "w1": set()}),
    "kernel": (lambda: layers_with(kernel), {"w0": set(), "w1": set()}),
    "kernel of attention": (lambda: attention(True), {f"w{i}": set() for i in range(4)}),
}
PLAIN = {  # equal losses, of those that JAX cannot differentiate
    "custom_vmap": lambda: layers_with(lambda x: 2 * jax.nn.softplus(x)),
    "kernel": lambda: layers_with(jax.nn.silu),
    "kernel of attention": lambda: attention(False),
}
UNMAPPED = ("ragged product",)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_estimate_is_that_of_jvp(name):
    loss, params, args = PROGRAMS[name][0]()
    plain = PLAIN[name]()[0] if name in PLAIN else None
    check_estimates(loss, params, *args, plain=plain, rounding=_rounding(name))


def _rounding(name):
    return 1e-5 if "attention" in name else 1e-9  # attention computes in float32


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_mean_is_the_gradient_in_each_space(name):
    loss, params, args = PROGRAMS[name][0]()
    plain = PLAIN[name]()[0] if name in PLAIN else None
    spaces = WEIGHTS if name in UNMAPPED else SPACES
    check_spaces(loss, params, *args, plain=plain, spaces=spaces, rounding=_rounding(name))


@pytest.mark.parametrize("space", ACTIVITIES, ids=repr)
@pytest.mark.parametrize("name", UNMAPPED)
def test_activities_with_a_product_that_cannot_be_mapped_are_an_error(name, space):
    loss, params, args = PROGRAMS[name][0]()
    with pytest.raises(Exception) as caught:
        fwdgrad.forward_value_and_grad(loss, space=space)(jax.random.key(0), params, *args)
    notes = "\n".join(caught.value.__notes__)
    assert "a ragged product" in notes and "use space=Weights()" in notes


@pytest.mark.parametrize("name", PROGRAMS)
def test_explain_lists_the_primitives_that_lose_factors(name):
    make, expected = PROGRAMS[name]
    loss, params, args = make()
    lost = lost_by_leaf(loss, params, *args)
    assert lost == {f"params['{leaf}']": lines for leaf, lines in expected.items()}
