"""A transformer on a text: problem._target_=examples.problems.transformer_on_text.make_problem."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.problems import Problem

POEM = "Tyger Tyger, burning bright, In the forests of the night; "  # W. Blake, 1794


def make_problem(path=None, length=16, width=16):
    """Predict the next byte by attention of one head; parameters are a dict of arrays."""
    text = Path(path).read_bytes() if path else (POEM * 99).encode()
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(text, np.uint8), length + 1)
    train, valid, test = np.split(windows[::length].astype(np.int32), [-40, -20])

    def init(key):
        sizes = {"bytes": (256, width), "places": (length, width), "qkv": (width, 3 * width)}
        sizes |= {"up": (width, 4 * width), "down": (4 * width, width), "logits": (width, 256)}
        keys = jax.random.split(key, len(sizes))
        made = {n: jax.random.normal(k, sizes[n]) for k, n in zip(keys, sizes, strict=True)}
        return {name: x / x.shape[0] ** 0.5 for name, x in made.items()}

    def loss_of(params, tokens):
        x = params["bytes"][tokens[:-1]] + params["places"]
        q, k, v = jnp.split(x @ params["qkv"], 3, axis=1)
        seen = jnp.where(jnp.tri(length, dtype=bool), q @ k.T / width**0.5, -1e9)
        x = x + jax.nn.softmax(seen) @ v
        x = x + jax.nn.gelu(x @ params["up"]) @ params["down"]
        log_p = jax.nn.log_softmax(x @ params["logits"])
        return -log_p[jnp.arange(length), tokens[1:]].mean()

    def scores(params, tokens):
        return {"loss": jax.vmap(loss_of, (None, 0))(params, tokens)}

    return Problem(init, scores, *map(jnp.asarray, (train, valid, test)))
