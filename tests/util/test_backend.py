"""Choices by backend change no tangent and no derivative, and are made in one file."""

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
    """Return the names of the primitives in the trace of a function."""
    return re.findall(r"= ([a-z_]+)\[?", str(jax.make_jaxpr(fun)(*args)))


def test_a_key_samples_the_same_tangents_on_every_backend(platform, key):
    value_and_grad = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank(rank=2))
    drawn = jax.tree.leaves(value_and_grad.draw(key, PARAMS, X).tangents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "platform", lambda: "cpu")
        expected = jax.tree.leaves(value_and_grad.draw(key, PARAMS, X).tangents)
    for found, wanted in zip(drawn, expected, strict=True):
        assert found.dtype == wanted.dtype and bool(jnp.all(found == wanted))


def test_the_directional_derivatives_are_those_of_jvp_on_every_backend(platform, key):
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


def test_only_the_cpu_runs_shifted_planes_and_lookups(platform, key):
    """On every other backend one convolution for each product of the rule."""
    value_and_grad = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank())
    drawing = primitives_of(value_and_grad.draw, key, PARAMS, X)
    drawn = value_and_grad.draw(key, PARAMS, X)
    pushing = primitives_of(value_and_grad.along, drawn, PARAMS, X)
    is_cpu = platform == "cpu"
    assert ("gather" in drawing) == is_cpu
    assert ("pad" in pushing) == is_cpu
    assert pushing.count("conv_general_dilated") == 2


def test_the_default_device_selects_the_backend():
    assert backend.platform() == jax.default_backend()
    with jax.default_device(jax.devices("cpu")[0]):
        assert backend.platform() == "cpu"
    with jax.default_device("cpu"):
        assert backend.choices() is backend.CPU


def test_options_of_other_platforms_are_left_out(platform):
    options = {f"xla_{name}_x": name for name in PLATFORMS} | {"xla_x": "all"}
    assert backend.compiler_options(options) == {f"xla_{platform}_x": platform, "xla_x": "all"}
    assert backend.compiler_options(None) == {}


def test_one_file_asks_for_the_backend():
    """Besides batched factorisations, which the CPU cannot run, and the layout of equations."""
    asking = re.compile(r"default_backend|\.platform\b|lax\.platform_dependent")
    files = [path for name in LIBRARY for path in (ROOT / name.replace(".", "/")).rglob("*.py")]
    found = {path.name for path in files if asking.search(path.read_text())}
    assert found == {"backend.py", "batched_linalg.py", "layouts.py"}
