"""MuJoCo's MJX, where reverse mode cannot go: a hopper with ground contact and a policy.

The solver loops until it has converged, so `jax.grad` raises, and forward mode is the only exact
derivative. In float64: the motion is chaotic, so that in single precision differences of the loss
say nothing about its slope.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.core.forms import dense

mujoco = pytest.importorskip("mujoco")
mjx = pytest.importorskip("mujoco.mjx")

NUM_STEPS, NUM_PARAMETERS = 50, 4864
# Without tendons, whose operands have no entries.
HOPPER = """
<mujoco>
  <option timestep="0.008" iterations="4" ls_iterations="8" solver="Newton">
    <flag eulerdamp="disable"/>
  </option>
  <worldbody>
    <geom name="floor" type="plane" size="10 10 1" condim="3"/>
    <body name="torso" pos="0 0 1.1">
      <joint type="slide" axis="1 0 0"/>
      <joint type="slide" axis="0 0 1"/>
      <joint type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 .15 0 0 -.15" size=".05" contype="0" conaffinity="0"/>
      <body name="thigh" pos="0 0 -.2">
        <joint name="hip" type="hinge" axis="0 -1 0" range="-150 0" damping="1"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.4" size=".05" contype="0" conaffinity="0"/>
        <body name="leg" pos="0 0 -.45">
          <joint name="knee" type="hinge" axis="0 -1 0" range="-150 0" damping="1"/>
          <geom type="capsule" fromto="0 0 0 0 0 -.4" size=".04" contype="0" conaffinity="0"/>
          <body name="foot" pos=".05 0 -.42">
            <joint name="ankle" type="hinge" axis="0 -1 0" range="-45 45" damping="1"/>
            <geom type="capsule" fromto="-.1 0 0 .15 0 0" size=".06" friction="2 .1 .1"/>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="hip" gear="40"/>
    <motor joint="knee" gear="40"/>
    <motor joint="ankle" gear="20"/>
  </actuator>
</mujoco>
"""


@pytest.fixture
def hopper(x64):
    """The parameters of a policy, its loss over some steps, and the number of contacts."""
    model = mujoco.MjModel.from_xml_string(HOPPER)
    device_model, start = mjx.put_model(model), mjx.make_data(model)
    num_observed = model.nq + model.nv
    shapes = {
        "mean": (num_observed,), "w1": (num_observed, 64), "b1": (64,), "w2": (64, 60),
        "w3": (60, model.nu),
    }  # fmt: skip
    draws = np.random.default_rng(0)
    params = {
        name: jnp.asarray(draws.normal(size=shape) * (0.15 if len(shape) == 2 else 0.0))
        for name, shape in sorted(shapes.items())  # in the order of leaves
    }

    def policy(params, observed):
        hidden = jnp.tanh((observed - params["mean"]) @ params["w1"] + params["b1"])
        return jnp.tanh(jnp.tanh(hidden @ params["w2"]) @ params["w3"])

    def loss(params):
        def turn(state, _):
            control = policy(params, jnp.concatenate([state.qpos, state.qvel]))
            state = mjx.step(device_model, state.replace(ctrl=control))
            return state, state.qvel[0] + state.qpos[1] - 0.01 * jnp.sum(control**2)

        return -jnp.sum(jax.lax.scan(turn, start, None, NUM_STEPS)[1])

    after = mujoco.MjData(model)
    mujoco.mj_step(model, after)
    assert after.ncon >= 1 and model.opt.iterations > 1
    assert sum(x.size for x in params.values()) == NUM_PARAMETERS
    return params, loss


def test_forward_mode_goes_where_reverse_mode_cannot(hopper, key):
    params, loss = hopper
    with pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work .*while"):
        jax.jit(jax.grad(loss)).lower(params)

    number = 2
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.LowRank(), num_tangents=number
    )
    value, grad = jax.jit(value_and_grad)(key, params)
    drawn = [dense(v) for v in value_and_grad.draw(key, params).tangents]
    along = [dict(zip(params, each, strict=True)) for each in zip(*drawn, strict=True)]
    compiled = jax.jit(loss)
    pushed = jax.jit(lambda v: jax.jvp(loss, (params,), (v,)))
    derivatives = [pushed(v)[1] for v in along]
    np.testing.assert_allclose(value, compiled(params), rtol=1e-9)
    for name, found in grad.items():
        expected = sum(d * v[name] for d, v in zip(derivatives, along, strict=True)) / number
        np.testing.assert_allclose(found, expected, atol=1e-7 * np.abs(expected).max())

    h = 1e-6
    for d, v in zip(derivatives, along, strict=True):
        ahead, behind = (
            compiled({name: x + sign * h * v[name] for name, x in params.items()})
            for sign in (1, -1)
        )
        np.testing.assert_allclose(d, (ahead - behind) / (2 * h), rtol=1e-2)


def test_factors_are_kept_through_the_policy(hopper):
    """The policy's products are inside of the scan over steps, and use the factors in each."""
    params, loss = hopper
    explanation = fwdgrad.explain(loss, jax.eval_shape(lambda: params))
    leaves = {leaf.name: leaf for leaf in explanation.leaves}
    for name in ("w1", "w2"):
        leaf = leaves[f"params['{name}']"]
        assert leaf.rank == 1 and leaf.used and not leaf.lost, leaf
    assert explanation.backprop is None and explanation.forward is not None
