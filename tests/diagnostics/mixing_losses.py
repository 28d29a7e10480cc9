"""Losses that mix the examples of a minibatch."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.lax import stop_gradient

from tests.oracle import normal

N = 6
X, Y = normal(4, (N, 3)), normal(5, (N, 2))


def linen_batch_norm():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x))
            return nn.Dense(2)(nn.relu(x))

    model = Model()
    variables = model.init(jax.random.key(0), X)

    def loss(params, x, y):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        outputs, _ = model.apply(state, x, mutable=["batch_stats"])
        return jnp.mean((outputs - y) ** 2)

    return loss, variables["params"], (X, Y)


def nnx_batch_norm():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
    )
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, x, y):
        return jnp.mean((nnx.merge(graph, params, rest, copy=True)(x) - y) ** 2)

    return loss, params, (X, Y)


def equinox_batch_norm():
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(8, "batch", mode="batch")
    leaves, structure = jax.tree.flatten(state)
    first = eqx.nn.Linear(3, 8, key=jax.random.key(1))
    last = eqx.nn.Linear(8, 2, key=jax.random.key(2))

    def loss(model, x, y):
        first, norm, last = model

        def of_one(x):
            state = jax.tree.unflatten(structure, leaves)  # one may be used once
            return last(norm(first(x), state)[0])

        return jnp.mean((jax.vmap(of_one, axis_name="batch")(x) - y) ** 2)

    return loss, (first, norm, last), (X, Y)


def linen_dropout():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=False)(nn.Dense(8)(x)))

    model, key = Model(), jax.random.key(1)
    params = model.init({"params": key, "dropout": key}, X)

    def loss(params, x, y, key):
        return jnp.mean((model.apply(params, x, rngs={"dropout": key}) - y) ** 2)

    return partial(loss, key=key), params, (X, Y)


def losses(w, x, y):
    """Return the loss (n,) of each example."""
    return jnp.mean((x @ w - y) ** 2, 1)


def cross_entropy(logits, labels):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def classes(y):
    return y.argmax(1)


def batch_norm(z):
    return (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5)


def one_dropout_key(w, x, y, key=jax.random.key(0)):
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    return losses(w, jnp.where(kept, 2 * x, 0), y).mean()


def noise_by_place(w, x, y):
    """Return a loss with a key for each place in the minibatch, not for each example."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(len(x)))
    return losses(w, x + jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys), y).mean()


def ranked(w, x, y):
    score = (x @ w)[:, 0]
    order = y[:, :1] > y[:, 0]
    return jnp.mean(jnp.where(order, jax.nn.softplus(score[None] - score[:, None]), 0)) + 1


def risk_sets(w, x, y):
    """Return Cox's partial likelihood: each risk set has the examples that live longer."""
    score = (x @ w)[:, 0]
    at_risk = jnp.where(y[:, 0] >= y[:, :1], score, -1e9)
    return jnp.mean(jax.nn.logsumexp(at_risk, 1) - score)


def in_batch_negatives(w, x, y):
    """Return the symmetric contrastive loss of CLIP, with a temperature."""
    logits = (x @ w) @ y.T / 0.5
    both = cross_entropy(logits, jnp.arange(len(x))), cross_entropy(logits.T, jnp.arange(len(x)))
    return (both[0] + both[1]).mean()


def triplets(w, x, y):
    """Return a triplet loss: the other examples of a minibatch are positives or negatives."""
    z = x @ w
    distances = jnp.sum((z[:, None] - z[None]) ** 2, -1)
    same = classes(y)[:, None] == classes(y)
    positive = jnp.where(same, distances, 0).max(1)
    negative = jnp.where(same, 1e9, distances).min(1)
    return jax.nn.relu(positive - negative + 1).mean() + losses(w, x, y).mean()


def load_balanced(w, x, y):
    share = jax.nn.softmax(x @ w).mean(0)
    return losses(w, x, y).mean() + jnp.sum(share**2)


def experts_with_a_capacity(w, x, y):
    """Return a loss of experts that take the first two examples of a minibatch each."""
    gate = jax.nn.one_hot(classes(x @ w), 2)
    taken = jnp.where(jnp.cumsum(gate, 0) <= 2, gate, 0)
    return jnp.mean((taken * (x @ w) - y) ** 2)


def worst_group(w, x, y):
    members = jax.nn.one_hot(classes(y), 2)
    return (losses(w, x, y) @ members / (members.sum(0) + 1e-5)).max()


def spread(w, x, y):
    """Return a loss with the variance term of VICReg."""
    deviation = jnp.sqrt((x @ w).var(0) + 1e-4)
    return losses(w, x, y).mean() + jax.nn.relu(1 - deviation).mean()


def discrepancy(w, x, y):
    """Return the maximum mean discrepancy between outputs and targets."""

    def kernel(a, b):
        return jnp.exp(-jnp.sum((a[:, None] - b[None]) ** 2, -1)).mean()

    z = x @ w
    return kernel(z, z) + kernel(y, y) - 2 * kernel(z, y)


def dice(w, x, y):
    p, target = jax.nn.sigmoid(x @ w), y > 0
    return 1 - 2 * (p * target).sum() / (p.sum() + target.sum())


def mean_over_tokens(w, x, y):
    """Return a mean over the valid tokens of a minibatch, of which examples have unlike numbers."""
    valid = y > 0
    return ((x @ w - 1) ** 2 * valid).sum() / jnp.maximum(valid.sum(), 1)


def halves_paired(w, x, y):
    z = x @ w
    return losses(w, x, y).mean() + jnp.mean((z[::2] - z[1::2]) ** 2)


# Their values differ, too.
MIXING = {
    "batch norm": lambda w, x, y: jnp.mean((batch_norm(x @ w) - y) ** 2),
    "unbiased batch norm": lambda w, x, y: jnp.mean((x @ w / (x @ w).std(0, ddof=1) - y) ** 2),
    "stopped statistics": lambda w, x, y: losses(w, x, y + stop_gradient((x @ w).mean(0))).mean(),
    "inputs centred": lambda w, x, y: losses(w, x - x.mean(0), y).mean(),
    "temperature of the minibatch": lambda w, x, y: jnp.mean((x @ w / (x @ w).std(0)) ** 2),
    "normalised weights": lambda w, x, y: jax.nn.softmax(x[:, 0]) @ losses(w, x, y),
    "over a sum of weights": lambda w, x, y: losses(w, x, y).sum() / (y**2).sum(),
    "hardest half": lambda w, x, y: jnp.sort(losses(w, x, y))[len(x) // 2 :].mean(),
    "worst": lambda w, x, y: losses(w, x, y).max(),
    "median": lambda w, x, y: jnp.median(losses(w, x, y)),
    "sorted outputs": lambda w, x, y: jnp.mean(jnp.sort(x @ w, 0) ** 2 * jnp.sort(y, 0)),
    "cumulative": lambda w, x, y: jnp.mean((jnp.cumsum(x @ w, 0) - y) ** 2),
    "root of the mean": lambda w, x, y: jnp.sqrt(losses(w, x, y).mean()),
    "exponential of the mean": lambda w, x, y: jnp.exp(losses(w, x, y).mean()),
    "tilted": lambda w, x, y: jax.nn.logsumexp(losses(w, x, y)),
    "contrastive": lambda w, x, y: -jnp.mean(jnp.diag(jax.nn.log_softmax(x @ w @ y.T))),
    "covariance": lambda w, x, y: -jnp.sum(batch_norm(x @ w) * batch_norm(y)) / len(x),
    "sum with a prior": lambda w, x, y: losses(w, x, y).sum() + 0.5 * jnp.sum(w**2),
    "square root of n": lambda w, x, y: losses(w, x, y).sum() / len(x) ** 0.5,
    "one graph": lambda w, x, y: losses(w, jnp.roll(x, 1, 0) + x, y).mean(),
    "mixed up": lambda w, x, y: losses(w, (x + x[::-1]) / 2, (y + y[::-1]) / 2).mean(),
    **{
        loss.__name__.replace("_", " "): loss
        for loss in (
            one_dropout_key, noise_by_place, ranked, risk_sets, in_batch_negatives, triplets,
            load_balanced, experts_with_a_capacity, worst_group, spread, discrepancy, dice,
            mean_over_tokens, halves_paired,
        )
    },
}  # fmt: skip


def head_of_zeros(params, x, y):
    """Return a loss whose value at a last layer of zeros does not depend on the layers below."""
    return cross_entropy(batch_norm(x @ params["w"]) @ params["zeros"], classes(y)).mean()


def normalised_advantages(w, x, y):
    """Return the loss of a policy's first step of PPO, whose ratio of probabilities is 1."""
    log_p = -losses(w, x, y)
    advantages = batch_norm(x[:, 0]) + 1
    return -jnp.mean(jnp.exp(log_p - stop_gradient(log_p)) * advantages)


def over_its_mean(w, x, y):
    return losses(w, x, y).mean() / stop_gradient(losses(w, x, y).mean())


WITH_ZEROS = {"w": normal(0, (3, 2)), "zeros": jnp.zeros((2, 2))}
# The values agree, and the gradients do not.
HIDDEN = {
    "head of zeros": (head_of_zeros, WITH_ZEROS),
    "normalised advantages": (normalised_advantages, normal(0, (3, 2))),
    "over its own mean": (over_its_mean, normal(0, (3, 2))),
}
MODELS = {
    make.__name__: make
    for make in (linen_batch_norm, nnx_batch_norm, equinox_batch_norm, linen_dropout)
}
