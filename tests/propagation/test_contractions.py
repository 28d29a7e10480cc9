"""Products and convolutions of tangents: factors, dimension numbers, options and layouts."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import fwdgrad
from fwdgrad.perturbation.loss import Loss
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


def _pushed_forward(loss, params, x, tangents, num_tangents):
    """Return the equations in which noise of each layer is pushed forward, without the way back."""
    space = fwdgrad.Activities(layerwise=True, exact_last=True)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=tangents, num_tangents=num_tangents, space=space
    )
    drawn = value_and_grad.draw(jax.random.key(0), params, x)

    def push(params, drawn, x):
        return space.at(Loss(loss, params, (x,), {}, False)).push(drawn, False).derivatives

    return [*_flattened(jax.make_jaxpr(push)(params, drawn.tangents, x).jaxpr)]


@pytest.mark.parametrize("tangents", [fwdgrad.BlockSparse(), fwdgrad.Rademacher()], ids=repr)
def test_no_product_of_a_vector_transposes_values_or_tangents(tangents):
    """The units stay the last axis of N examples, and of K tangents of each."""
    n, sizes = 3, (7, 10, 15, 11)
    params = [normal(i, shape[::-1]) for i, shape in enumerate(itertools.pairwise(sizes))]

    def loss(params, x):
        def network(x):
            for w in params[:-1]:
                x = jax.nn.relu(w @ x)
            return params[-1] @ x

        return jnp.mean(jax.vmap(network)(x) ** 2)

    moving = []
    for equation in _pushed_forward(loss, params, normal(9, (n, sizes[0])), tangents, 5):
        shape = [size for size in equation.outvars[0].aval.shape if size != 1]
        # No tangent goes through the first product.
        if equation.primitive.name in ("dot_general", "transpose") and {*shape} & {*sizes[2:]}:
            moving.append(shape)
    assert {len(shape) for shape in moving if n in shape} >= {2, 3}
    assert all(shape[-1] in sizes[2:] for shape in moving), moving


def test_a_product_with_swapped_operands_swaps_their_precisions():
    params, x = (normal(0, (5, 3)), normal(1, (4, 5)), normal(2, (1, 4))), normal(3, (2, 3))

    def loss(params, x):
        def network(x):
            first, second, last = params
            h = jnp.tanh(jax.lax.dot(second, jnp.tanh(first @ x), precision=("highest", "default")))
            return last @ h

        return jnp.mean(jax.vmap(network)(x) ** 2)

    products = [
        ([v.aval.shape == params[1].shape for v in e.invars], e.params["precision"])
        for e in _pushed_forward(loss, params, x, fwdgrad.Normal(), 2)
        if e.primitive.name == "dot_general" and e.params["precision"]
    ]
    swapped = [False, True], (jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST)
    products = [product for product in products if any(product[0])]
    assert products and all(product == swapped for product in products)
