"""Train a small Flax NNX transformer by low-rank forward gradients.

Run `python examples/flax_nnx_transformer.py`. The model is used as it is: `nnx.split` gives its
parameters, a pytree, and the loss merges them again. Each matrix of weights, and each embedding,
has a tangent of rank one: `print(fwdgrad.explain(loss, params, tokens))` lists where it is used.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import fwdgrad

VOCABULARY, LENGTH, WIDTH, HEADS = 8, 12, 16, 2
BATCH, STEPS, NUM_TANGENTS = 16, 300, 32


class Block(nnx.Module):
    """Attention and an MLP, each after a normalisation and beside a residual connection."""

    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    """A language model of one block."""

    def __init__(self, rngs):
        self.tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.block = Block(rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.block(self.tokens(tokens) + self.positions(jnp.arange(LENGTH))))


def main():
    graph, params = nnx.split(Transformer(nnx.Rngs(0)))

    def loss(params, tokens):
        logits = nnx.merge(graph, params)(tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    value_and_grad = fwdgrad.forward_value_and_grad(
        loss, tangents=fwdgrad.LowRank(), num_tangents=NUM_TANGENTS
    )
    optimizer = optax.adam(1e-2)

    def step(carry, key):
        params, state = carry
        batch_key, tangent_key = jax.random.split(key)
        # Each sequence counts up from a random token: the next token follows from the last.
        start = jax.random.randint(batch_key, (BATCH, 1), 0, VOCABULARY)
        tokens = (start + jnp.arange(LENGTH)) % VOCABULARY
        value, grad = value_and_grad(tangent_key, params, tokens)
        updates, state = optimizer.update(grad, state)
        return (optax.apply_updates(params, updates), state), value

    keys = jax.random.split(jax.random.key(1), STEPS)
    train = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))
    _, values = train((params, optimizer.init(params)))
    print(
        f"cross-entropy {values[0]:.2f} before training, {values[-10:].mean():.2f} after {STEPS} "
        f"steps (the logarithm of the vocabulary's size is {jnp.log(VOCABULARY):.2f})"
    )
    assert values[-10:].mean() < 0.5 * values[0]


if __name__ == "__main__":
    main()
