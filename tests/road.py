"""The way of one traced call through the library: the files that it enters, and how often it moves.

    python -m tests.road

A move is a call or a return from one file of the library to another; functions of JAX in between do
not count. Few files and few moves are what makes a call readable.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

import fwdgrad

_LIBRARY = str(Path(fwdgrad.__file__).parent)


class Road(NamedTuple):
    """The files entered, in the order of the first time, and the number of moves."""

    files: list[str]
    moves: int


def road_of(call: Callable[[], object]) -> Road:
    """Return the way of a call; what it leaves in caches is there from the start."""
    call()
    jax.clear_caches()
    files: dict[str, None] = {}
    moves, current = 0, ""

    def profile(frame, event, _):
        nonlocal moves, current
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(_LIBRARY):
            moves += name != current
            files[name] = None
            current = name

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Road([str(Path(x).relative_to(_LIBRARY)) for x in files], moves)


def mlp(params, x, y):
    """Return the loss of a two-layer MLP."""
    return jnp.mean((jax.nn.relu(x @ params["w"] + params["b"]) @ params["v"] - y) ** 2)


PARAMS = {"w": jnp.ones((12, 16)), "b": jnp.ones(16), "v": jnp.ones((16, 10))}
ARGS = jnp.ones((8, 12)), jnp.ones((8, 10))
CALLS = {
    "LowRank": {"tangents": fwdgrad.LowRank()},
    "Activities(layerwise=True)": {"space": fwdgrad.Activities(layerwise=True)},
}


def trace(options) -> Road:
    """Return the way of a traced call of the estimator with these options."""
    estimate = fwdgrad.forward_value_and_grad(mlp, **options)
    return road_of(lambda: jax.make_jaxpr(estimate)(jax.random.key(0), PARAMS, *ARGS))


if __name__ == "__main__":
    for name, options in CALLS.items():
        found = trace(options)
        print(f"{name}: {len(found.files)} files, {found.moves} moves")
        print("   ", ", ".join(found.files))
