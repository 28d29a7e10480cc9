"""On several devices, with sharded parameters and examples: the same as on one."""

import subprocess
import sys

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import fwdgrad

mesh = Mesh(np.array(jax.devices()), ("d",))
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
loss = lambda p, x: jnp.mean(jnp.tanh(x @ p["w"]) ** 2)
key = jax.random.key(0)
params, x = {"w": jnp.arange(64.0).reshape(8, 8) / 64}, jax.random.normal(key, (16, 8))
for tangents in (fwdgrad.Rademacher(), fwdgrad.Sphere()):
    estimate = jax.jit(fwdgrad.forward_value_and_grad(loss, tangents=tangents, num_tangents=2))
    value, grad = estimate(key, params, x)
    for spec in (("d",), (None, "d")):
        found, sharded = estimate(key, {"w": put(params["w"], *spec)}, put(x, "d"))
        np.testing.assert_allclose(found, value, rtol=1e-6)
        np.testing.assert_allclose(sharded["w"], grad["w"], rtol=1e-5, atol=1e-6)
print(len(jax.devices()), "devices agree")
"""


def test_sharded_parameters_and_examples():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    assert "4 devices agree" in result.stdout
