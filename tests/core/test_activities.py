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
        )
    },
}  # fmt: skip


def averaged_over_signs(value_and_grad, params, args, scale=1.0):
    """The mean of the estimates over all signs of everything that is drawn.

    Every example gets the same signs, which does not matter, since the estimate is a sum over them.
    """
    drawn = jax.eval_shape(lambda: value_and_grad.draw(jax.random.key(0), params, *args))
    leaves, structure = jax.tree.flatten(drawn)
    axes = [x.ndim > 0 and x.shape[0] == N for x in leaves]  # no K and no value here is of size N
    sizes = [int(np.prod(x.shape[own:])) for x, own in zip(leaves, axes, strict=True)]
    assert sum(sizes) <= 14
    ends = np.cumsum([0, *sizes])

    def estimate(signs):
        parts = [
            jnp.broadcast_to(signs[i:j].reshape(x.shape[own:]), x.shape) * scale
            for x, own, i, j in zip(leaves, axes, ends[:-1], ends[1:], strict=True)
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


def transposed_chains(fun, *args):
    """The products of something that comes after the labels with a weight, in the jaxpr of fun.

    That is what backprop does from layer to layer, δ Wᵀ. `args` are parameters, inputs and labels.
    """
    from fwdgrad.core.jaxprs import inlined, variables

    sizes = [len(jax.tree.leaves(a)) for a in args]
    jaxpr = inlined(jax.make_jaxpr(fun)(*args)).jaxpr
    weights = set(jaxpr.invars[: sizes[0]])
    labels = set(jaxpr.invars[sum(sizes[:2]) :])
    found = []
    for equation in jaxpr.eqns:
        read = variables(equation.invars)
        bilinear = equation.primitive.name in ("dot_general", "conv_general_dilated")
        if bilinear and any(v in weights for v in read) and any(v in labels for v in read):
            found.append(equation)
        if any(v in labels for v in read):
            labels.update(equation.outvars)
        elif read and all(v in weights for v in read) and not bilinear:
            weights.update(equation.outvars)
    return found


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_no_reverse_mode_goes_through_more_than_a_layer(model, key):
    from fwdgrad.problems import CNN, MLP

    make = {"mlp": lambda: MLP((8, 8), key=key), "cnn": lambda: CNN(2, 8, key=key)}[model]
    params, static = fwdgrad.partition(make())
    x, y = normal(1, (2, 28, 28)), jnp.array([3, 7])

    def loss(params, x, y):
        logits = jax.vmap(fwdgrad.combine(params, static))(x)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(y)), y].mean()

    def chains(estimator):
        return transposed_chains(lambda p, x, y: estimator(key, p, x, y)[1], params, x, y)

    assert len(chains(fwdgrad.backprop_value_and_grad(loss))) >= 2
    for space in (fwdgrad.Weights(), *SPACES.values()):
        for tangents in (fwdgrad.Rademacher(), fwdgrad.LowRank(), fwdgrad.BlockSparse()):
            estimator = fwdgrad.forward_value_and_grad(
                loss, tangents=tangents, num_tangents=2, space=space
            )
            assert chains(estimator) == []


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
