"""Losses in which each example has its own, though some look as if they mixed them."""

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from .mixing_losses import classes, cross_entropy, losses


def one_mask_for_all(w, x, y, key=jax.random.key(0)):
    """Return a loss with one mask of features, which is the same for any minibatch."""
    return losses(w, 2 * x * jax.random.bernoulli(key, 0.5, (3,)), y).mean()


def focal(w, x, y):
    found = cross_entropy(x @ w, classes(y))
    return jnp.mean((1 - jnp.exp(-found)) ** 2 * found)


def smoothed_labels(w, x, y):
    smooth = optax.losses.smooth_labels(jax.nn.one_hot(classes(y), 2), 0.1)
    return optax.losses.softmax_cross_entropy(x @ w, smooth).mean()


def valid_tokens_of_each(w, x, y):
    valid = y > 0
    return jnp.mean(((x @ w - 1) ** 2 * valid).sum(1) / jnp.maximum(valid.sum(1), 1))


def dice_of_each(w, x, y):
    p, target = jax.nn.sigmoid(x @ w), y > 0
    return jnp.mean(1 - 2 * (p * target).sum(1) / (p.sum(1) + target.sum(1)))


def group_norm(w, x, y):
    z = (x @ w).reshape(-1, 1, 2)
    return jnp.mean((jax.nn.standardize(z, axis=2).reshape(-1, 2) - y) ** 2)


def slope_penalty(w, x, y):
    slopes = jax.vmap(jax.grad(lambda x: jnp.tanh(x @ w).sum()))(x)
    return losses(w, x, y).mean() + jnp.mean(jnp.sum(slopes**2, 1))


def experts(w, x, y):
    gate = jax.nn.one_hot(classes(x @ w), 2)
    return jnp.mean((gate * (x @ w) - y) ** 2)


def loop_of_each(w, x, y):
    def halved(x):
        return jax.lax.while_loop(lambda z: jnp.abs(z).max() > 1, lambda z: z / 2, x @ w)

    return jnp.mean((jax.vmap(halved)(x) - y) ** 2)


def policy(w, x, y):
    """Return the loss of a policy by advantages that are given, at a ratio of 1."""
    log_p = -losses(w, x, y)
    return -jnp.mean(jnp.exp(log_p - stop_gradient(log_p)) * y[:, 0])


INDEPENDENT = {
    "huber": lambda w, x, y: optax.losses.huber_loss(x @ w, y).mean(),
    "penalty": lambda w, x, y: losses(w, x, y).mean() + jnp.sum(w**2),
    "sum": lambda w, x, y: losses(w, x, y).sum(),
    "pairs": lambda w, x, y: jnp.mean((x @ w - y) ** 2 + (y - x[:, :2]) ** 2),
    "sorted in each": lambda w, x, y: jnp.mean((jnp.sort(x @ w, 1) - jnp.sort(y, 1)) ** 2),
    "quantile": lambda w, x, y: jnp.maximum(0.9 * (y - x @ w), 0.1 * (x @ w - y)).mean(),
    "hinge of zeros": lambda w, x, y: jax.nn.relu(x @ w - 1e3).mean(),
    "over its own": lambda w, x, y: (losses(w, x, y) / stop_gradient(losses(w, x, y))).mean(),
    "weights of norm 1": lambda w, x, y: losses(w / jnp.linalg.norm(w), x, y).mean(),
    "largest of each": lambda w, x, y: (x @ w).max(1).mean(),
    "infinite": lambda w, x, y: losses(w, x, y).mean() + jnp.inf,
    **{
        loss.__name__.replace("_", " "): loss
        for loss in (
            one_mask_for_all, focal, smoothed_labels, valid_tokens_of_each, dice_of_each,
            group_norm, slope_penalty, experts, loop_of_each, policy,
        )
    },
}  # fmt: skip
