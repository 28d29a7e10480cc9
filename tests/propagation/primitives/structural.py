"""Functions that rearrange, pick, join, sum, accumulate or sort."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.lax import windowed_reductions
from jax.extend.core import primitives

from tests.propagation.primitives.case import Case, bind, known

BINARY = ((4, 6), (4, 6))
IMAGES = ((2, 4, 4, 3),)
ROWS = [3, 0, -1, 9]  # one counts from the end, one is out of bounds


def gathered(mode):
    def apply(x):
        return x.at[jnp.array(ROWS)].get(mode=mode, fill_value=0)

    return lambda: Case(apply)


def scattered(method, mode="drop"):
    def apply(x, update):
        return getattr(x.at[jnp.array([3, 0, 9])], method)(update, mode=mode)

    return lambda: Case(apply, ((4, 6), (3, 6)))


def windowed(reduce, start, dims=(1, 2, 2, 1)):
    return lambda: Case(
        lambda x: lax.reduce_window(x, np.array(start, x.dtype), reduce, dims, dims, "VALID"),
        IMAGES,
    )


def of_axis(name, fun):
    return {
        f"{name}, axis 0": lambda: Case(lambda x: fun(x, 0)),
        f"{name}, axis 1": lambda: Case(lambda x: fun(x, 1)),
    }


def picked(x, start):
    return lax.dynamic_slice(x, (jnp.int32(start), jnp.int32(1)), (2, 3))


def put(start):
    def apply(x, update):
        return primitives.dynamic_update_slice_p.bind(x, update, jnp.int32(start), jnp.int32(1))

    return lambda: Case(apply, ((4, 6), (2, 3)))


def window_of(x):
    return {
        "window_dimensions": (1, 2, 2, 1), "window_strides": (1, 2, 2, 1),
        "padding": ((0, 0),) * 4,
    }  # fmt: skip


LAYOUTS = {
    "transpose": lambda: Case(lambda x: lax.transpose(x, (1, 0))),
    "reshape, merged": lambda: Case(lambda x: x.reshape(-1)),
    "reshape, split": lambda: Case(lambda x: x.reshape(2, 2, 6)),
    "squeeze": lambda: Case(lambda x: lax.squeeze(x, (1,)), ((4, 1, 6),)),
    "expand_dims": lambda: Case(lambda x: lax.expand_dims(x, (1,))),
    "broadcast_in_dim": lambda: Case(lambda x: lax.broadcast_in_dim(x, (4, 3, 6), (0, 2))),
    "broadcast along an axis of size 1": lambda: Case(
        lambda x: lax.broadcast_in_dim(x, (4, 6), (0, 1)), ((1, 6),)
    ),
    "rev, axis 0": lambda: Case(lambda x: lax.rev(x, (0,))),
    "rev, axis 1": lambda: Case(lambda x: lax.rev(x, (1,))),
    "slice": lambda: Case(lambda x: lax.slice(x, (1, 0), (3, 5), (1, 2))),
    "slice, axis 0": lambda: Case(lambda x: x[1:3]),
    "dynamic_slice": lambda: Case(lambda x: picked(x, 1)),
    "dynamic_slice, before the start": lambda: Case(
        lambda x: lax.dynamic_slice(
            x, (jnp.int32(-1), jnp.int32(9)), (2, 3), allow_negative_indices=False
        )
    ),
    "dynamic_index_in_dim": lambda: Case(
        lambda x: lax.dynamic_index_in_dim(x, jnp.int32(-6), 0, keepdims=False)
    ),
    "dynamic_update_slice": put(1),
    "dynamic_update_slice, clamped": put(-7),
    "pad": lambda: Case(lambda x: lax.pad(x, jnp.zeros((), x.dtype), ((1, 2, 0), (0, 0, 0)))),
    "pad, a tangent": lambda: Case(
        lambda x, y: lax.pad(x, y, ((1, 0, 1), (-1, 2, 0))), ((4, 6), ())
    ),
    "concatenate, axis 0": lambda: Case(lambda x, y: lax.concatenate([x, y, 2 * x], 0), BINARY),
    "concatenate, axis 1": lambda: Case(lambda x, y: lax.concatenate([x, y], 1), BINARY),
    "split": lambda: Case(lambda x: lax.split(x, (1, 5), 1)),
    "stack": lambda: (bind("stack"), Case(lambda x, y: jnp.stack([x, y], 1), BINARY))[1],
    "unstack": lambda: (bind("unstack"), Case(lambda x: jnp.unstack(x, axis=1)))[1],
    "tile": lambda: Case(lambda x: lax.tile(x, (1, 2))),
    "select by a row": lambda: Case(
        lambda x, y: lax.select_n(jnp.arange(4)[:, None] % 2 == jnp.arange(6) % 2, x, y), BINARY
    ),
}  # fmt: skip

INDEXED = {
    **{f"gather, {mode}": gathered(mode) for mode in ("fill", "clip", "promise_in_bounds")},
    "gather of columns": lambda: Case(
        lambda x: jnp.take(x, jnp.array([[5, 0], [2, 7]]), 1, mode="clip")
    ),
    "gather of entries": lambda: Case(lambda x: x[jnp.array([0, 3]), jnp.array([5, -1])]),
    "gather along an axis": lambda: Case(
        lambda x: jnp.take_along_axis(x, jnp.arange(8).reshape(4, 2) % 6, 1)
    ),
    "scatter": scattered("set"),
    "scatter, promised": lambda: Case(
        lambda x, y: x.at[jnp.array([3, 0])].set(y, mode="promise_in_bounds", unique_indices=True),
        ((4, 6), (2, 6)),
    ),
    "scatter-add": scattered("add"),
    "scatter-add, clipped": scattered("add", "clip"),
    "scatter-sub": scattered("subtract"),
    "scatter-mul": lambda: Case(
        lambda x, y: x.at[jnp.array([3, 0])].multiply(y, unique_indices=True),
        ((4, 6), (2, 6)),
    ),
    "scatter-max": scattered("max"),
    "scatter-min": scattered("min"),
}

ORDERED = {
    **of_axis("sort", lambda x, axis: lax.sort(x, axis)),
    "sort, two operands": lambda: Case(lambda x, y: lax.sort((x, y), 1, num_keys=1), BINARY),
    "sort, with positions": lambda: Case(
        lambda x: lax.sort((x, lax.broadcasted_iota("int32", (4, 6), 1)), 0)
    ),
    "top_k": lambda: Case(lambda x: lax.top_k(x, 2)),
    "approx_top_k": lambda: Case(lambda x: lax.approx_max_k(x, 2)),
    **of_axis("argmax", lambda x, axis: x * lax.argmax(x, axis, "int32").astype(x.dtype).sum()),
    **of_axis("argmin", lambda x, axis: x * lax.argmin(x, axis, "int32").astype(x.dtype).sum()),
}

SUMS = {
    **of_axis("reduce_sum", lambda x, axis: jnp.sum(x, axis)),
    "reduce_sum, middle axis": lambda: Case(lambda x: jnp.sum(x, 1), ((4, 3, 6),)),
    "reduce_sum of all": lambda: Case(jnp.sum),
    **of_axis("reduce_max", lambda x, axis: jnp.max(x, axis)),
    **of_axis("reduce_min", lambda x, axis: jnp.min(x, axis)),
    **of_axis("reduce_prod", lambda x, axis: jnp.prod(x, axis)),
    **of_axis("reduce", lambda x, axis: lax.reduce(x, jnp.asarray(1, x.dtype), _product, (axis,))),
    **of_axis("logsumexp", jax.nn.logsumexp),
    **of_axis("softmax", jax.nn.softmax),
    **of_axis("standardize", jax.nn.standardize),
    **of_axis("cumsum", lambda x, axis: lax.cumsum(x, axis)),
    **of_axis("cumsum, reversed", lambda x, axis: lax.cumsum(x, axis, reverse=True)),
    **of_axis("cumprod", lambda x, axis: lax.cumprod(x, axis)),
    **of_axis("cummax", lambda x, axis: lax.cummax(x, axis)),
    **of_axis("cummin", lambda x, axis: lax.cummin(x, axis)),
    **of_axis("cumlogsumexp", lambda x, axis: lax.cumlogsumexp(x, axis)),
}

WINDOWS = {
    "reduce_window_sum": windowed(lax.add, 0),
    "reduce_window_max": windowed(lax.max, -jnp.inf),
    "reduce_window_min": windowed(lax.min, jnp.inf),
    "reduce_window_max, padded": lambda: Case(
        lambda x: lax.reduce_window(
            x, np.array(-np.inf, x.dtype), lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"
        ),
        IMAGES,
    ),
    "reduce_window_sum of channels": windowed(lax.add, 0, (1, 1, 1, 3)),
    "reduce_window": windowed(lambda x, y: x * y, 1),
    "select_and_scatter_add": lambda: Case(
        lambda x, y: windowed_reductions._select_and_scatter_add(
            y, lax.stop_gradient(x), primitives.ge_p, **window_of(x)
        ),
        (*IMAGES, (2, 2, 2, 3)),
        half=False,
    ),
    "select_and_gather_add": lambda: Case(
        lambda x, y: windowed_reductions._select_and_gather_add(
            y, lax.stop_gradient(x), primitives.ge_p, base_dilation=(1,) * 4,
            window_dilation=(1,) * 4, **window_of(x)
        ),
        (*IMAGES, *IMAGES),
        half=False,
    ),
}  # fmt: skip


def _product(x, y):
    return x * y


CASES = known({**LAYOUTS, **INDEXED, **ORDERED, **SUMS, **WINDOWS})
