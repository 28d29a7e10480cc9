"""Activity perturbation: unbiased on any loss, local, and as a reference by hand has it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fwdgrad
from fwdgrad.perturbation import kernel_noise
from fwdgrad.perturbation.loss import Loss
from tests.oracle import normal
from tests.perturbation.activity_losses import (
    LOSSES,
    SPACES,
    N,
    convolution,
    kernels,
    mlp,
    penalised,
    scanned,
)
from tests.perturbation.all_signs import assert_same, averaged_over_signs, exact
from tests.sweeps import thorough_but

# Every loss in the space that does most, and in the others what each of them does by itself.
ALWAYS = {
    *((name, "layerwise, exact last") for name in LOSSES),
    *itertools.product(("relu", "kernels"), SPACES),
    *itertools.product(("maxout", "scanned", "equinox_module"), ["joint"]),
}


@pytest.mark.parametrize(("name", "space"), thorough_but(ALWAYS, itertools.product(LOSSES, SPACES)))
def test_the_mean_over_all_signs_is_the_gradient(name, space):
    loss, params, args = LOSSES[name]()
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), space=SPACES[space]
    )
    value, grad = averaged_over_signs(value_and_grad, params, args)
    expected_value, expected = exact(loss, params, args)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    assert_same(grad, expected)


TANGENTS = {
    "signs": (fwdgrad.Rademacher(), 2),
    "blocks": (fwdgrad.BlockSparse(), 2),
    "blocks-uneven": (fwdgrad.BlockSparse(), 4),
}


@pytest.mark.parametrize(
    ("name", "tangents", "space"),
    thorough_but(
        [*itertools.product(["maxout"], TANGENTS, ["joint", "layerwise, exact last"])],
        [
            *itertools.product(["relu", "maxout"], TANGENTS, SPACES),
            *itertools.product(["kernels"], TANGENTS, [x for x in SPACES if "kernels" in x]),
        ],
    ),
)
def test_so_it_is_with_more_tangents(name, tangents, space):
    loss, params, args = LOSSES[name]()
    distribution, number = TANGENTS[tangents]
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=distribution, num_tangents=number, space=SPACES[space]
    )
    _, grad = averaged_over_signs(value_and_grad, params, args)
    assert_same(grad, exact(loss, params, args)[1])


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
    _, expected = jax.jit(plain.along)(drawn, params, x, y)
    (_, aux), found = jax.jit(value_and_grad.along)(drawn, params, x, y)
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


def test_noise_in_a_kernel_as_by_hand(key):
    """d_n from the definition, and (1/N) Σ_n (1/K) Σ_k d_nk Ξ_nk of each example's own noise."""
    loss, params, (x, y) = kernels()
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Normal(), num_tangents=2,
        space=fwdgrad.Activities(layerwise=True, exact_last=True, at_kernels=True),
    )  # fmt: skip
    drawn = value_and_grad.draw(key, params, x, y)
    _, grad = jax.jit(value_and_grad.along)(drawn, params, x, y)
    noise = dict(zip("ks", drawn.tangents, strict=True))  # (N, K, *shape)
    for name, of_examples in noise.items():
        assert of_examples.shape == (N, 2, *params[name].shape)
        each = jax.vmap(jax.grad(loss), (None, 0, 0))(params, x[:, None], y[:, None])[name]
        along = jnp.einsum("nk...,n...->nk", of_examples, each)
        expected = jnp.einsum("nk,nk...->...", along, of_examples) / (2 * N)
        np.testing.assert_allclose(grad[name], expected, rtol=1e-4)


def test_noise_in_a_kernel_with_a_guess_of_its_gradient(key):
    """As many blocks as entries know the gradient, whatever is guessed."""
    loss, params, args = kernels()
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.BlockSparse(), space=SPACES["layerwise, exact last, at kernels"]
    ).guided()
    guess = [normal(7, (1, 1, 1, 1, 1)), normal(8, (1, 1, 1, 1))]
    shapes = [a.shape for a in value_and_grad.init(params, *args).guess]
    assert shapes == [a.shape for a in guess]
    _, grad = jax.jit(value_and_grad)(key, fwdgrad.Guided(params, guess), *args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4),
        grad.params,
        jax.grad(loss)(params, *args),
    )


# All but those with more entries than `averaged_over_signs` can go through.
AT_KERNELS = [x for x in LOSSES if x not in ("maxout", "joined", "shared", "equinox_module")]


@pytest.mark.parametrize(
    "name",
    thorough_but(
        ["relu", "convolution", "tied_kernel", "derived_weights_meet_themselves"], AT_KERNELS
    ),
)
def test_noise_in_any_layers_parameters_is_unbiased(name, monkeypatch):
    """Also where the parameters are not far fewer, of several parameters and of shared ones."""
    monkeypatch.setattr(kernel_noise, "FEWER", 0)
    loss, params, args = LOSSES[name]()
    for space in (SPACES["at kernels"], SPACES["layerwise, exact last, at kernels"]):
        value_and_grad = fwdgrad.forward_value_and_grad(
            loss, tangents=fwdgrad.Rademacher(), space=space
        )
        _, grad = averaged_over_signs(value_and_grad, params, args)
        assert_same(grad, exact(loss, params, args)[1])


def test_weights_and_bias_in_place_of_a_value_are_pushed_together(monkeypatch, key):
    """They have one group of K derivatives, along the noise of both."""
    monkeypatch.setattr(kernel_noise, "FEWER", 0)
    loss, params, args = mlp(jnp.tanh)
    space = SPACES["layerwise, exact last, at kernels"]
    drawn = fwdgrad.forward_value_and_grad(loss, space=space).draw(key, params, *args)
    assert [v.shape for v in drawn.tangents] == [(N, 1, 3, 2), (N, 1, 2)]
    at = space.at(Loss(loss, params, args, {}, False))
    assert len(at.push(list(drawn.tangents), with_gram=False).derivatives) == 1


def test_noise_stays_at_values_that_are_not_many_times_larger(key):
    loss, params, args = convolution()
    drawn = [
        jax.tree.map(jnp.shape, fwdgrad.forward_value_and_grad(
            loss, space=fwdgrad.Activities(at_kernels=at_kernels)
        ).draw(key, params, *args).tangents)
        for at_kernels in (False, True)
    ]  # fmt: skip
    assert drawn[0] == drawn[1]


def test_a_convolution_as_by_hand(key):
    """d_n from the definition, and the kernel's gradient of the outputs' cotangents d_n ξ_n / N."""
    loss, params, (x, y) = convolution()
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Normal(), num_tangents=2, space=fwdgrad.Activities()
    )
    drawn = value_and_grad.draw(key, params, x, y)
    (noise,) = drawn.tangents  # (N, K, 1, 2, 2, 2)
    value, grad = value_and_grad.along(drawn, params, x, y)

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
        sites = fwdgrad.explain(loss, params, *args, tangents=fwdgrad.Normal(), space=space).sites
        assert all("noise" in site.kind for site in sites), name


def test_nothing_is_exact_before_layers_with_weights_that_are_made(key):
    """Weights that another layer makes of the input, and weights in a product by broadcasting."""
    x = normal(0, (N, 2))

    def made(params, x):
        h = x
        for w in params:
            h = jnp.tanh(jnp.einsum("ni,nij->nj", h, (x @ w).reshape(-1, 2, 2)))
        return jnp.mean(h**2)

    def broadcast(params, x):
        h = x
        for w in params:
            h = jnp.tanh((h[:, :, None] * jax.nn.softplus(w)).sum(1))
        return jnp.mean(h**2)

    for loss, shape in ((made, (2, 4)), (broadcast, (2, 2))):
        params = [normal(i, shape) for i in range(3)]
        space = fwdgrad.Activities(exact_last=True)
        sites = fwdgrad.explain(loss, params, x, tangents=fwdgrad.Normal(), space=space).sites
        exact = {name for site in sites for name in site.parameters if "exact" in site.kind}
        assert exact <= {"params[2]"}, loss.__name__


def test_a_loss_that_is_a_parameter_is_refused(key):
    value_and_grad = fwdgrad.forward_value_and_grad(lambda w, x: w, space=fwdgrad.Activities())
    with pytest.raises(ValueError, match="returns one of params as it is"):
        value_and_grad(key, jnp.float32(1), jnp.ones(2))


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


@pytest.mark.parametrize("chunk_size", thorough_but([2], [1, 2, 3, None]))
def test_chunks_change_nothing(chunk_size, key):
    loss, params, args = mlp(jnp.tanh)
    options = {
        "tangents": fwdgrad.Rademacher(), "num_tangents": 3,
        "space": fwdgrad.Activities(layerwise=True, exact_last=True),
    }  # fmt: skip
    whole = fwdgrad.forward_value_and_grad(loss, **options)
    cut = fwdgrad.forward_value_and_grad(loss, chunk_size=chunk_size, **options)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4),
        *(jax.jit(each)(key, params, *args) for each in (cut, whole)),
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


def test_constants_in_aux(key):
    rate = jnp.float32(0.25)
    value_and_grad = fwdgrad.forward_value_and_grad(
        lambda w, x: (jnp.mean(x @ w), {"rate": rate, "name": "a"}),
        space=fwdgrad.Activities(), has_aux=True,
    )  # fmt: skip
    (_, aux), _ = value_and_grad(key, jnp.ones(2), jnp.ones((N, 2)))
    assert aux["name"] == "a" and aux["rate"].tolist() == [0.25] * N


def test_the_explanation_names_every_value_and_its_parameters():
    loss, params, args = mlp(jnp.tanh)
    space = fwdgrad.Activities(exact_last=True)
    explanation = fwdgrad.explain(loss, params, *args, tangents=fwdgrad.Normal(), space=space)
    found = [(site.shape, site.parameters, site.kind) for site in explanation.sites]
    assert found == [
        ((1, 2), ("params['b']", "params['w']"), "noise of each example's own"),
        ((1, 1), ("params['c']", "params['u']"), "its exact derivative"),
    ]
    text = str(explanation)
    assert "activity_losses.py" in text and "operations" in text
    loss, params, args = penalised()
    (own, shared) = fwdgrad.explain(
        loss, params, *args, tangents=fwdgrad.Normal(), space=fwdgrad.Activities()
    ).sites
    assert own.kind == "noise of each example's own" and shared.kind == "noise, one for all"
