"""Products and convolutions of tangents: factors, dimension numbers, options and layouts."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import fwdgrad
from fwdgrad.util.jax_internals import inner_jaxprs
from tests.oracle import assert_same, normal, push_both_ways
from tests.sweeps import thorough_but

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


PLAIN, CHANNELS_LAST, MIXED = "NCHW OIHW NCHW", "NHWC HWIO NHWC", "HWNC IHWO CNHW"
LAYOUTS = {PLAIN: [(1, 1), (2, 3)], CHANNELS_LAST: [(2, 3)], MIXED: [(2, 3)]}


@pytest.mark.parametrize(
    ("options", "layout", "rank_and_number"),
    thorough_but(
        [
            (CONVOLUTIONS[0], PLAIN, (1, 1)),
            *((options, layout, (2, 3)) for options, layout in zip(
                CONVOLUTIONS, itertools.cycle([CHANNELS_LAST, MIXED, PLAIN]), strict=False
            )),
        ],
        [
            (options, layout, each)
            for options in CONVOLUTIONS
            for layout, ranks in LAYOUTS.items()
            for each in ranks
        ],
    ),
    ids=str,
)  # fmt: skip
def test_convolutions_keep_factors(options, layout, rank_and_number, x64):
    rank, num_tangents = rank_and_number
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

    found, expected, events, factored = push_both_ways(
        loss, params, rank=rank, num_tangents=num_tangents
    )
    assert_same(found, expected, 1e-11)
    dense = groups == 16 or batch_groups > 1  # depthwise: a factor would save nothing
    assert factored == [not dense, False]
    assert dense or ("conv_general_dilated", True) in events


PRODUCTS = {
    "bi,ij->bj": [(5, 6), (6, 7)],
    "ij,bj->bi": [(7, 6), (5, 6)],
    "i,ij->j": [(6,), (6, 7)],
    "bhd,hde->be": [(5, 3, 6), (3, 6, 7)],
    "bd,dhe->bhe": [(5, 6), (6, 3, 7)],
    "gbi,gij->gbj": [(3, 5, 6), (3, 6, 7)],
    "abij,jk->kiab": [(2, 3, 4, 6), (6, 7)],
}


@pytest.mark.parametrize(
    ("equation", "of", "rank", "num_tangents"),
    thorough_but(
        [("bi,ij->bj", "b", 1, 1), ("bi,ij->bj", "a", 2, 3)]
        + [(equation, "ab", 2, 3) for equation in PRODUCTS],
        [
            (equation, *row)
            for equation in PRODUCTS
            for row in (("b", 1, 1), ("a", 2, 3), ("ab", 2, 3))
        ],
    ),
)
def test_products_keep_factors(equation, of, rank, num_tangents, x64):
    """With the parameter on either side, and with two parameters."""
    a, b = (normal(i, shape, "float64") for i, shape in enumerate(PRODUCTS[equation]))

    def loss(params):
        y = jnp.einsum(equation, params.get("a", a), params.get("b", b))
        return jnp.mean(jnp.sin(y * params["s"]))

    params = {name: x for name, x in (("a", a), ("b", b)) if name in of}
    params["s"] = jnp.ones((), "float64")
    found, expected, events, _ = push_both_ways(loss, params, rank=rank, num_tangents=num_tangents)
    assert_same(found, expected, 1e-11)
    assert not any(kept is False for _, kept in events)


def _flattened(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from _flattened(inner)


@pytest.mark.parametrize("tangents", [fwdgrad.BlockSparse(), fwdgrad.Rademacher()], ids=repr)
def test_no_product_of_a_vector_transposes_the_tangents(tangents, key):
    """The units stay the last axis of K tangents of N examples, through W x and activations."""
    n, k, sizes = 3, 5, (7, 10, 15, 11)
    params = [normal(i, shape[::-1]) for i, shape in enumerate(itertools.pairwise(sizes))]

    def loss(params, x):
        def network(x):
            for w in params[:-1]:
                x = jax.nn.relu(w @ x)
            return params[-1] @ x

        return jnp.mean(jax.vmap(network)(x) ** 2)

    space = fwdgrad.Activities(layerwise=True, exact_last=True)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=tangents, num_tangents=k, space=space
    )
    jaxpr = jax.make_jaxpr(value_and_grad)(key, params, normal(9, (n, sizes[0]))).jaxpr
    units, moved = set(sizes[1:]), 0
    for equation in _flattened(jaxpr):
        if equation.primitive.name not in ("dot_general", "transpose"):
            continue
        shape = [size for size in equation.outvars[0].aval.shape if size != 1]
        if len(shape) == 3 and n in shape and units & set(shape):
            moved += 1
            assert shape[-1] in units, equation
    assert moved >= 4
