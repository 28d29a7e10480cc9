"""Losses with Pallas kernels and mutable arrays, against equal losses without them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import fwdgrad
from fwdgrad.tangents.forms import dense
from tests.oracle import normal
from tests.perturbation.activity_losses import SPACES, N
from tests.perturbation.all_signs import assert_same, averaged_over_signs

pytestmark = pytest.mark.thorough

PARAMS = {"w": normal(0, (3, 2)), "u": normal(1, (2, 2))}
X = normal(2, (N, 3))


def kernel(body, shape, **options):
    shape = jax.ShapeDtypeStruct(shape, jnp.float32)
    return pl.pallas_call(body, out_shape=shape, interpret=True, **options)


def _tanh(x, out):
    out[...] = jnp.tanh(x[...])


def _tanh_by_rows(x, out):
    def row(i, scale):
        out[i] = jnp.tanh(x[i]) * scale
        return scale * 1.0

    jax.lax.fori_loop(0, x.shape[0], row, 1.0)


def _product(x, w, out):
    out[...] = x[...] @ w[...]


def elementwise(x):
    return kernel(_tanh, x.shape)(x)


def with_a_loop(x):
    return kernel(_tanh_by_rows, x.shape)(x)


def on_a_grid(x):
    block = pl.BlockSpec((1, x.shape[1]), lambda i: (i, 0))
    options = {"grid": (x.shape[0],), "in_specs": [block], "out_specs": block}
    return kernel(_tanh, x.shape, **options)(x)


def product(x, w):
    return kernel(_product, (x.shape[0], w.shape[1]))(x, w)


@jax.custom_vjp
def with_reverse_rule(x):
    return elementwise(x)


with_reverse_rule.defvjp(
    lambda x: (elementwise(x), x), lambda x, ct: (ct * (1 - jnp.tanh(x) ** 2),)
)


@jax.custom_jvp
def with_forward_rule(x):
    return elementwise(x)


@with_forward_rule.defjvp
def _(primals, tangents):
    y = elementwise(primals[0])
    return y, tangents[0] * (1 - y**2)


def run_on_references(x):
    def body(references):
        source, out = references

        def step(i, _):
            out[...] = out[...] + jnp.tanh(source[...]) / 2
            return 0

        jax.lax.fori_loop(0, 2, step, 0)

    return pl.run_state(body)((x, jnp.zeros_like(x)))[1]


_KERNELS = elementwise, with_a_loop, on_a_grid, with_forward_rule, with_reverse_rule
ACTIVATIONS = {f.__name__: f for f in _KERNELS}
TANGENTS = [(fwdgrad.Normal(), 1), (fwdgrad.LowRank(), 3), (fwdgrad.BlockSparse(), 2)]


def loss_with(activation, params, x):
    return jnp.mean((activation(x @ params["w"]) @ params["u"]) ** 2)


def loss_in_a_loop(activation, params, x):
    def body(h, _):
        return activation(h @ params["u"]), None

    return jnp.mean(jax.lax.scan(body, x @ params["w"], None, 2)[0] ** 2)


# JAX's rule for kernels fails if one operand has a tangent and another has none, as x here.
def loss_with_product(product, params, x):
    return jnp.mean((jnp.tanh(product(x, params["w"])) @ params["u"]) ** 2)


LOSSES = {
    **{
        name: (partial(loss_with, f), partial(loss_with, jnp.tanh))
        for name, f in ACTIVATIONS.items()
    },
    "loop": (partial(loss_in_a_loop, elementwise), partial(loss_in_a_loop, jnp.tanh)),
    "product": (partial(loss_with_product, product), partial(loss_with_product, jnp.matmul)),
}
# A loss that JAX cannot map over examples.
RUN_STATE = partial(loss_with, run_on_references), partial(loss_with, jnp.tanh)


@pytest.mark.parametrize("tangents, num_tangents", TANGENTS, ids=repr)
@pytest.mark.parametrize("name", [*LOSSES, "run_state"])
def test_the_estimate_is_that_of_the_loss_without_a_kernel(name, tangents, num_tangents, key):
    loss, plain = (LOSSES | {"run_state": RUN_STATE})[name]
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=tangents, num_tangents=num_tangents
    )
    drawn = value_and_grad.draw(key, PARAMS, X).tangents
    v = jax.tree.unflatten(jax.tree.structure(PARAMS), [dense(each) for each in drawn])
    value, grad = jax.jit(value_and_grad)(key, PARAMS, X)
    slopes = jax.vmap(lambda v: jax.jvp(lambda p: plain(p, X), (PARAMS,), (v,))[1])(v)
    expected = jax.tree.map(lambda v: jnp.tensordot(slopes, v, 1) / num_tangents, v)
    np.testing.assert_allclose(value, plain(PARAMS, X), rtol=1e-5)
    assert_same(grad, expected)


@pytest.mark.parametrize("activation", [*ACTIVATIONS.values(), run_on_references])
def test_products_around_a_kernel_keep_factors(activation):
    params = {"w": normal(0, (6, 5)), "u": normal(1, (5, 4))}
    explanation = fwdgrad.explain(partial(loss_with, activation), params, normal(2, (N, 6)))
    assert not explanation.why_whole
    for leaf in explanation.leaves:
        assert leaf.rank == 1 and leaf.lost == ()
        assert all("dot_general" in used for used in leaf.used) and leaf.used
    assert explanation.forward.operations > 0


def test_activities_with_a_loss_that_cannot_be_mapped_are_an_error(key):
    value_and_grad = fwdgrad.forward_value_and_grad(RUN_STATE[0], space=fwdgrad.Activities())
    with pytest.raises(NotImplementedError, match="Batching rule for 'run_state'") as caught:
        value_and_grad(key, PARAMS, X)
    assert "use space=Weights()" in "\n".join(caught.value.__notes__)


def test_a_kernel_loses_the_factors_that_it_reads():
    params = {"w": normal(0, (6, 5)), "u": normal(1, (5, 4))}
    explanation = fwdgrad.explain(LOSSES["product"][0], params, normal(2, (N, 6)))
    (w,) = (leaf for leaf in explanation.leaves if "w" in leaf.name)
    assert w.rank is None and "pallas_call" in w.reason and "test_kernels.py" in w.reason


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_over_all_signs_is_the_gradient_at_activities(name, space):
    loss, plain = LOSSES[name]
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), space=space
    )
    value, grad = averaged_over_signs(value_and_grad, PARAMS, (X,))
    np.testing.assert_allclose(value, plain(PARAMS, X), rtol=1e-5)
    assert_same(grad, jax.grad(plain)(PARAMS, X))


@pytest.mark.parametrize("options", [{"layerwise": True}, {"exact_last": True}], ids=repr)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_mean_over_all_signs_is_the_gradient_at_weights(name, options):
    loss, plain = LOSSES[name]
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), space=fwdgrad.Weights(**options)
    )
    _, grad = averaged_over_signs(value_and_grad, PARAMS, (X,))
    assert_same(grad, jax.grad(plain)(PARAMS, X))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_last_layer_is_exact_after_a_kernel(name):
    space = fwdgrad.Activities(exact_last=True)
    loss = LOSSES[name][0]
    sites = fwdgrad.explain(loss, PARAMS, X, tangents=fwdgrad.Normal(), space=space).sites
    exact = {site.parameters[0]: "exact" in site.kind for site in sites}
    assert exact == {"params['w']": False, "params['u']": True}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_layer_before_a_kernel_is_not_exact(name):
    """A kernel may contain layers, and has no reverse mode."""

    def loss(w, x):
        return jnp.mean(ACTIVATIONS[name](x @ w) ** 2)

    space = fwdgrad.Activities(exact_last=True)
    explanation = fwdgrad.explain(loss, PARAMS["w"], X, tangents=fwdgrad.Normal(), space=space)
    (site,) = explanation.sites
    assert "noise" in site.kind
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.Rademacher(), space=space
    )
    _, grad = averaged_over_signs(value_and_grad, PARAMS["w"], (X,))
    assert_same(grad, jax.grad(lambda w: jnp.mean(jnp.tanh(X @ w) ** 2))(PARAMS["w"]))


def test_a_custom_vjp_function_around_a_kernel_is_an_error_if_it_may_not_be_entered(key):
    value_and_grad = fwdgrad.forward_value_and_grad(
        LOSSES["with_reverse_rule"][0], enter_custom_vjp=False
    )
    with pytest.raises(TypeError, match=r"with_reverse_rule.*enter_custom_vjp=False"):
        value_and_grad(key, PARAMS, X)


def _aliased(x):
    return kernel(_tanh, x.shape, input_output_aliases={0: 0})(x)


def _with_integers(x):
    def rows(x, factor, out):
        out[...] = x[...] * factor[...]

    return kernel(rows, x.shape)(x, jnp.arange(2))


@pytest.mark.parametrize("activation", [_aliased, _with_integers])
@pytest.mark.parametrize("space", [fwdgrad.Weights(), fwdgrad.Activities()], ids=repr)
@pytest.mark.parametrize("num_tangents", [1, 3])
def test_the_error_of_a_kernel_without_a_derivative_names_it(activation, space, num_tangents, key):
    value_and_grad = fwdgrad.forward_value_and_grad(
        partial(loss_with, activation), num_tangents=num_tangents, space=space
    )
    with pytest.raises(Exception) as caught:
        value_and_grad(key, PARAMS, X)
    note = "\n".join(caught.value.__notes__)
    assert "the Pallas kernel at propagation/test_kernels.py" in note and "jax.custom_jvp" in note


def in_a_reference_outside(w):
    total = jax.new_ref(jnp.zeros((N, 2)))

    @jax.jit
    def add(y):
        def step(i, _):
            total[...] = total[...] + jnp.tanh(y) / 2
            return 0

        jax.lax.fori_loop(0, 2, step, 0)

    add(X @ w)
    return jnp.sum(total[...] ** 2)


def in_a_reference_inside(w):
    @jax.jit
    def added(y):
        total = jax.new_ref(jnp.zeros((N, 2)))

        def step(i, _):
            total[...] = total[...] + jnp.tanh(y) / 2
            return 0

        jax.lax.fori_loop(0, 2, step, 0)
        return total[...]

    return jnp.sum(added(X @ w) ** 2)


@pytest.mark.parametrize("loss", [in_a_reference_outside, in_a_reference_inside])
def test_a_loss_with_mutable_arrays_is_pushed_forward_as_a_whole(loss, key):
    """`explain` gives the reason, and activities are an error."""
    w = PARAMS["w"]
    for num_tangents in (1, 3):
        value_and_grad = fwdgrad.forward_value_and_grad(
            loss, tangents=fwdgrad.LowRank(), num_tangents=num_tangents
        )
        v = dense(value_and_grad.draw(key, w).tangents[0])
        _, grad = jax.jit(value_and_grad)(key, w)
        slopes = [jax.jvp(lambda w: jnp.sum(jnp.tanh(X @ w) ** 2), (w,), (each,))[1] for each in v]
        assert_same(grad, jnp.tensordot(jnp.stack(slopes), v, 1) / num_tangents)
    explanation = fwdgrad.explain(loss, w)
    assert explanation.why_whole == "it works with mutable arrays"
    assert explanation.leaves[0].reason == "the loss is pushed forward as a whole"
    with pytest.raises(TypeError, match="works with mutable arrays"):
        fwdgrad.forward_value_and_grad(
            lambda w, x: loss(w) + jnp.sum(x), space=fwdgrad.Activities()
        )(key, w, X)
