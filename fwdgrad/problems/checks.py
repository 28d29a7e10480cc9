"""The check of a user's problem, before any compiling: parameters, scores and examples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.problems.problem import Problem
from fwdgrad.util.trees import PyTree, is_differentiable
from fwdgrad.util.validation import error_note

_FEW = 3  # examples with which scores are traced


def check_problem(problem: Problem) -> None:
    """Raise TypeError or ValueError unless a problem has the parts that `Problem` describes.

    `init` and `scores` are traced with three examples; nothing is compiled. Of a loader the first
    minibatch is read. An error of the problem's own functions is raised as it is.

    >>> def scores(params, batch):
    ...     return {"loss": jnp.mean((batch @ params) ** 2)}
    >>> examples = jnp.ones((8, 2))
    >>> check_problem(Problem(lambda key: jnp.ones(2), scores, *[examples] * 3))
    Traceback (most recent call last):
    ...
    ValueError: scores(params, batch)['loss'] must be floats of shape (3,) for 3 examples, ...
    """
    sets = {name: _few(name, getattr(problem, name)) for name in ("train", "valid", "test")}
    types = {name: _types(examples) for name, examples in sets.items()}

    def traced(key: Any, batch: PyTree) -> None:
        params = problem.init(key)
        _check_floating(params)
        _check_scores(problem.scores(params, batch), jax.tree.leaves(batch)[0].shape[0])

    for name, examples in sets.items():
        if name == "train" or types[name] != types["train"]:
            found = f"An example of {name} is {types[name]}, one of train {types['train']}."
            with error_note(found):
                jax.eval_shape(traced, jax.random.key(0), examples)
    if (augment := getattr(problem, "augment", None)) is not None:
        _check_augment(augment, sets["train"])


def _few(name: str, examples: Any) -> PyTree:
    """Return the first examples of a set; raise unless its arrays share their first axis."""
    if callable(batches := getattr(examples, "batches", None)):
        first = next(iter(batches(0)), None)
        if first is None:
            raise ValueError(f"{name} must yield minibatches; found a loader that yields none.")
        examples = jax.tree.map(np.asarray, first)
    sizes = {}
    for path, x in jax.tree_util.tree_leaves_with_path(examples):
        place = f"{name}{jax.tree_util.keystr(path)}"
        if not getattr(x, "shape", ()):
            raise TypeError(
                f"{place} must be an array with examples in front; found {type(x).__name__}"
                f"{' of shape ()' if hasattr(x, 'shape') else ''}. A set is a pytree of arrays, or "
                "a fwdgrad.problems.Loader."
            )
        sizes[place] = x.shape[0]
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        found = ", ".join(f"{place}: {n}" for place, n in sizes.items()) or "no arrays"
        raise ValueError(f"{name} must have arrays with one number of examples; found {found}.")
    return jax.tree.map(lambda x: x[:_FEW], examples)


def _types(examples: PyTree, skip: int = 1) -> str:
    """Return the types of arrays as text, without the first `skip` axes: those of an example."""

    def of_one(x: Any) -> str:
        known = jax.eval_shape(lambda x: x, x)
        return f"{known.dtype}{list(known.shape[skip:])}"

    return str(jax.tree.map(of_one, examples))


def _check_floating(params: PyTree) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if not is_differentiable(x):
            raise TypeError(
                f"init(key){jax.tree_util.keystr(path)} must be a floating array; found "
                f"{getattr(x, 'dtype', type(x).__name__)}. Return the "
                "parameters alone: of a model of Equinox fwdgrad.partition(model)[0], of Flax "
                "nnx.split(model, nnx.Param, ...)[1]."
            )


def _check_augment(augment: Any, batch: PyTree) -> None:
    given = _types(batch, skip=0)
    made = _types(jax.eval_shape(augment, jax.random.key(0), batch), skip=0)
    if made != given:
        raise ValueError(
            "augment(key, batch) must return a batch of the same shapes and types, "
            f"{given}; found {made}."
        )


def _check_scores(scores: Any, number: int) -> None:
    if not isinstance(scores, dict) or "loss" not in scores:
        found = f"a dict with {', '.join(map(repr, scores))}" if isinstance(scores, dict) else None
        raise TypeError(
            "scores(params, batch) must return a dict with 'loss'; found "
            f"{found or type(scores).__name__}."
        )
    for name, x in scores.items():
        dtype = jnp.result_type(x)
        kind = "floats" if name == "loss" else "numbers"
        is_right = kind == "numbers" or jnp.issubdtype(dtype, jnp.floating)
        if jnp.shape(x) != (number,) or not is_right:
            raise ValueError(
                f"scores(params, batch)[{name!r}] must be {kind} of shape ({number},) for {number} "
                f"examples, one for each; found {dtype} of shape {jnp.shape(x)}. Take no mean over "
                "the examples."
            )
