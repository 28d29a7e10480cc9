"""Control flow, calls, functions with rules of their own, callbacks, kernels and collectives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import linear_call
from jax.experimental import pallas
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.propagation.primitives.case import Case, bind, known

WITH_ROW = ((4, 6), (6,))


def looped(x):
    return lax.while_loop(
        lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1]) + x), (0, jnp.tanh(x))
    )[1]


def scanned(x, row):
    def body(carry, each):
        carry = jnp.sin(carry) * each + row
        return carry, carry * row

    return lax.scan(body, row, x, reverse=True)


def branched(x):
    return lax.cond(x[0, 0] > 9, lambda x: 2 * x, lambda x: jnp.sin(x).T.reshape(x.shape), x)


@jax.custom_jvp
def with_jvp(x, row):
    return jnp.sin(x) * row


@with_jvp.defjvp
def _with_jvp(primals, tangents):
    (x, row), (dx, drow) = primals, tangents
    return with_jvp(x, row), 3 * dx * row + jnp.sin(x) * drow


@jax.custom_jvp
def activation(x):
    return jnp.where(x > 0, x, jnp.expm1(x))


activation.defjvp(
    lambda primals, tangents: (
        activation(*primals), jnp.where(primals[0] > 0, 1, 0.5) * tangents[0]
    )
)  # fmt: skip


@custom_vmap
def with_vmap(x):
    return jnp.sin(x)


@with_vmap.def_vmap
def _with_vmap(axis_size, in_batched, x):
    return jnp.sin(x), in_batched[0]


def linear(x, row):
    return linear_call(lambda r, v: v * r, lambda r, v: v * r, lax.stop_gradient(row), x)


@functools.partial(jax.custom_jvp, nondiff_argnums=())
def called_back(x):
    return jax.pure_callback(
        lambda v: np.sin(v), jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims"
    )


called_back.defjvp(
    lambda primals, tangents: (called_back(*primals), jnp.cos(primals[0]) * tangents[0])
)


def held_callback(x):
    """Return x times the result of a callback whose operand has no tangent."""
    return x * called_back(lax.stop_gradient(x))


def kernel(x):
    def body(x_ref, out_ref):
        out_ref[...] = jnp.sin(x_ref[...])

    return pallas.pallas_call(
        body, jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True, name="kernel"
    )(x)


def on_devices(fun, check=False):
    """Return the case of a function under `shard_map`, on a mesh of one device."""

    def make():
        mesh = Mesh(np.array(jax.devices()[:1]), ("i",))
        rows = PartitionSpec("i")
        mapped = jax.shard_map(fun, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=check)
        return Case(mapped)

    return make


def evaluated(x):
    closed = jax.make_jaxpr(lambda x: jnp.sin(x).T)(x)
    name = "call_jaxpr" if jax.__version_info__ >= (0, 11) else "jaxpr"
    return bind("eval_jaxpr")(x, **{name: closed})


def observed(x):
    jax.debug.callback(lambda v: None, x)
    return jnp.sin(x)


def printed(x):
    lax.cond(x[0, 0] > 9, lambda x: jax.debug.print("{}", x), lambda x: None, x)
    return jnp.sin(x)


def constrained(x):
    mesh = Mesh(np.array(jax.devices()[:1]), ("i",))
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("i")))


CONTROL = {
    "while": lambda: Case(looped),
    "scan": lambda: Case(scanned, WITH_ROW),
    "cond": lambda: Case(branched),
    "switch of a platform": lambda: Case(
        lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)
    ),
    "associative scan": lambda: Case(lambda x: lax.associative_scan(jnp.multiply, x)),
    "map": lambda: Case(lambda x, row: lax.map(lambda v: jnp.tanh(v * row), x), WITH_ROW),
}

CALLS = {
    "jit": lambda: Case(jax.jit(lambda x: jnp.sin(x).T)),
    "remat2": lambda: Case(jax.checkpoint(lambda x: jnp.sin(x).T)),
    "closed call": lambda: Case(jax.vmap(jax.jit(jnp.sin))),
    "custom_jvp_call": lambda: Case(with_jvp, WITH_ROW),
    "custom_jvp_call of entries": lambda: Case(activation),
    "custom_vmap_call": lambda: Case(with_vmap),
    "linear_call": lambda: Case(linear, WITH_ROW, mapped=False),
    "eval_jaxpr": lambda: (bind("eval_jaxpr"), Case(evaluated))[1],
    "pure_callback": lambda: Case(called_back),
    "pure_callback of what is held": lambda: Case(held_callback),
    "debug_callback": lambda: Case(observed),
    "debug_print": lambda: Case(printed),
    "pallas_call": lambda: Case(kernel, half=False),
}

COLLECTIVES = {
    "sharding_constraint": lambda: Case(constrained),
    "pvary, psum_invariant": on_devices(
        lambda x: jnp.sin(x) * lax.psum(jnp.cos(x) * jax.lax.axis_index("i"), "i"), check=True
    ),
    "pvary": on_devices(lambda x: lax.pcast(jnp.float32(2), "i", to="varying") * x, check=True),
    "psum": on_devices(lambda x: lax.psum(jnp.sin(x), "i")),
    "all_gather": on_devices(lambda x: lax.all_gather(jnp.sin(x), "i", tiled=True)),
    "all_to_all": on_devices(lambda x: lax.all_to_all(jnp.sin(x), "i", 0, 0, tiled=True)),
    "ppermute": on_devices(lambda x: lax.ppermute(jnp.sin(x), "i", [(0, 0)])),
    "reduce_scatter": on_devices(lambda x: lax.psum_scatter(jnp.sin(x), "i", tiled=True)),
}


def random(x):
    """Return x times random numbers by every primitive of keys."""
    key = jax.random.fold_in(jax.random.split(jax.random.key(0))[1], 3)
    again = jax.random.wrap_key_data(jax.random.key_data(key))
    return x * jax.random.uniform(again, x.shape, x.dtype)


RANDOM = {
    "random keys": lambda: Case(random),
    "random_gamma of a concentration": lambda: Case(
        lambda x: jax.random.gamma(jax.random.key(0), x), low=0.5, high=3.0, half=False
    ),
}

CASES = known({**CONTROL, **CALLS, **COLLECTIVES, **RANDOM})
