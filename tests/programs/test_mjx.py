"""A policy for a hopper with contact, simulated by MuJoCo's MJX.

The contact solver loops until it converges, so the loss has no reverse mode.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.tangents.forms import dense

from .comparison import assert_same

mujoco = pytest.importorskip("mujoco")
mjx = pytest.importorskip("mujoco.mjx")

STEPS = 50
HOPPER = """
<mujoco>
  <option timestep="0.008" iterations="4" ls_iterations="8" solver="Newton"/>
  <worldbody>
    <geom type="plane" size="10 10 1"/>
    <body pos="0 0 1.1">
      <joint type="slide" axis="1 0 0"/>
      <joint type="slide" axis="0 0 1"/>
      <joint type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 .15 0 0 -.15" size=".05" contype="0" conaffinity="0"/>
      <body pos="0 0 -.2">
        <joint name="hip" type="hinge" axis="0 -1 0" damping="1"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.4" size=".05" contype="0" conaffinity="0"/>
        <body pos="0 0 -.45">
          <joint name="knee" type="hinge" axis="0 -1 0" damping="1"/>
          <geom type="capsule" fromto="0 0 0 0 0 -.4" size=".04" contype="0" conaffinity="0"/>
          <body pos=".05 0 -.42">
            <joint name="ankle" type="hinge" axis="0 -1 0" damping="1" range="-45 45"/>
            <geom type="capsule" fromto="-.1 0 0 .15 0 0" size=".06"/>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="hip" gear="40"/><motor joint="knee" gear="40"/><motor joint="ankle" gear="20"/>
  </actuator>
</mujoco>
"""


@pytest.fixture(scope="module")
def problem():
    """Return the loss of an episode, and the 4,864 parameters of a policy."""
    with jax.enable_x64(True):
        hopper = mujoco.MjModel.from_xml_string(HOPPER)
        model, start = mjx.put_model(hopper), mjx.make_data(hopper)
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = {"w0": (12, 64), "w1": (64, 60), "w2": (60, 3)}
        params = {
            name: jax.random.normal(key, shape, "float64") / np.sqrt(shape[0])
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        } | {"b": jnp.zeros(64, "float64"), "mean": jnp.zeros(12, "float64")}
    assert sum(x.size for x in params.values()) == 4864
    assert (hopper.opt.iterations, start.qpos.size + start.qvel.size) == (4, 12)

    def loss(params):
        def turn(state, _):
            observed = jnp.concatenate([state.qpos, state.qvel]) - params["mean"]
            hidden = jnp.tanh(observed @ params["w0"] + params["b"])
            control = jnp.tanh(jnp.tanh(hidden @ params["w1"]) @ params["w2"])
            state = mjx.step(model, state.replace(ctrl=control))
            touches = (state._impl.contact.dist < 0).any()
            reward = state.qvel[0] + state.qpos[1] - 0.01 * jnp.sum(control**2)
            return state, (reward, touches)

        _, (rewards, touches) = jax.lax.scan(turn, start, None, length=STEPS)
        return -jnp.sum(rewards), jnp.sum(touches)

    return loss, params


@pytest.fixture(scope="module")
def value_of(problem):
    with jax.enable_x64(True):
        return jax.jit(problem[0]).lower(problem[1]).compile()


@pytest.fixture(scope="module")
def slope_of(problem):
    loss, params = problem
    with jax.enable_x64(True):
        push = jax.jit(lambda v: jax.jvp(lambda p: loss(p)[0], (params,), (v,))[1])
        return push.lower(params).compile()


def test_the_episode_has_contact(problem, value_of):
    _, touches = value_of(problem[1])
    assert 5 < int(touches) < STEPS


def test_the_loss_has_no_reverse_mode(problem):
    loss, params = problem
    with pytest.raises(ValueError, match=r"Reverse-mode .* does not work for lax.while_loop"):
        jax.jit(jax.grad(loss, has_aux=True)).lower(params)


@pytest.mark.parametrize("num_tangents", [1, 4])
def test_the_estimate_is_that_of_jvp_and_of_differences(num_tangents, problem, value_of, slope_of):
    loss, params = problem
    key = jax.random.key(1)
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.LowRank(), num_tangents=num_tangents, has_aux=True
    )
    drawn = [dense(v) for v in value_and_grad.draw(key, params).tangents]
    each = [
        jax.tree.unflatten(jax.tree.structure(params), [v[k] for v in drawn])
        for k in range(num_tangents)
    ]
    (value, _), grad = jax.jit(value_and_grad)(key, params)
    slopes = [slope_of(v) for v in each]
    np.testing.assert_allclose(value, value_of(params)[0], rtol=1e-9)
    expected = jax.tree.map(
        lambda *v: sum(d * x for d, x in zip(slopes, v, strict=True)) / num_tangents, *each
    )
    assert_same(grad, expected)
    step = 1e-7
    for v, slope in zip(each, slopes, strict=True):
        ahead, behind = (
            value_of(jax.tree.map(lambda p, x, h=h: p + h * x, params, v))[0] for h in (step, -step)
        )
        np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=0.01)


def test_factors_are_kept_through_the_policy(problem):
    """Its matrix products are inside of the scan over steps."""
    loss, params = problem
    explanation = fwdgrad.explain(loss, jax.eval_shape(lambda: params), has_aux=True)
    leaves = {leaf.name: leaf for leaf in explanation.leaves}
    for name in ("w0", "w1"):
        leaf = leaves[f"params['{name}']"]
        assert leaf.rank == 1 and leaf.used and not leaf.lost, leaf
    assert explanation.backprop is None and explanation.forward is not None


@pytest.mark.parametrize("space", [fwdgrad.Weights(exact_last=True), fwdgrad.Activities()])
def test_activities_are_an_error_and_exact_last_finds_no_last_layer(space, problem, key):
    """The loss has no examples as arguments, and no loss function after a last layer."""
    loss, params = problem
    value_and_grad = fwdgrad.forward_value_and_grad(loss, space=space, has_aux=True)
    if isinstance(space, fwdgrad.Activities):
        with pytest.raises(ValueError, match="space=Activities"):
            value_and_grad(key, params)
    else:
        tangents = value_and_grad.draw(key, params).tangents
        assert len(tangents) == len(params)  # no gradient is exact
