"""Steps exported with a symbolic minibatch size are right for every size.

The oracle is the same step under `jit` with a concrete minibatch size.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.propagation.axes import axis_groups
from tests.oracle import normal

pytestmark = pytest.mark.thorough

B, N = jax.export.symbolic_shape("b, n")


def mlp(params, x, y):
    hidden = jax.nn.relu(x @ params["w"] + params["b"])
    return jnp.mean((hidden @ params["u"] - y) ** 2)


def cnn(params, x, y):
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["k"], (1, 1), "SAME", dimension_numbers=numbers)
    window = ((1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, *window)
    return jnp.mean((x.reshape(x.shape[0], -1) @ params["u"] - y) ** 2)


MODELS = {
    "mlp": (mlp, {"w": (12, 14), "b": (14,), "u": (14, 2)}, (12,)),
    "cnn": (cnn, {"k": (3, 3, 8, 6), "u": (24, 2)}, (4, 4, 8)),
}
FORMS = {
    "low rank": {"tangents": fwdgrad.LowRank()},
    "three of low rank": {"tangents": fwdgrad.LowRank(), "num_tangents": 3},
    "normal": {},
    "chunks": {"num_tangents": 3, "chunk_size": 1},
    "blocks": {"tangents": fwdgrad.BlockSparse(), "num_tangents": 3},
    "projection": {"num_tangents": 2, "aggregation": fwdgrad.Projection()},
}
SPACES = {
    "weights": fwdgrad.Weights(),
    "layerwise": fwdgrad.Weights(layerwise=True),
    "exact last": fwdgrad.Weights(exact_last=True),
    "activities": fwdgrad.Activities(),
    "activities, both": fwdgrad.Activities(layerwise=True, exact_last=True),
}
CASES = [
    *(("weights", form) for form in FORMS),
    *((space, form) for space in list(SPACES)[1:] for form in ("low rank", "blocks")),
    ("activities", "projection"),
    ("values", "spsa"),
    ("values", "evolution"),
]
OF_CNN = [CASES[0], ("weights", "normal"), ("weights", "blocks"), ("activities", "low rank")]
MODELS_AND_CASES = [("mlp", *case) for case in CASES] + [("cnn", *case) for case in OF_CNN]


def check_exported(value_and_grad, params, example, key):
    """Assert that an exported step gives the results of `jit` for two minibatch sizes."""

    def step(data, params, x, y):
        return value_and_grad(jax.random.wrap_key_data(data), params, x, y)

    arguments = [jax.ShapeDtypeStruct((B, *shape), "float32") for shape in (example, (2,))]
    data = jax.random.key_data(key)
    exported = jax.export.export(jax.jit(step))(data, params, *arguments)
    for size in (2, 3):
        args = normal(7, (size, *example)), normal(8, (size, 2))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            exported.call(data, params, *args),
            jax.jit(step)(data, params, *args),
        )


@pytest.mark.parametrize(("model", "space", "form"), MODELS_AND_CASES)
def test_an_exported_step_is_right_for_every_minibatch_size(model, space, form, key):
    loss, shapes, example = MODELS[model]
    params = {name: 0.3 * normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}
    if space == "values":
        value_and_grad = getattr(fwdgrad, f"{form}_value_and_grad")(loss)
    else:
        options = {"space": SPACES[space], **FORMS[form]}
        value_and_grad = fwdgrad.forward_value_and_grad(loss, **options)
    check_exported(value_and_grad, params, example, key)


def test_factors_are_reshaped_sliced_and_summed_over_a_symbolic_axis(key):

    def loss(params, x, y):
        rows = (x[:, None] * jnp.arange(1.0, 4.0)[:, None]).reshape(-1, x.shape[-1])
        made = rows @ params["w"] + (rows @ params["w"])[::-1] + rows @ params["v"]
        made = made.reshape(x.shape[0], 3, -1)[:, 1:].transpose(1, 0, 2).sum(0)
        return jnp.mean((jnp.tanh(made) @ params["u"] - y) ** 2)

    shapes = {"w": (12, 14), "v": (12, 14), "u": (14, 2)}
    params = {name: 0.3 * normal(i, shape) for i, (name, shape) in enumerate(shapes.items())}
    value_and_grad = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank())
    check_exported(value_and_grad, params, (12,), key)


def test_axis_groups_of_symbolic_sizes():
    assert axis_groups((B, 2, 5), (2 * B, 5)) == [([0, 1], [0]), ([2], [1])]
    assert axis_groups((B, 6), (B, 2, 3)) == [([0], [0]), ([1], [1, 2])]
    # Either of the two symbolic sizes may be the larger.
    assert axis_groups((B, N), (N, B)) == [([0, 1], [0, 1])]


def test_factors_are_summed_over_a_symbolic_axis_of_one_factor(key):

    def pooled(w, x):
        return jnp.sum(jnp.sin((x @ w).sum(0)))

    (n,) = jax.export.symbolic_shape("n")
    estimate = jax.jit(fwdgrad.forward_value_and_grad(pooled, tangents=fwdgrad.LowRank()))
    w, x = jnp.full((20, 12), 0.1), jnp.ones((3, 20))
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((20, 12), (n, 20))]
    exported = jax.export.export(estimate)(jax.eval_shape(lambda: key), *shapes)
    found, expected = exported.call(key, w, x), estimate(key, w, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
