"""Estimate the gradient of an Equinox model without backpropagation.

Run `python examples/equinox_three_lines.py`. The estimate has the call of `jax.value_and_grad`,
with a key in front. Backprop is called here only to compare the two.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import fwdgrad

NUM_TANGENTS = 256


def loss(model, x, y):
    return jnp.mean((jax.vmap(model)(x)[:, 0] - y) ** 2)


def main():
    model = eqx.nn.MLP(3, 1, width_size=8, depth=1, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (32, 3))
    y = jnp.sin(x @ jnp.array([1.0, -0.5, 0.25]))

    # The three lines. `eqx.filter_jit`, since the model holds a function, which is no array.
    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.LowRank(), num_tangents=NUM_TANGENTS
    )
    value, grad = eqx.filter_jit(value_and_grad)(jax.random.key(2), model, x, y)
    assert jax.tree.structure(grad) == jax.tree.structure(model)

    # The estimate is unbiased. With K tangents of d parameters its cosine with the gradient is
    # about √(K / (K + d)).
    _, exact = eqx.filter_jit(fwdgrad.backprop_value_and_grad(loss))(None, model, x, y)
    estimate, _ = ravel_pytree(fwdgrad.partition(grad)[0])
    gradient, _ = ravel_pytree(fwdgrad.partition(exact)[0])
    cosine = estimate @ gradient / jnp.linalg.norm(estimate) / jnp.linalg.norm(gradient)
    expected = (NUM_TANGENTS / (NUM_TANGENTS + gradient.size)) ** 0.5
    print(
        f"loss {value:.3f}; cosine with the gradient {cosine:.2f}, expected about {expected:.2f} "
        f"(d = {gradient.size} parameters, K = {NUM_TANGENTS} tangents)"
    )
    assert abs(cosine - expected) < 0.05


if __name__ == "__main__":
    main()
