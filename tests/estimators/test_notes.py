"""Errors of JAX that an option leads to have a note that names the option and the remedy."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import io_callback, sparse

import fwdgrad

PARAMS = {"w": jnp.ones((3, 4)), "u": jnp.ones((4, 2))}
X = jnp.ones((5, 3))
SPARSE = sparse.COO.fromdense(jnp.eye(4))


def _repeated(primals, tangents):
    """A rule for x² that goes through a loop of unknown length, which has no transpose."""
    (x,), (v,) = primals, tangents
    _, v = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 1.0), (0, v))
    return x**2, 2 * x * v


def _called_back(primals, tangents):
    (x,), (v,) = primals, tangents
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    doubled = jax.pure_callback(lambda x: 2 * x, shape, v, vmap_method="broadcast_all")
    return x**2, x * doubled


def with_rule(rule):
    square = jax.custom_jvp(lambda x: x**2)
    square.defjvp(rule)

    def loss(params, x):
        return jnp.mean(square(jnp.tanh(x @ params["w"]) @ params["u"]))

    return loss


@pytest.mark.parametrize("rule", [_repeated, _called_back])
@pytest.mark.parametrize("space", [fwdgrad.Weights, fwdgrad.Activities])
def test_a_loss_function_without_reverse_mode(space, rule, key):
    def call(**options):
        estimate = fwdgrad.forward_value_and_grad(with_rule(rule), space=space(**options))
        return estimate(key, PARAMS, X)

    with pytest.raises(Exception) as caught:
        call(exact_last=True)
    notes = "\n".join(caught.value.__notes__)
    assert f"space={space.__name__}(exact_last=True) needs reverse mode through" in notes
    assert "Leave exact_last=True out" in notes and "jax.vmap" not in notes
    expected = jnp.mean((jnp.tanh(X @ PARAMS["w"]) @ PARAMS["u"]) ** 2)
    assert jnp.allclose(call()[0], expected)  # the remedy


def ragged(params, x):
    sizes = jnp.full(1, len(x))
    return jnp.mean(lax.ragged_dot(jnp.tanh(x @ params["w"]), params["u"][None], sizes))


def ordered(params, x):
    hidden = x @ params["w"]
    io_callback(lambda _: None, None, lax.stop_gradient(hidden), ordered=True)
    return jnp.mean(hidden @ params["u"])


def coordinates(params, x):
    return jnp.mean(SPARSE @ (x @ params["w"]).T)


def of_five(params, x):
    return jnp.mean(x.reshape(5, 3) @ params["w"])


@pytest.mark.parametrize("loss", [ragged, ordered, coordinates, of_five])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_loss_that_cannot_be_mapped_over_examples(loss, transform, key):
    estimate = fwdgrad.forward_value_and_grad(loss, space=fwdgrad.Activities())
    with pytest.raises(Exception) as caught:
        transform(estimate)(key, PARAMS, X)
    notes = [note for note in caught.value.__notes__ if note.startswith("fwdgrad: ")]
    assert len(notes) == 1
    assert "space=Activities() calls fun with minibatches of one example" in notes[0]
    assert "use space=Weights()" in notes[0]
    estimate = fwdgrad.forward_value_and_grad(loss)
    if loss is not ordered:  # which has no forward mode either, in JAX
        assert jnp.isfinite(transform(estimate)(key, PARAMS, X)[0])


def test_a_distribution_that_cannot_be_mapped_over_examples(key):
    class Ordered:
        def sample(self, key, params, splits):
            io_callback(lambda _: None, None, jax.random.key_data(key), ordered=True)
            return [jnp.ones_like(x) for x in params]

    estimate = fwdgrad.forward_value_and_grad(
        lambda p, x: jnp.mean(x @ p["w"]), tangents=Ordered(), space=fwdgrad.Activities()
    )
    with pytest.raises(ValueError, match="vmap") as caught:
        estimate(key, PARAMS, X)
    assert "space=Activities() samples tangents for each example" in caught.value.__notes__[-1]


@jax.custom_gradient
def straight_through(x):
    return jnp.round(x), lambda cotangent: cotangent


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.vmap, jax.checkpoint], ids=["plain", "jit", "vmap", "remat"]
)
def test_a_custom_gradient_is_named_by_the_line_that_calls_it(wrap, key):
    def loss(w):
        return jnp.sum(wrap(straight_through)(w))  # this one

    estimate = fwdgrad.forward_value_and_grad(loss, enter_custom_vjp=False)
    line = loss.__code__.co_firstlineno + 1
    with pytest.raises(TypeError, match=rf"called at estimators/test_notes.py:{line}:\d+ .*loss"):
        estimate(key, jnp.ones(3))
