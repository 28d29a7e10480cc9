"""Products and convolutions with low-rank tangents: dimension numbers, options and layouts."""

import itertools

import jax.numpy as jnp
import pytest
from jax import lax

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
