"""Losses in which parameters are used in many ways."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

import fwdgrad
from tests.oracle import normal

SPACES = {
    "joint": fwdgrad.Activities(),
    "layerwise": fwdgrad.Activities(layerwise=True),
    "exact last": fwdgrad.Activities(exact_last=True),
    "layerwise, exact last": fwdgrad.Activities(layerwise=True, exact_last=True),
    "at kernels": fwdgrad.Activities(at_kernels=True),
    "layerwise, exact last, at kernels": fwdgrad.Activities(
        layerwise=True, exact_last=True, at_kernels=True
    ),
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


def maxout():
    def loss(params, x, y):
        hidden = jax.nn.relu(x @ params["w"] + params["b"]).reshape(-1, 2, 2).max(2)
        return squared(hidden @ params["u"], y)

    params = {"w": normal(0, (3, 4)), "b": normal(1, (4,)), "u": normal(2, (2, 1))}
    return loss, params, (normal(4, (N, 3)), normal(5, (N, 1)))


def shared():
    """One layer, twice, each time pooled."""

    def loss(params, x, y):
        for _ in range(2):
            x = jnp.maximum(x @ params["w"], 0).reshape(-1, 2, 2).max(2)
        return squared(x.sum(1), y)

    return loss, {"w": normal(0, (2, 4))}, (normal(4, (N, 2)), normal(5, (N,)))


def averaged():
    """A layer at three positions, the mean of which goes on."""

    def loss(params, x, y):
        hidden = jnp.tanh(x.reshape(-1, 3, 1) @ params["w"] + params["b"]).mean(1)
        return squared(jnp.tanh(hidden @ params["u"]), y)

    params = {"w": normal(0, (1, 3)), "b": normal(1, (3,)), "u": normal(2, (3, 1))}
    return loss, params, (normal(4, (N, 3)), normal(5, (N, 1)))


def convolution():
    def loss(params, x, y):
        z = lax.conv_general_dilated(x, params["k"], (1, 1), "SAME") + params["b"][:, None, None]
        return squared(jnp.tanh(z).sum((1, 2, 3)), y)

    params = {"k": normal(0, (2, 1, 2, 2)), "b": normal(1, (2,))}
    return loss, params, (normal(2, (N, 1, 2, 2)), normal(3, (N,)))


def kernels():
    """A kernel and a scale that all pixels share, of fewer entries than they make."""

    def loss(params, x, y):
        z = lax.conv_general_dilated(x, params["k"], (1, 1), "SAME")
        h = jnp.tanh(jnp.tanh(z) * params["s"])
        return squared(h.reshape(-1, 4) @ params["u"], y)

    params = {"k": normal(0, (1, 1, 1, 1)), "s": normal(1, (1, 1, 1)), "u": normal(2, (4,))}
    return loss, params, (normal(3, (N, 1, 2, 2)), normal(4, (N,)))


def tied_kernel():
    """Two layers read one transpose: the first makes many entries of it, the other few."""
    scale = normal(5, (4, 1))

    def loss(params, x, y):
        kernel = params["k"].T
        h = jnp.tanh(x @ kernel + params["b"])
        return squared((h * scale).sum(1) @ kernel, y)

    params = {"k": normal(0, (1, 1)), "b": normal(1, (1,))}
    return loss, params, (normal(2, (N, 4, 1)), normal(3, (N, 1)))


def gated():
    """Two layers of the same input, multiplied; then a residual connection."""

    def loss(params, x, y):
        gate = jax.nn.sigmoid(x @ params["a"]) * (x @ params["b"])
        return squared((x + gate @ params["c"]).sum(1), y)

    params = {"a": normal(0, (2, 2)), "b": normal(1, (2, 2)), "c": normal(2, (2, 2))}
    return loss, params, (normal(3, (N, 2)), normal(4, (N,)))


def gated_by_one():
    """One unit multiplies all of a layer."""

    def loss(params, x, y):
        hidden = jax.nn.sigmoid(x @ params["g"]) * jnp.tanh(x @ params["w"])
        return squared(hidden @ params["u"], y)

    params = {"g": normal(0, (2, 1)), "w": normal(1, (2, 4)), "u": normal(2, (4, 1))}
    return loss, params, (normal(3, (N, 2)), normal(4, (N, 1)))


def joined():
    """Two layers meet; what they make is pooled, and multiplied by the first."""

    def loss(params, x, y):
        first = jnp.tanh(x @ params["a"])
        larger = jnp.maximum(first, x @ params["b"]).reshape(-1, 2, 2).max(2)
        return squared(larger * first[:, :2], y)

    params = {"a": normal(0, (2, 4)), "b": normal(1, (2, 4))}
    return loss, params, (normal(2, (N, 2)), normal(3, (N, 2)))


def joined_plainly():
    def loss(params, x, y):
        first = jnp.tanh(x @ params["a"])
        return squared(jnp.maximum(first, x @ params["b"]) * first, y)

    params = {"a": normal(0, (3, 2)), "b": normal(1, (3, 2))}
    return loss, params, (normal(2, (N, 3)), normal(3, (N, 2)))


def scaled_by_a_parameter():
    """A loss with a scale of its own, and a penalty, which only the addition follows."""

    def loss(params, x, y):
        penalty = 1e-1 * jnp.sum(params["w"] ** 2)
        return jnp.exp(-params["s"]) * jnp.mean(jnp.abs(x @ params["w"] - y)) + penalty

    params = {"w": normal(0, (2, 3)), "s": jnp.array(0.3)}
    return loss, params, (normal(1, (N, 2)), normal(2, (N, 3)))


def centred():
    """A function that does nothing to values but mixes their tangents."""

    @jax.custom_jvp
    def centre(x):
        return 1.0 * x

    centre.defjvp(lambda x, t: (1.0 * x[0], t[0] - t[0].mean(-1, keepdims=True)))

    def loss(params, x, y):
        return squared(jnp.tanh(centre(x @ params["w"])) @ params["u"], y)

    params = {"w": normal(0, (2, 4)), "u": normal(1, (4, 1))}
    return loss, params, (normal(2, (N, 2)), normal(3, (N, 1)))


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
            maxout, shared, averaged, convolution, kernels, tied_kernel, gated, gated_by_one,
            centred, normalised, penalised, looked_up, scanned,
            product_of_weights,
            squared_weights, derived_weights_meet_themselves, greedy, linear_loss, equinox_module,
            linear_head, fixed_layers, layers_in_one_call, joined, joined_plainly,
            scaled_by_a_parameter,
        )
    },
}  # fmt: skip
