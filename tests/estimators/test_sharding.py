"""On several devices: the same as on one, however parameters and examples are sharded."""

import os
import subprocess
import sys

import jax
import pytest

from tests.sweeps import thorough_but

COMMON = """
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import fwdgrad
from fwdgrad import Activities, BlockSparse, LowRank, Orthogonal, Projection, Rademacher, Sphere
from fwdgrad import Weights

def loss(params, x, y):
    h = jax.nn.relu(x @ params["w"] + params["b"]).reshape(-1, 3, 2).mean(2)
    z = jnp.tanh(h @ params["v"]) @ params["u"]
    return jnp.mean(-jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1))

key = jax.random.key(0)
normal = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
params = {"w": normal(1, 4, 6), "b": normal(2, 6), "v": normal(3, 3, 5), "u": normal(4, 5, 3)}
x, y = normal(5, 8, 4), jnp.arange(8) % 3
combinations = [
    dict(tangents=tangents, num_tangents=2, space=space, **more)
    for tangents, space, more in (
        (LowRank(), Weights(), {}),
        (BlockSparse(), Weights(True, True), {}),
        (Orthogonal(), Activities(), {}),
        (LowRank(), Activities(True, True), {"aggregation": Projection()}),
    )
]

chained = dict(
    tangents=BlockSparse(), num_tangents=2, space=Activities(True, True, chained=True)
)

def moved(tree):
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [x + normal(9, *x.shape) / 9 for x in leaves])

def assert_same(found, expected):
    compare = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(compare, found, expected)

mesh = Mesh(np.array(jax.devices()), ("d",))
"""

AUTOMATIC = """
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
of_matrix = lambda p, x: jnp.mean(jnp.tanh(x @ p["w"]) ** 2)
params, x = {"w": jnp.arange(64.0).reshape(8, 8) / 64}, normal(0, 16, 8)
for tangents in (Rademacher(), Sphere()):
    estimate = jax.jit(fwdgrad.forward_value_and_grad(of_matrix, tangents=tangents, num_tangents=2))
    value, grad = estimate(key, params, x)
    for spec in (("d",), (None, "d")):
        assert_same(estimate(key, {"w": put(params["w"], *spec)}, put(x, "d")), (value, grad))
"""

EXPLICIT = """
explicit = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
sharded = lambda tree, *spec: jax.tree.map(lambda x: jax.device_put(x, P(*spec)), tree)
for chosen in [*combinations, chained]:
    estimate = fwdgrad.forward_value_and_grad(loss, **chosen)
    has_guess = chosen is chained or chosen["space"] == Activities(True, True)
    estimate = estimate.guided() if has_guess else estimate
    guided = moved(estimate.init(params, x, y))
    expected = jax.jit(estimate)(key, guided, x, y)
    with jax.set_mesh(explicit):
        assert_same(jax.jit(estimate)(key, guided, *sharded((x, y), "d")), expected)

# Gradients are sharded as their parameters.
rows = lambda p, x: jnp.mean(jnp.tanh(p["w"] @ x) ** 2)
params, x = {"w": normal(6, 8, 4)}, normal(7, 4, 3)
for tangents in (Rademacher(), LowRank()):
    estimate = jax.jit(fwdgrad.forward_value_and_grad(rows, tangents=tangents))
    expected = estimate(key, params, x)
    with jax.set_mesh(explicit):
        value, grad = estimate(key, sharded(params, "d"), x)
    assert_same((value, grad), expected)
    assert grad["w"].sharding.spec == P("d", None)
"""

# Every device has a key of its own: the estimate of the parameters, which they share, is the sum of
# theirs, and that of a guess the mean.
MANUAL = """
def over_devices(step):
    specs = (P("d"), P(), P("d"), P("d"))
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P()))

keys = jax.random.split(key, 4)
parts = x.reshape(4, 2, 4), y.reshape(4, 2)
for chosen, guided in [
    *((chosen, False) for chosen in combinations),
    ({"space": Activities(exact_last=True)}, True),
    ({}, True),
    (chained, True),
][part::2]:
    estimate = fwdgrad.forward_value_and_grad(loss, **chosen)
    estimate = estimate.guided() if guided else estimate
    at = moved(estimate.init(params, x, y))

    def own(keys, at, x, y):
        value, grad = estimate(keys[0], at, x, y)
        return jax.lax.pmean(value, "d"), grad

    value, grad = jax.jit(jax.vmap(estimate, (0, None, 0, 0)))(keys, at, *parts)
    sums, means = [jax.tree.map(lambda x: f(x, 0), grad) for f in (jnp.sum, jnp.mean)]
    expected = sums if not guided else fwdgrad.Guided(sums.params, means.guess)
    assert_same(over_devices(own)(keys, at, x, y), (value.mean(), expected))

# From values alone, too.
for make in (fwdgrad.spsa_value_and_grad, fwdgrad.evolution_value_and_grad)[part::2]:
    estimate = make(loss, num_tangents=2)

    def own(keys, params, x, y):
        value, grad = estimate(keys[0], params, x, y)
        return jax.lax.pmean(value, "d"), grad

    value, grad = jax.jit(jax.vmap(estimate, (0, None, 0, 0)))(keys, params, *parts)
    expected = value.mean(), jax.tree.map(lambda x: x.sum(0), grad)
    found = over_devices(own)(keys, params, x, y)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-2), found[1], expected[1])

# What would be wrong is refused.
def refused(step, message):
    try:
        over_devices(step)(keys, params, x, y)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)

def sharded_without_own_keys(keys, params, x, y):
    params = jax.tree.map(lambda p: jax.lax.pcast(p, "d", to="varying"), params)
    return jax.lax.pmean(fwdgrad.forward_value_and_grad(loss)(key, params, x, y), "d")

def mean_of_all(params, x, y):
    return jax.lax.pmean(loss(params, x, y), "d")

def a_loss_that_communicates(keys, params, x, y):
    return fwdgrad.forward_value_and_grad(mean_of_all, space=Activities())(key, params, x, y)

def drawn_without_own_keys(keys, params, x, y):
    params = jax.tree.map(lambda p: jax.lax.pcast(p, "d", to="varying"), params)
    estimate = fwdgrad.forward_value_and_grad(loss)
    return jax.lax.pmean(estimate.along(estimate.draw(key, params, x, y), params, x, y), "d")

refused(drawn_without_own_keys, "params['b'] varies by device along the mesh axis 'd'")
refused(sharded_without_own_keys, "params['b'] varies by device along the mesh axis 'd'")
refused(a_loss_that_communicates, "Take the mean over devices outside of fun")
"""

# Parameters and tangents are the same on all: the gradient is the sum over devices, as jax.grad
# has it.
MANUAL_SAME = """
def over_devices(estimate):
    def step(params, x, y):
        value, grad = estimate(key, params, x, y)
        return jax.lax.pmean(value, "d"), grad
    specs = (P(), P("d"), P("d"))
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=P()))

number = sum(x.size for x in params.values())
exact = over_devices(fwdgrad.backprop_value_and_grad(loss))(params, x, y)
assert_same(exact[1], jax.tree.map(lambda g: 4 * g, jax.grad(loss)(params, x, y)))
at_weights = {"tangents": Orthogonal(), "num_tangents": number}
at_activities = {"num_tangents": 3 + 5, "space": Activities(exact_last=True)}
for chosen in (
    at_weights,
    at_weights | {"aggregation": Projection()},
    at_activities | {"tangents": Orthogonal()},
    at_activities | {"tangents": Rademacher(), "num_tangents": 40, "aggregation": Projection()},
):
    estimate = fwdgrad.forward_value_and_grad(loss, **chosen)
    assert_same(over_devices(estimate)(params, x, y), exact)
for chosen in combinations:
    estimate = fwdgrad.forward_value_and_grad(loss, **chosen)
    over_devices(estimate)(params, x, y)

# A feedback that devices share learns from all their examples, with the sum of their scales: its
# gradient is between those of the devices.
estimate = fwdgrad.forward_value_and_grad(loss, **chained).guided()
at = moved(estimate.init(params, x, y))
parts = x.reshape(4, 2, 4), y.reshape(4, 2)
value, grad = jax.jit(jax.vmap(estimate, (None, None, 0, 0)))(key, at, *parts)
found = over_devices(estimate)(at, x, y)
assert_same(found[0], value.mean())
assert_same(found[1].params, jax.tree.map(lambda x: x.sum(0), grad.params))
for shared, own in zip(found[1].guess, grad.guess, strict=True):
    assert bool((shared >= own.min(0) - 1e-5).all() and (shared <= own.max(0) + 1e-5).all())

# The cast of parameters that are shared hides no matrix from tangents of low rank.
of_low_rank = fwdgrad.forward_value_and_grad(loss, tangents=LowRank())
forms = []

def forms_of_tangents(key, params, x, y):
    forms.extend(map(type, of_low_rank.draw(key, params, x, y).tangents))
    return loss(params, x, y), params

over_devices(forms_of_tangents)(params, x, y)
assert forms.count(fwdgrad.Factored) == 3, forms
"""


def _run(script: str) -> None:
    """Runs a script in a process with four devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    counted = "assert len(jax.devices()) == 4\nprint('compared')"
    result = subprocess.run(
        [sys.executable, "-c", f"{COMMON}\n{script}\n{counted}"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert "compared" in result.stdout


def test_sharded_parameters_and_examples():
    _run(AUTOMATIC)


@pytest.mark.thorough
@pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 2), reason="jax.grad of the loss, too, is an error there"
)
def test_a_mesh_of_explicit_axes():
    _run(EXPLICIT)


@pytest.mark.thorough
@pytest.mark.parametrize("part", thorough_but([0], [0, 1]))
def test_shard_map_with_keys_of_each_device(part):
    """Every second combination, among them the guesses at weights or those at activities."""
    _run(f"part = {part}\n{MANUAL}")


@pytest.mark.thorough
def test_shard_map_with_what_is_the_same_on_all_devices():
    _run(MANUAL_SAME)
