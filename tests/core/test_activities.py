"""Activity perturbation: unbiased on any loss, local, and as a reference by hand has it."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from fwdgrad.core.estimators import Drawn
from fwdgrad.core.forms import dense
from fwdgrad.core.losses import Loss

from .oracle import normal

SPACES = {
    "joint": fwdgrad.Activities(),
    "layerwise": fwdgrad.Activities(layerwise=True),
    "exact last": fwdgrad.Activities(exact_last=True),
    "layerwise, exact last": fwdgrad.Activities(layerwise=True, exact_last=True),
}
N = 3


def squared(outputs, y):
    return jnp.mean((outputs - y) ** 2)


def mlp(activation):
    def loss(params, x, y):
        hidden = activation(x @ params["w"] + params["b"])
        return squared(hidden @ params["u"] + params["c"], y)

    params = {
        "w": normal(0, (3, 2)), "b": normal(1, (2,)), "u": normal(2, (2, 1)), "c": normal(3, (1,))
    }  # fmt: skip
    return loss, params, (normal(4, (N, 3)), normal(5, (N, 1)))


def convolution():
    def loss(params, x, y):
        z = lax.conv_general_dilated(x, params["k"], (1, 1), "SAME") + params["b"][:, None, None]
        return squared(jnp.tanh(z).sum((1, 2, 3)), y)

    params = {"k": normal(0, (2, 1, 2, 2)), "b": normal(1, (2,))}
    return loss, params, (normal(2, (N, 1, 2, 2)), normal(3, (N,)))


def gated():
    """Two layers of the same input, multiplied; then a residual connection."""

    def loss(params, x, y):
        gate = jax.nn.sigmoid(x @ params["a"]) * (x @ params["b"])
        return squared((x + gate @ params["c"]).sum(1), y)

    params = {"a": normal(0, (2, 2)), "b": normal(1, (2, 2)), "c": normal(2, (2, 2))}
    return loss, params, (normal(3, (N, 2)), normal(4, (N,)))


def normalised():
    """Layer norm with its scale and shift, before a layer with normalised weights."""

    def loss(params, x, y):
        h = x @ params["w"]
        h = (h - h.mean(1, keepdims=True)) * lax.rsqrt(h.var(1, keepdims=True) + 0.1)
        h = h * params["scale"] + params["shift"]
        u = params["u"] / jnp.sqrt(jnp.sum(params["u"] ** 2))
        return squared(jnp.tanh(h) @ u, y)

    params = {
        "w": normal(0, (2, 2)), "scale": normal(1, (2,)), "shift": normal(2, (2,)),
        "u": normal(3, (2,)),
    }  # fmt: skip
    return loss, params, (normal(4, (N, 2)), normal(5, (N,)))


def penalised():
    def loss(params, x, y):
        return squared(jnp.tanh(x @ params["w"]).sum(1), y) + 0.1 * jnp.sum(params["w"] ** 2)

    return loss, {"w": normal(0, (2, 2))}, (normal(1, (N, 2)), normal(2, (N,)))


def looked_up():
    """An embedding, and the same weights at the end."""

    def loss(params, tokens, y):
        hidden = jnp.tanh(params["e"][tokens])
        return squared((hidden @ params["e"].T).sum((1, 2)), y)

    tokens = jnp.array([[0, 2], [1, 1], [2, 0]])
    return loss, {"e": normal(0, (3, 2))}, (tokens, normal(1, (N,)))


def scanned():
    """Weights that a loop scans over are perturbed themselves."""

    def loss(params, x, y):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return squared(lax.scan(layer, x, params["w"])[0].sum(1), y)

    return loss, {"w": normal(0, (2, 2, 2))}, (normal(1, (N, 2)), normal(2, (N,)))


def product_of_weights():
    def loss(params, x, y):
        return squared(jnp.sin(x @ (params["a"] @ params["b"])).sum(1), y)

    return (
        loss,
        {"a": normal(0, (2, 1)), "b": normal(1, (1, 2))},
        (normal(2, (N, 2)), normal(3, (N,))),
    )


def squared_weights():
    """Weights that meet themselves, linear in each use alone."""

    def loss(params, x, y):
        w = params["w"]
        return squared(jnp.tanh(x @ (w * w + w)).sum(1), y)

    return loss, {"w": normal(0, (2, 1))}, (normal(1, (N, 2)), normal(2, (N,)))


def derived_weights_meet_themselves():
    """The same of a transpose, which is linear in the weights itself."""

    def loss(params, x, y):
        u = params["w"].T
        return squared(jnp.tanh(x @ (u * u + u).T).sum(1), y) + 0.1 * jnp.sum(u * u)

    return loss, {"w": normal(0, (2, 1))}, (normal(1, (N, 2)), normal(2, (N,)))


def greedy():
    """Each layer has a loss of its own, and is given the one before it stopped."""

    def loss(params, x, y):
        h = jnp.tanh(x @ params["a"])
        z = lax.stop_gradient(h) @ params["b"]
        return squared(h.sum(1), y) + squared(jnp.sin(z).sum(1), y)

    params = {"a": normal(0, (2, 2)), "b": normal(1, (2, 2))}
    return loss, params, (normal(2, (N, 2)), normal(3, (N,)))


def linear_loss():
    def loss(params, x):
        return jnp.mean(x @ params["w"]) + params["b"].sum()

    return loss, {"w": normal(0, (2,)), "b": normal(1, (2,))}, (normal(2, (N, 2)),)


def linear_head():
    """The loss itself is the last value that is linear in parameters, as of a critic."""

    def loss(params, x):
        return jnp.mean(jnp.tanh(x @ params["w"]) @ params["u"])

    params = {"w": normal(0, (2, 2)), "u": normal(1, (2,))}
    return loss, params, (normal(2, (N, 2)),)


def fixed_layers():
    """Products with fixed matrices are layers too; and what is held is put beside an output."""
    first, second = normal(5, (2, 2)), normal(6, (4, 1))

    def loss(params, x, y):
        held = jnp.concatenate([x @ params["w"] @ first, x], 1)
        return squared(held @ second, y)

    return loss, {"w": normal(0, (2, 2))}, (normal(2, (N, 2)), normal(3, (N, 1)))


def layers_in_one_call():
    """Two layers in a function with a forward-mode rule of its own."""

    @jax.custom_jvp
    def net(a, b, x):
        return jnp.tanh(x @ a) @ b

    net.defjvp(
        lambda primals, tangents: jax.jvp(lambda a, b, x: jnp.tanh(x @ a) @ b, primals, tangents)
    )

    def loss(params, x, y):
        return squared(net(params["a"], params["b"], x), y)

    return loss, {"a": normal(0, (2, 2)), "b": normal(1, (2, 1))}, (
        normal(2, (N, 2)), normal(3, (N, 1))
    )  # fmt: skip


def equinox_module():
    model = eqx.nn.MLP(2, 1, 2, 2, jax.nn.gelu, key=jax.random.key(0))

    def loss(model, x, y):
        return squared(jax.vmap(model)(x), y)

    return loss, model, (normal(1, (N, 2)), normal(2, (N, 1)))


LOSSES = {
    "relu": lambda: mlp(jax.nn.relu),
    "where": lambda: mlp(lambda z: jnp.where(z > 0, z, 0)),
    "tanh": lambda: mlp(jnp.tanh),
    **{
        f.__name__: f
        for f in (
            convolution, gated, normalised, penalised, looked_up, scanned, product_of_weights,
            squared_weights, derived_weights_meet_themselves, greedy, linear_loss, equinox_module,
            linear_head, fixed_layers, layers_in_one_call,
        )
    },
}  # fmt: skip


def averaged_over_signs(value_and_grad, params, args, scale=1.0):
    """The mean of the estimates over all signs of everything that is drawn.

    Each example gets them with some of its own turned over, so that no two have the same.
    """
    turned = np.random.default_rng(0)
    drawn = jax.eval_shape(lambda: value_and_grad.draw(jax.random.key(0), params, *args))
    leaves, structure = jax.tree.flatten(drawn)
    axes = [x.ndim > 0 and x.shape[0] == N for x in leaves]  # no K and no value here is of size N
    sizes = [int(np.prod(x.shape[own:])) for x, own in zip(leaves, axes, strict=True)]
    assert sum(sizes) <= 14
    ends = np.cumsum([0, *sizes])
    turns = [turned.choice([-1.0, 1.0], x.shape) for x in leaves]

    def estimate(signs):
        parts = [
            jnp.broadcast_to(signs[i:j].reshape(x.shape[own:]), x.shape)
            for x, own, i, j in zip(leaves, axes, ends[:-1], ends[1:], strict=True)
        ]
        parts = [
            (part * turn * scale).astype(x.dtype)
            for part, turn, x in zip(parts, turns, leaves, strict=True)
        ]
        value, grad = value_and_grad(jax.tree.unflatten(structure, parts), params, *args)
        return value, fwdgrad.partition(grad)[0]

    every = jnp.array(list(itertools.product([-1.0, 1.0], repeat=sum(sizes))))
    values, grads = jax.jit(jax.vmap(estimate))(every)
    return values[0], jax.tree.map(lambda g: g.mean(0), grads)


def assert_same(found, expected):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * scale), found, expected
    )


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_over_all_signs_is_the_gradient(name, space):
    loss, params, args = LOSSES[name]()
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), space=space
    )
    value, grad = averaged_over_signs(value_and_grad, params, args)
    theta, rest = fwdgrad.partition(params)
    expected_value, expected = jax.value_and_grad(
        lambda theta: loss(fwdgrad.combine(theta, rest), *args)
    )(theta)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    assert_same(grad, expected)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize(
    ("tangents", "num_tangents"),
    [(fwdgrad.Rademacher(), 2), (fwdgrad.BlockSparse(), 2), (fwdgrad.BlockSparse(), 4)],
    ids=["signs", "blocks", "blocks-uneven"],
)
def test_so_it_is_with_more_tangents(tangents, num_tangents, space):
    loss, params, args = mlp(jax.nn.relu)
    blocks = isinstance(tangents, fwdgrad.BlockSparse)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=tangents, num_tangents=num_tangents, space=space
    )
    scale = num_tangents**0.5 if blocks else 1.0
    _, grad = averaged_over_signs(value_and_grad, params, args, scale)
    assert_same(grad, jax.grad(loss)(params, *args))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_what_only_aux_reads_gets_no_noise(space):
    """A norm for the log, and predictions of a head that is not trained."""
    loss, params, (x, y) = mlp(jnp.tanh)
    params = {**params, "head": normal(9, (2, 3))}

    def with_aux(params, x, y):
        hidden = jnp.tanh(x @ params["w"] + params["b"])
        predicted = jax.nn.softmax(hidden @ params["head"])
        return loss(params, x, y), (predicted, jnp.sum(params["w"] ** 2), jnp.sum(params["u"]))

    options = {"tangents": fwdgrad.Rademacher(), "space": space}
    plain = fwdgrad.forward_value_and_grad(loss, **options)
    value_and_grad = fwdgrad.forward_value_and_grad(with_aux, **options, has_aux=True)
    drawn = plain.draw(jax.random.key(0), params, x, y)
    _, expected = plain(drawn, params, x, y)
    (_, aux), found = value_and_grad(drawn, params, x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    assert (found["head"] == 0).all() and float(jnp.abs(found["w"]).max()) > 0
    np.testing.assert_allclose(aux[1], jnp.full(N, jnp.sum(params["w"] ** 2)), rtol=1e-5)


@pytest.mark.parametrize("aggregation", [fwdgrad.Mean(), fwdgrad.Projection()])
def test_weights_that_are_off_get_nothing_by_projection(aggregation, key):
    """Noise that is one for all examples is weighed as it was put in."""

    def loss(w, x):
        return jnp.mean((x @ jax.nn.relu(w)) ** 2)

    w, x = jnp.array([1.0, -1.0]), normal(0, (N, 2))
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, num_tangents=2, space=fwdgrad.Activities(), aggregation=aggregation
    )
    _, grad = value_and_grad(key, w, x)
    if isinstance(aggregation, fwdgrad.Projection):
        assert abs(grad[1]) < 1e-4


@pytest.mark.parametrize("exact_last", [False, True])
def test_projection_on_all_units_is_the_gradient(exact_last, key):
    """With as many tangents as a layer has units its derivative is known."""
    loss, params, args = mlp(jnp.tanh)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, num_tangents=2, aggregation=fwdgrad.Projection(),
        space=fwdgrad.Activities(layerwise=True, exact_last=exact_last),
    )  # fmt: skip
    _, grad = value_and_grad(key, params, *args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        grad,
        jax.grad(loss)(params, *args),
    )


def test_a_convolution_as_by_hand(key):
    """d_n from the definition, and the kernel's gradient of the outputs' cotangents d_n ξ_n / N."""
    loss, params, (x, y) = convolution()
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Normal(), num_tangents=2, space=fwdgrad.Activities()
    )
    drawn = value_and_grad.draw(key, params, x, y)
    (noise,) = drawn.tangents  # (N, K, 1, 2, 2, 2)
    value, grad = value_and_grad(drawn, params, x, y)

    def outputs(params):
        z = lax.conv_general_dilated(x, params["k"], (1, 1), "SAME")
        return z + params["b"][:, None, None]

    def losses(z):
        return (jnp.tanh(z).sum((1, 2, 3)) - y) ** 2

    cotangent = jnp.zeros((N, 2, 2, 2))
    for k in range(2):
        xi = noise[:, k, 0]
        derivatives = jax.jvp(losses, (outputs(params),), (xi,))[1]
        cotangent += derivatives[:, None, None, None] * xi / (2 * N)
    (expected,) = jax.vjp(outputs, params)[1](cotangent)
    np.testing.assert_allclose(value, losses(outputs(params)).mean(), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), grad, expected)


def test_nothing_is_exact_before_layers_that_are_hidden(key):
    """In a loop, or with fixed weights: an exact derivative would go back through all of them."""
    fixed = normal(9, (2, 2))
    losses = {
        "scan": (scanned()[0], {"w": normal(0, (2, 2, 2))}, (normal(1, (N, 2)), normal(2, (N,)))),
        "fixed": (
            lambda w, x: jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ fixed)),
            normal(3, (2, 2)),
            (normal(4, (N, 2)),),
        ),
    }
    for name, (loss, params, args) in losses.items():
        space = fwdgrad.Activities(exact_last=True)
        sites = fwdgrad.explain(loss, params, *args, tangents=fwdgrad.Normal(), space=space).leaves
        assert all("noise" in site.kind for site in sites), name


def test_noise_is_masked_where_the_activation_is_flat(key):
    """A unit that is off for every example has the gradient zero, which is what it gets."""
    loss, params, args = mlp(jax.nn.relu)
    params = {**params, "b": jnp.array([-100.0, 0.0])}
    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=fwdgrad.Activities())
    _, grad = value_and_grad(key, params, *args)
    assert (grad["w"][:, 0] == 0).all() and grad["b"][0] == 0
    assert (grad["w"][:, 1] != 0).any()


def test_the_last_layer_is_exact(key):
    loss, params, args = mlp(jnp.tanh)
    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=fwdgrad.Activities(exact_last=True))
    _, grad = value_and_grad(key, params, *args)
    expected = jax.grad(loss)(params, *args)
    for name in ("u", "c"):
        np.testing.assert_allclose(grad[name], expected[name], rtol=1e-5)
    assert not np.allclose(grad["w"], expected["w"], rtol=1e-2)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, None])
def test_chunks_change_nothing(chunk_size, key):
    loss, params, args = mlp(jnp.tanh)
    options = {
        "tangents": fwdgrad.Rademacher(), "num_tangents": 3,
        "space": fwdgrad.Activities(layerwise=True, exact_last=True),
    }  # fmt: skip
    whole = fwdgrad.forward_value_and_grad(loss, **options)(key, params, *args)
    cut = fwdgrad.forward_value_and_grad(loss, chunk_size=chunk_size, **options)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), cut(key, params, *args), whole
    )


def test_clipping_is_of_each_example(key):
    loss, params, args = mlp(jnp.tanh)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, space=fwdgrad.Activities(), clip=1e-6, has_report=True
    )
    _, grad, report = value_and_grad(key, params, *args)
    assert report["clip_rate"] == 1
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grad)) < 1e-4


def test_aux_is_stacked(key):
    loss, params, args = mlp(jnp.tanh)
    value_and_grad = fwdgrad.forward_value_and_grad(
        lambda params, x, y: (loss(params, x, y), {"x": x.sum(), "name": "a"}),
        space=fwdgrad.Activities(),
        has_aux=True,
    )
    (_, aux), _ = value_and_grad(key, params, *args)
    assert aux["name"] == "a"
    np.testing.assert_allclose(aux["x"], args[0].sum(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((jnp.ones((3, 2)), 1.0), r"args\[1\] has no axis of examples: found float of shape \(\)"),
        ((jnp.ones((3, 2)), jnp.ones(4)), r"one number of examples.*args\[0\]: 3, args\[1\]: 4"),
        ((), "found no arrays"),
    ],
)
def test_examples_must_be_there(args, message, key):
    value_and_grad = fwdgrad.forward_value_and_grad(
        lambda w, *args: w.sum(), space=fwdgrad.Activities()
    )
    with pytest.raises(ValueError, match=message):
        value_and_grad(key, jnp.ones(2), *args)


def test_constants_in_aux(key):
    rate = jnp.float32(0.25)
    value_and_grad = fwdgrad.forward_value_and_grad(
        lambda w, x: (jnp.mean(x @ w), {"rate": rate, "name": "a"}),
        space=fwdgrad.Activities(), has_aux=True,
    )  # fmt: skip
    (_, aux), _ = value_and_grad(key, jnp.ones(2), jnp.ones((N, 2)))
    assert aux["name"] == "a" and aux["rate"].tolist() == [0.25] * N


@pytest.mark.parametrize("layerwise", [False, True])
def test_everything_that_is_drawn_is_independent(layerwise):
    """Of sites, examples and tangents: sites of one shape, and a parameter with noise of its own.

    The mean of 4,000 products of two signs has the deviation 1/63; all are within 6 of them but
    with probability 6e-6 (Hoeffding's bound 2 exp(−18), times 190 products).
    """

    def loss(params, x):
        hidden = jnp.tanh(x @ params["w"])
        return jnp.mean(jnp.tanh(hidden @ params["u"])) + jnp.sum(params["c"] ** 2)

    params = {"w": normal(0, (2, 2)), "u": normal(1, (2, 2)), "c": normal(2, (1, 2))}
    space = fwdgrad.Activities(layerwise=layerwise)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), num_tangents=2, space=space
    )

    def flat(key):
        drawn = value_and_grad.draw(key, params, jnp.ones((2, 2))).tangents
        return jnp.concatenate([v.ravel() for v in drawn])

    draws = jax.jit(jax.vmap(flat))(jax.random.split(jax.random.key(0), 4000))
    assert draws.shape[1] == 2 * 2 * (2 + 2) + 2 * 2  # of examples' own, and of c
    products = draws.T @ draws / len(draws)
    np.testing.assert_allclose(products, np.eye(draws.shape[1]), atol=6 / 4000**0.5)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", ["convolution", "gated", "normalised", "images"])
def test_blocks_are_a_form_and_nothing_else(name, space, key):
    """The same noise written out gives the same estimate."""
    loss, params, args = images() if name == "images" else LOSSES[name]()
    for number in (2, 3):
        at = space.at(Loss(loss, params, args, {}, False), number, True)
        drawn = at.draw(fwdgrad.BlockSparse(), jax.random.split(key, number))

        def weigh(derivatives, gram, size, number=number):
            return derivatives / number, jnp.zeros(())

        def written(v):
            per_example = v.value.ndim > v.axis + 1 and v.value.shape[0] == N
            return jax.vmap(dense)(v) if per_example else dense(v)

        blocks = at.estimate(drawn, number, weigh).grad
        out = at.estimate([written(v) for v in drawn], number, weigh).grad
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), blocks, out
        )


def images():
    """Three convolutions, with a stride and pooling, flattened, and a layer."""

    def convolve(x, kernel, stride):
        return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME")

    def loss(params, x, y):
        h = jax.nn.relu(convolve(x, params["k"], 1) + params["b"][:, None, None])
        h = jnp.tanh(convolve(h, params["l"], 2))
        h = convolve(h, params["m"], 1)
        h = h.reshape(*h.shape[:3], -1, 2).max(-1)
        return squared(jnp.tanh(h.reshape(len(x), -1) @ params["w"]).sum(1), y)

    params = {
        "k": normal(0, (6, 1, 3, 3)), "b": normal(1, (6,)), "l": normal(2, (5, 6, 2, 2)),
        "m": normal(6, (4, 5, 1, 1)), "w": normal(3, (8, 2)),
    }  # fmt: skip
    return loss, params, (normal(4, (N, 1, 4, 4)), normal(5, (N,)))


def test_dropout_takes_a_key_for_each_example(key):
    def loss(w, x, keys):
        kept = jax.vmap(lambda x, k: x * jax.random.bernoulli(k, 0.5, x.shape))(x, keys)
        return jnp.mean((kept @ w) ** 2)

    keys, x = jax.random.split(key, N), normal(0, (N, 4))
    space = fwdgrad.Activities(exact_last=True)
    _, grad = fwdgrad.forward_value_and_grad(loss, space=space)(key, jnp.ones(4), x, keys)
    assert_same(grad, jax.grad(loss)(jnp.ones(4), x, keys))


def test_drawn_ahead(key):
    loss, params, args = mlp(jnp.tanh)
    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=fwdgrad.Activities())
    drawn = value_and_grad.draw(key, params, *args)
    jax.tree.map(
        np.testing.assert_array_equal,
        value_and_grad(drawn, params, *args),
        value_and_grad(key, params, *args),
    )
    with pytest.raises(ValueError, match=r"drawn ahead for the value at .*; they must be"):
        value_and_grad(Drawn([v[:2] for v in drawn.tangents]), params, *args)


def test_a_loss_must_be_a_jaxpr(key):
    space = fwdgrad.Activities()

    def asks(w, x):
        return jnp.sum(w * x) if w[0] > 0 else jnp.sum(w)

    def writes(w, x):
        ref = jax.new_ref(w)
        ref[0] = 1.0
        return jnp.sum(ref[...] * x)

    for fun, message in (
        (asks, "fun cannot be traced, which space=Activities"),
        (writes, "fun works with mutable arrays .* or use space=Weights"),
    ):
        with pytest.raises(TypeError, match=message):
            fwdgrad.forward_value_and_grad(fun, space=space)(key, jnp.ones(2), jnp.ones((N, 2)))


@pytest.mark.parametrize("enter", [True, False])
def test_custom_vjp_is_entered_or_named(enter, key):
    @jax.custom_vjp
    def straight_through(x):
        return jnp.tanh(x)

    straight_through.defvjp(lambda x: (jnp.tanh(x), None), lambda _, c: (c,))
    loss, params, args = mlp(straight_through)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, space=fwdgrad.Activities(), enter_custom_vjp=enter
    )
    if enter:
        smooth = fwdgrad.forward_value_and_grad(mlp(jnp.tanh)[0], space=fwdgrad.Activities())
        assert_same(value_and_grad(key, params, *args)[1], smooth(key, params, *args)[1])
    else:
        with pytest.raises(TypeError, match=r"jax\.custom_vjp .*straight_through"):
            value_and_grad(key, params, *args)


def test_the_explanation_names_every_value_and_its_parameters():
    loss, params, args = mlp(jnp.tanh)
    space = fwdgrad.Activities(exact_last=True)
    explanation = fwdgrad.explain(loss, params, *args, tangents=fwdgrad.Normal(), space=space)
    found = [(site.shape, site.parameters, site.kind) for site in explanation.leaves]
    assert found == [
        ((1, 2), ("params['b']", "params['w']"), "noise of each example's own"),
        ((1, 1), ("params['c']", "params['u']"), "its exact derivative"),
    ]
    text = str(explanation)
    assert "test_activities.py" in text and "operations" in text
    loss, params, args = penalised()
    (own, shared) = fwdgrad.explain(
        loss, params, *args, tangents=fwdgrad.Normal(), space=fwdgrad.Activities()
    ).leaves
    assert own.kind == "noise of each example's own" and shared.kind == "noise, one for all"
