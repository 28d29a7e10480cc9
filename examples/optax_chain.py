"""Train by optax with a gradient estimate as the first transformation of a chain.

Run `python examples/optax_chain.py`. The optimizer's state has the tangents' key and the loss.
"""

import jax
import jax.numpy as jnp
import optax

import fwdgrad
from fwdgrad.optax import forward_gradient


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["u"] - y) ** 2)


def main():
    optimizer = optax.chain(
        forward_gradient(0, tangents=fwdgrad.LowRank(), num_tangents=16),
        optax.clip_by_global_norm(1.0),
        optax.adam(1e-2),
    )
    x = jax.random.normal(jax.random.key(1), (64, 4))
    params = {"w": jax.random.normal(jax.random.key(2), (4, 16)) / 2, "u": jnp.zeros(16)}

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(None, state, params, value_fn=loss, x=x, y=x[:, 0])
        return (optax.apply_updates(params, updates), state), optax.tree.get(state, "value")

    start = params, optimizer.init(params)
    _, values = jax.jit(lambda carry: jax.lax.scan(step, carry, length=500))(start)
    print(f"loss {values[0]:.3f} before training, {values[-1]:.4f} after 500 steps")
    assert values[-1] < 0.1 * values[0]


if __name__ == "__main__":
    main()
