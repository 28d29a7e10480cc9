"""What is faster on one backend is chosen there alone, and changes no number."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.tangents.forms import dense
from fwdgrad.util import backend
from tests.oracle import normal
from tests.test_architecture import LIBRARY, ROOT

PLATFORMS = ["cpu", "gpu", "tpu"]


def loss(params, x):
    y = jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.mean(jnp.sin(y) @ params["w"])


PARAMS = {"kernel": normal(0, (3, 3, 16, 24)), "w": normal(1, (24, 20))}
X = normal(2, (2, 7, 7, 16))


@pytest.fixture(params=PLATFORMS)
def platform(request, monkeypatch):
    monkeypatch.setattr(backend, "platform", lambda: request.param)
    return request.param


def primitives_of(fun, *args):
    return re.findall(r"= ([a-z_]+)\[?", str(jax.make_jaxpr(fun)(*args)))


def test_the_tangents_of_a_key_are_the_same_everywhere(platform, key):
    value_and_grad = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank(rank=2))
    drawn = jax.tree.leaves(value_and_grad.draw(key, PARAMS, X).tangents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "platform", lambda: "cpu")
        expected = jax.tree.leaves(value_and_grad.draw(key, PARAMS, X).tangents)
    for found, wanted in zip(drawn, expected, strict=True):
        assert found.dtype == wanted.dtype and bool(jnp.all(found == wanted))


def test_the_derivative_is_right_everywhere(platform, key):
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.LowRank(), num_tangents=2
    )
    v = [dense(x) for x in value_and_grad.draw(key, PARAMS, X).tangents]
    _, grad = jax.jit(value_and_grad)(key, PARAMS, X)

    @jax.jit
    @jax.vmap
    def derivatives(*v):
        return jax.jvp(lambda p: loss(p, X), (PARAMS,), (dict(zip(PARAMS, v, strict=True)),))[1]

    for leaf, name in zip(v, PARAMS, strict=True):
        expected = jnp.tensordot(derivatives(*v), leaf, 1) / 2
        np.testing.assert_allclose(grad[name], expected, rtol=1e-3, atol=1e-5)


def test_the_plain_forms_run_elsewhere(platform, key):
    """One convolution for each product that the rule has, no shifted planes, no lookup."""
    value_and_grad = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank())
    drawing = primitives_of(value_and_grad.draw, key, PARAMS, X)
    drawn = value_and_grad.draw(key, PARAMS, X)
    pushing = primitives_of(value_and_grad, drawn, PARAMS, X)
    is_cpu = platform == "cpu"
    assert ("gather" in drawing) == is_cpu
    assert ("pad" in pushing) == is_cpu
    assert pushing.count("conv_general_dilated") == 2


def test_the_default_device_decides():
    assert backend.platform() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert backend.platform() == "cpu"
    with jax.default_device("cpu"):
        assert backend.choices() is backend.CPU


def test_nothing_else_in_the_library_asks_for_the_backend():
    """Only what a backend cannot run, a batch of factorisations on the CPU, asks besides."""
    asking = re.compile(r"default_backend|\.platform\b|lax\.platform_dependent")
    files = [path for name in LIBRARY for path in (ROOT / name.replace(".", "/")).rglob("*.py")]
    found = {path.name for path in files if asking.search(path.read_text())}
    assert found == {"backend.py", "batched_linalg.py", "jax_internals.py"}
