"""Forward and reverse mode through chains, against each other, JAX, SymPy and PyTorch."""

import itertools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdgrad.modes.chains import apply_chain, at_weights, pull_back, push_forward
from fwdgrad.modes.jacobians import jacobian, layer_jacobians
from fwdgrad.problems import CNN, MLP, DeepNetwork, LogisticRegression
from fwdgrad.problems.symbolic import evaluate, expressions, symbolic_jacobian
from tests.examples import examples
from tests.oracle import normal
from tests.sweeps import thorough_but

ACTIVATIONS = {"tanh": jnp.tanh, "sin": jnp.sin, "relu": jax.nn.relu, "square": jnp.square}


def random_chain(widths, activations, dtype):
    """Return a chain of matrices and activation functions in turn, and an input."""
    layers = []
    pairs = itertools.pairwise(widths)
    for seed, ((n, m), activation) in enumerate(zip(pairs, activations, strict=True)):
        weight = normal(seed, (m, n), dtype) / n**0.5
        layers += [lambda x, w=weight: w @ x, ACTIVATIONS[activation]]
    return layers, normal(100, (widths[0],), dtype)


chains = st.integers(1, 3).flatmap(
    lambda depth: st.tuples(
        st.lists(st.integers(1, 4), min_size=depth + 1, max_size=depth + 1),
        st.lists(st.sampled_from([*ACTIVATIONS]), min_size=depth, max_size=depth),
    )
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@examples(3, thorough=5, each_night=40)
@given(chain=chains)
def test_jacobians_by_both_modes_agree_with_jax_and_sympy(chain, dtype):
    """Columns, rows, the product of the Jacobians of the layers, and those of JAX and SymPy.

    Each entry of J^i has an error of a few ε, relative and (as 1 − tanh² cancels) absolute. The
    input x^i is rounded, and J^i is Lipschitz in it, so that adds as much. A product of N matrices
    with rows of at most m entries has N m roundings. So no entry has an error above
    8 N m ε Π (‖J^i‖ + 1), with the largest row sum as the norm.
    """
    with jax.enable_x64(True):
        layers, x = random_chain(*chain, dtype)

        whole = partial(apply_chain, layers)
        symbols, outputs = expressions(whole, len(x))
        exact = evaluate(symbolic_jacobian(symbols, outputs), symbols, np.asarray(x))

        @jax.jit
        def jacobians(x):
            return layer_jacobians(layers, x), {
                "columns": jacobian(layers, x, mode="forward"),
                "rows": jacobian(layers, x, mode="reverse"),
                "cheaper": jacobian(layers, x),
                "jacfwd": jax.jacfwd(whole)(x),
                "jacrev": jax.jacrev(whole)(x),
            }

        of_layers, found = jacobians(x)
        product, growth = np.eye(len(x)), 1.0
        for matrix in of_layers:
            product = np.asarray(matrix) @ product
            growth *= np.abs(matrix).sum(1).max() + 1
        bound = 8 * len(layers) * max(chain[0]) * np.finfo(dtype).eps * growth
        found["product"] = product
        for name, matrix in found.items():
            assert name == "product" or matrix.dtype == dtype
            np.testing.assert_allclose(matrix, exact, rtol=0, atol=bound, err_msg=name)


MODELS = {
    "logistic": (LogisticRegression, {}),
    "mlp": (MLP, {"widths": (16,)}),
    "cnn": (CNN, {"channels": 2, "width": 8}),
    "deep": (DeepNetwork, {"width": 28, "depth": 4}),  # images are minibatches to it
}


@pytest.mark.parametrize("name", thorough_but(["mlp"], MODELS))
def test_inner_products_of_tangents_and_cotangents_are_equal_at_all_layers(name, x64):
    """⟨c^i, v^i⟩ is one number along each model, also from the weights of any layer on."""
    make, sizes = MODELS[name]
    model = make(key=jax.random.key(0), **sizes)
    model = jax.tree.map(lambda x: x.astype("float64") if eqx.is_inexact_array(x) else x, model)
    layers, x = model.chain, normal(1, (28, 28), "float64")
    chains = [(layers, x)]
    for i, layer in enumerate(layers):
        if any(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(layer)):
            chains.append(at_weights(layers, x, i))
    assert len(chains) > 1
    for chain, start in chains:
        tangent = jax.tree.map(lambda a: normal(2, a.shape, a.dtype), start)
        cotangent = normal(3, jax.eval_shape(model, x).shape, "float64")
        y, _, forward = jax.jit(partial(push_forward, chain, record=True))(start, tangent)
        z, _, reverse = jax.jit(partial(pull_back, chain, record=True))(start, cotangent)
        np.testing.assert_allclose(y, z, rtol=1e-13)
        products = [inner(c, v) for c, v in zip(reverse.v, forward.v, strict=True)]
        np.testing.assert_allclose(products, products[0], rtol=1e-10)
        assert len(products) == len(chain) + 1


def inner(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_layers_with_a_minibatch_axis_push_each_example_forward():
    weight, x = normal(0, (3, 4), "float32"), normal(1, (5, 3), "float32")
    y, dy = push_forward([lambda x: x @ weight, jnp.tanh], x, jnp.ones((5, 3)))
    _, dx = pull_back([lambda x: x @ weight, jnp.tanh], x, jnp.ones((5, 4)))
    for i in range(5):
        one = [lambda x: weight.T @ x, jnp.tanh]
        np.testing.assert_allclose(dy[i], push_forward(one, x[i], jnp.ones(3))[1], rtol=1e-5)
        np.testing.assert_allclose(dx[i], pull_back(one, x[i], jnp.ones(4))[1], rtol=1e-5)
    assert y.shape == (5, 4)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_the_jacobian_by_the_weights_is_that_of_the_flattened_weights(mode, key):
    layers, x = [eqx.nn.Linear(3, 2, key=key), jnp.tanh], jnp.array([1.0, 2.0, 3.0])
    chain, weights = at_weights(layers, x, 0)
    found = jacobian(chain, weights, mode=mode)
    expected = jax.jacrev(lambda w: jnp.tanh(w.weight @ x + w.bias))(weights)
    flat = np.concatenate([expected.weight.reshape(2, -1), expected.bias.reshape(2, -1)], axis=1)
    np.testing.assert_allclose(found, flat, rtol=1e-5)


def test_layers_may_branch_on_values():
    """Outside of `jit`, as with `jax.jvp`, `jax.vjp` and `jax.jacfwd`."""
    layers, x = [lambda x: x if x.sum() > 0 else -2 * x, jnp.square], jnp.array([1.0, -3.0])
    assert push_forward(layers, x, x)[1].tolist() == [8.0, 72.0]
    assert pull_back(layers, x, jnp.ones(2))[1].tolist() == [8.0, -24.0]
    for mode in ("forward", "reverse"):
        assert jacobian(layers, x, mode=mode).tolist() == [[8.0, 0.0], [0.0, -24.0]]
    with pytest.raises(jax.errors.TracerBoolConversionError):  # JAX's own error, unchanged
        jax.jit(lambda x: push_forward(layers, x, x))(x)


def test_the_weights_of_an_embedding_with_integer_tokens_as_its_input(key):
    layers, tokens = [eqx.nn.Embedding(3, 2, key=key), jnp.square], jnp.array(1)
    chain, weights = at_weights(layers, tokens, 0)
    found = pull_back(chain, weights, jnp.ones(2))[1].weight
    np.testing.assert_allclose(found, jnp.zeros((3, 2)).at[1].set(2 * weights.weight[1]))


@pytest.mark.parametrize("mode", ["forward", "reverse", "auto"])
def test_jacobians_by_half_precision_pytree_and_empty_inputs(mode):
    found = jacobian([jnp.square], jnp.array([1.0, 2.0], jnp.bfloat16), mode=mode)
    assert found.dtype == jnp.bfloat16 and found.tolist() == [[2.0, 0.0], [0.0, 4.0]]
    of_pytree = jacobian(
        [lambda x: x["a"] * x["b"]], {"a": jnp.array([2.0]), "b": jnp.array([3.0])}, mode=mode
    )
    assert of_pytree.tolist() == [[3.0, 2.0]]
    assert jacobian([lambda x: jnp.ones(2) * x.sum()], jnp.zeros(0), mode=mode).shape == (2, 0)


@pytest.mark.parametrize(("n", "m"), [(3, 7), (7, 3)])
def test_auto_takes_the_fewer_passes(n, m):
    """Columns by forward mode for a tall matrix, rows by reverse mode for a wide one."""
    weight = jnp.ones((m, n))
    jaxpr = str(jax.make_jaxpr(lambda x: jacobian([lambda x: weight @ x], x))(jnp.ones(n)))
    assert f"f32[{min(n, m)},{min(n, m)}]" in jaxpr and f"f32[{max(n, m)},{max(n, m)}]" not in jaxpr


def _refuse(x):
    raise ValueError


MISFIT = [jnp.tanh, lambda x: jnp.ones((2, 4)) @ x]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda x: push_forward(jnp.tanh, x, x), TypeError, r"found tanh. For one function f"),
        (lambda x: push_forward([3], x, x), TypeError, r"layers\[0\] must be callable; found int"),
        (lambda x: push_forward([jnp.tanh], jnp.arange(3), x), TypeError, "x must be a real float"),
        (lambda x: push_forward([jnp.tanh], x, x[:2]), ValueError, r"v must .* of x, .*\[3\]"),
        (lambda x: pull_back([jnp.sum], x, x), ValueError, r"v must .* of the output, .*\[\]"),
        (
            lambda x: push_forward(MISFIT, x, x),
            ValueError,
            r"layers\[1\] \(<lambda>\) does not take the output of layers\[0\] \(tanh\), of shape "
            r"\(3,\): .*4.*3",
        ),
        (lambda x: jacobian(MISFIT, x), ValueError, r"layers\[1\] \(<lambda>\) does not take"),
        (lambda x: layer_jacobians(MISFIT, x), ValueError, r"layers\[1\] .* does not take"),
        (
            lambda x: pull_back([jnp.tanh, eqx.nn.Linear(4, 2, key=jax.random.key(0))], x, x[:2]),
            ValueError,
            r"layers\[1\] \(Linear\) does not take the output of layers\[0\] \(tanh\), of shape "
            r"\(3,\): .*4.*3",
        ),
        (
            lambda x: push_forward(
                [eqx.nn.Conv2d(2, 1, 3, key=jax.random.key(0))], *[jnp.ones((5, 9, 9))] * 2
            ),
            ValueError,
            r"(?s)layers\[0\] \(Conv2d\) does not take x, of shape \(5, 9, 9\): .*5 .* 2",
        ),
        (
            lambda x: push_forward([lambda x: x + jnp.ones(2)], x, x),
            ValueError,
            r"layers\[0\] \(<lambda>\) does not take x, of shape \(3,\): .*\(3,\).*\(2,\)",
        ),
        (lambda x: push_forward([_refuse], x, x), ValueError, r"\(_refuse\) .*\(3,\): ValueError$"),
        (
            lambda x: at_weights([jnp.tanh, eqx.nn.Linear(5, 2, key=jax.random.key(0))], x, 1),
            ValueError,
            r"layers\[1\] \(Linear\) does not take the output of layers\[0\] \(tanh\)",
        ),
        (lambda x: at_weights([jnp.tanh], x, 0), ValueError, r"\[0\] \(tanh\) has no weights"),
        (lambda x: at_weights([jnp.tanh], x, 1), IndexError, "index must be from -1 to 0, .* 1"),
        (lambda x: jacobian([jnp.tanh], x, mode="back"), ValueError, "mode must be one of auto"),
    ],
)
def test_invalid_arguments_are_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call(jnp.ones(3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch warns of its own functions
@pytest.mark.parametrize("widths", [(16,), (8, 12)])
def test_modes_of_the_mlp_are_those_of_pytorch(widths):
    torch = pytest.importorskip("torch")
    model = MLP(widths, key=jax.random.key(0))
    x, v, c = (normal(i, shape, "float32") for i, shape in enumerate([(28, 28), (28, 28), (10,)]))
    layers = []
    for layer in model.layers:
        linear = torch.nn.Linear(layer.in_features, layer.out_features)
        linear.weight.data = torch.tensor(np.asarray(layer.weight))
        linear.bias.data = torch.tensor(np.asarray(layer.bias))
        layers += [linear, torch.nn.ReLU()]
    network = torch.nn.Sequential(torch.nn.Flatten(0), *layers[:-1])
    primal, tangent, cotangent = (torch.tensor(np.asarray(a)) for a in (x, v, c))
    y, dy = torch.func.jvp(network, (primal,), (tangent,))
    _, pullback = torch.func.vjp(network, primal)
    found_y, found_dy = push_forward(model.chain, x, v)
    for found, expected in (
        (found_y, y), (found_dy, dy), (pull_back(model.chain, x, c)[1], pullback(cotangent)[0])
    ):  # fmt: skip
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
