"""Train with optax by activity perturbation and a control variate.

Run `python examples/optax_activity_perturbation.py`. Noise enters at the pre-activations of each
example (`Activities`). The control variate, a guess of the gradient, is learned beside the
parameters; it lowers the variance and keeps the mean.
"""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import fwdgrad

SIZES, BATCH, STEPS = (8, 32, 32, 1), 64, 1000


def loss(params, x, y):
    """Return the mean over examples that do not change each other's loss, as `Activities` asks."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return jnp.mean(((x @ params[-1]["w"] + params[-1]["b"])[:, 0] - y) ** 2)


def minibatch(key):
    x = jax.random.normal(key, (BATCH, SIZES[0]))
    return x, jnp.sin(x[:, 0]) + x[:, 1] * x[:, 2]


def initial(key):
    keys = jax.random.split(key, len(SIZES) - 1)
    return [
        {"w": jax.random.normal(k, (m, n)) / m**0.5, "b": jnp.zeros(n)}
        for k, m, n in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]


value_and_grad = fwdgrad.forward_value_and_grad(
    loss,
    tangents=fwdgrad.Rademacher(),
    # Each layer's noise goes forward separately; the last layer's derivative is exact.
    space=fwdgrad.Activities(layerwise=True, exact_last=True),
).guided()
# One optimizer for the parameters, one for the guess: a step of least mean squares at rate 0.1.
optimizer = optax.partition(
    {"params": optax.adam(3e-3), "guess": optax.sgd(0.1)}, fwdgrad.Guided("params", "guess")
)


def step(carry, key):
    guided, state = carry
    batch_key, noise_key = jax.random.split(key)
    value, grad = value_and_grad(noise_key, guided, *minibatch(batch_key))
    updates, state = optimizer.update(grad, state)
    return (optax.apply_updates(guided, updates), state), value


def squared_error(guided, key):
    """Return the mean of ‖g − ∇f‖²/‖∇f‖² over 200 estimates g on one minibatch."""
    x, y = minibatch(key)
    exact, _ = ravel_pytree(jax.grad(loss)(guided.params, x, y))

    def of_key(key):
        _, grad = value_and_grad(key, guided, x, y)
        return jnp.sum((ravel_pytree(grad.params)[0] - exact) ** 2) / jnp.sum(exact**2)

    return jnp.mean(jax.lax.map(of_key, jax.random.split(key, 200)))


def main():
    fwdgrad.check_examples_independent(
        loss, initial(jax.random.key(0)), *minibatch(jax.random.key(1))
    )
    guided = value_and_grad.init(initial(jax.random.key(0)), *minibatch(jax.random.key(1)))
    keys = jax.random.split(jax.random.key(2), STEPS)
    train = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))
    (guided, _), values = train((guided, optimizer.init(guided)))

    before, after = values[:10].mean(), values[-10:].mean()
    without = guided._replace(guess=jax.tree.map(jnp.zeros_like, guided.guess))
    error, error_without = (jax.jit(squared_error)(x, jax.random.key(3)) for x in (guided, without))
    print(
        f"loss {before:.2f} before training, {after:.2f} after {STEPS} steps; squared error of an "
        f"estimate {error:.2f} with the learned control variate, {error_without:.2f} without"
    )
    assert after < 0.5 * before and error < error_without


if __name__ == "__main__":
    main()
