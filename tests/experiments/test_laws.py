"""The laws of the estimators' errors, against the exact mean over all possible draws."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import from_config
from experiments.quality.gradient_quality import quality
from experiments.quality.laws import expected_error
from tests.sweeps import thorough_but

LAYERWISE = "estimator.value_and_grad.space.layerwise=true"
EXACT_LAST = "estimator.value_and_grad.space.exact_last=true"
ROOT = 3**0.5
# A squared error is a polynomial of degree four in each number drawn, and these points and weights
# have the moments of signs, and of normal numbers up to the fifth.
SIGNS = {-1.0: 1 / 2, 1.0: 1 / 2}
NORMAL = {-ROOT: 1 / 6, 0.0: 2 / 3, ROOT: 1 / 6}


ALWAYS = [
    ([3], 1, 1, SIGNS, 1, ["tangents=rademacher"]),
    ([3, 3], 2, 1, SIGNS, 1, ["tangents=rademacher", EXACT_LAST, LAYERWISE]),
    ([10], 1, 2, SIGNS, 2**0.5, ["tangents=block_sparse", EXACT_LAST, LAYERWISE]),
    ([4], 1, 2, NORMAL, 1, ["tangents=normal", EXACT_LAST, LAYERWISE]),
]


@pytest.mark.parametrize(
    ("widths", "num_examples", "number", "points", "scale", "overrides"),
    thorough_but(
        ALWAYS,
        [
            *ALWAYS,
            ([3, 3], 1, 2, SIGNS, 1, ["tangents=rademacher", EXACT_LAST]),
            ([6, 6], 1, 2, SIGNS, 2**0.5, ["tangents=block_sparse", EXACT_LAST]),
            ([4], 2, 1, NORMAL, 1, ["tangents=normal", EXACT_LAST]),
        ],
    ),
)
def test_at_activities_it_is_the_mean_over_all_noise(
    small, widths, num_examples, number, points, scale, overrides
):
    config, starts = small(
        "space=activities", f"estimator.value_and_grad.num_tangents={number}", *overrides,
        widths=widths,
    )  # fmt: skip
    params = starts[0]
    problem = from_config.problem(config)
    batch = jax.tree.map(lambda x: x[:num_examples], problem.train)
    value_and_grad = from_config.estimator(config)(problem.loss)
    target = jax.grad(problem.loss)(params, batch)
    drawn = jax.eval_shape(value_and_grad.draw, jax.random.key(0), params, batch)
    leaves, structure = jax.tree.flatten(drawn)
    ends = np.cumsum([0, *(x.size for x in leaves)])

    def square_of_error(numbers):
        parts = [
            numbers[i:j].reshape(x.shape)
            for x, i, j in zip(leaves, ends[:-1], ends[1:], strict=True)
        ]
        grad = value_and_grad.along(jax.tree.unflatten(structure, parts), params, batch)[1]
        errors = jax.tree.map(lambda g, t: jnp.sum((g - t) ** 2), grad, target)
        return jnp.stack(jax.tree.leaves(errors)).sum()

    every = np.array(list(itertools.product(points, repeat=ends[-1])), np.float32)
    weights = np.array([math.prod(w) for w in itertools.product(points.values(), repeat=ends[-1])])
    squares = jax.jit(lambda every: jax.lax.map(square_of_error, every, batch_size=64))(
        scale * every
    )
    norm = sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(target))
    law = expected_error(config, params, batch)
    mean = float(weights @ np.asarray(squares, float))
    assert law > 0.5 and law == pytest.approx(mean / norm, rel=1e-4)


def test_a_layer_may_be_off_as_a_whole_or_missing(small):
    """Units before it are on, and get noise all the same."""
    config, starts = small("space=activities", "tangents=rademacher", widths=(3, 2))
    params = starts[0]
    off = eqx.tree_at(lambda p: p.layers[1].bias, params, jnp.full(2, -100.0))
    batch = jax.tree.map(lambda x: x[:1], from_config.problem(config).train)
    x = jnp.ravel(batch[0][0])
    on = int((params.layers[0](x) > 0).sum())
    gradient = jax.grad(from_config.problem(config).loss)(off, batch)
    last = float(jnp.sum(gradient.layers[2].bias ** 2))  # the last layer's input is zero
    assert on > 0
    expected = (1 + float(x @ x)) * on * last + 9 * last
    assert expected_error(config, off, batch) == pytest.approx(expected / last, rel=1e-5)

    config, starts = small("space=activities", "tangents=rademacher", EXACT_LAST, widths=())
    params = starts[0]
    assert expected_error(config, params, batch) == 0


@pytest.mark.parametrize(
    "tangents",
    thorough_but(["normal", "low_rank"], ["normal", "rademacher", "low_rank", "orthogonal"]),
)
def test_of_weights_it_is_that_of_their_number(small, tangents):
    """The deviation of an error is about √(m/K) of it, with E(∇f·v)⁴ = (m + 1) ‖∇f‖⁴.

    That is m = 2 for many independent entries, and up to 8 for two factors.
    """
    config, starts = small(f"tangents={tangents}", "estimator.value_and_grad.num_tangents=4")
    size = sum(x.size for x in jax.tree.leaves(starts[0]))
    expected = {"normal": (size + 1) / 4, "orthogonal": size / 4 - 1}.get(tangents, (size - 1) / 4)
    n = 300
    found = quality(config, starts, draws=n, guess_steps=0)
    assert found["law"] == pytest.approx([expected] * 2)
    moment = 8 if tangents == "low_rank" else 2
    assert found["error"] == pytest.approx([expected] * 2, rel=5 * (moment / 4 / n) ** 0.5)
    # The square of the mean of n errors, without that of the noise: of order error/n.
    assert found["bias"] == pytest.approx([0, 0], abs=expected / n)


@pytest.mark.parametrize("tangents", thorough_but(["rademacher"], ["normal", "rademacher"]))
def test_of_a_projection_it_is_the_share_of_the_dimensions(small, tangents):
    """cos² is of a beta distribution, about K/d times a chi-square of K degrees over K."""
    number, n = 16, 200
    config, starts = small(
        f"tangents={tangents}", "aggregation=projection",
        f"estimator.value_and_grad.num_tangents={number}",
    )  # fmt: skip
    share = number / sum(x.size for x in jax.tree.leaves(starts[0]))
    found = quality(config, starts, draws=n, guess_steps=0)
    assert found["squared_cosine_law"] == pytest.approx([share] * 2)
    assert found["law"] == pytest.approx([1 - share] * 2)
    within = 5 * (2 / number / n) ** 0.5
    for name, expected in (("squared_cosine", share), ("slope", share)):
        assert found[name] == pytest.approx([expected] * 2, rel=within)
    assert found["error"] == pytest.approx([1 - share] * 2, rel=within * share)


@pytest.mark.parametrize(
    "overrides",
    [
        ["aggregation=projection", "tangents=low_rank"],
        ["aggregation=projection", "space=activities", "tangents=rademacher"],
        ["tangents=block_sparse"],
        ["space=activities", "tangents=sphere"],
        ["estimator.value_and_grad.clip=1"],
        ["guess=learned"],
        ["tangents=low_rank", "tangents.distribution.factors=normal"],
        ["estimator=spsa"],
    ],
    ids=" ".join,
)
def test_estimators_without_a_law_have_nan(small, overrides):
    config, starts = small(*overrides)
    params = starts[0]
    batch = jax.tree.map(lambda x: x[:8], from_config.problem(config).train)
    assert math.isnan(expected_error(config, params, batch))
