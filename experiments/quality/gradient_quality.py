"""Cosine, bias and variance of gradient estimates, against the exact gradient."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import optax
from omegaconf import DictConfig, OmegaConf

from experiments.common import from_config
from experiments.common.unrecorded import Training
from experiments.quality.laws import expected_error, expected_squared_cosine
from fwdgrad.problems import Problem
from fwdgrad.training import first_examples, first_params, guided_optimizer
from fwdgrad.util.moments import error_moments
from fwdgrad.util.trees import Array, PyTree

_LAST_LEAVES = 2  # of the parameters: the last layer's weight and bias


def quality(
    config: DictConfig, starts: Mapping[int, PyTree], *, draws: int, guess_steps: int
) -> dict[str, list[float]]:
    """Return the quality of a config's estimator at parameters, each with its own minibatch.

    Args:
      config: a `train` config.
      starts: seed -> parameters of its model. The seed is also the seed of the draws and the
        number of the minibatch.
      draws: the number of estimates g at each start, at least 2.
      guess_steps: the number of minibatches for which a guess is learnt at these parameters
        first, if the estimator has one.

    Returns:
      Quantity -> a number for each of `starts`, an average over the draws:

        cosine           ⟨g, ∇f⟩ / ‖g‖ ‖∇f‖
        hidden_cosine    the same of all layers but the last
        squared_cosine   the square of `cosine`
        slope            ⟨g, ∇f⟩ / ‖∇f‖², 1 without bias
        error            ‖g − ∇f‖² / ‖∇f‖², the sum of bias and variance
        bias             ‖E g − ∇f‖² / ‖∇f‖², estimated without bias: it may be below zero
        variance         E‖g − E g‖² / ‖∇f‖²
        law              the error by theory, nan where it is not known
        squared_cosine_law  the squared cosine by theory
    """
    problem, size = from_config.problem(config), config.batch_size
    value_and_grad, gradient, moments = _programs(OmegaConf.to_yaml(config, resolve=True), draws)
    found: dict[str, list[float]] = {}
    for seed, at in starts.items():
        batch = minibatch(problem, size, seed)
        target = gradient(at, batch)
        guided = _with_guess(config, value_and_grad, at, batch, guess_steps)
        measured = moments(jax.random.key(seed), guided, batch, target)
        law = expected_error(config, at, batch)
        laws = {"law": law, "squared_cosine_law": expected_squared_cosine(config, law)}
        for name, x in {**measured, **laws}.items():
            found.setdefault(name, []).append(float(x))
    return found


def minibatch(problem: Problem, size: int, seed: int) -> PyTree:
    """Return the minibatch of training examples of a seed, each seed its own.

    Raises:
      ValueError: the set has too few examples.
    """
    batch = first_examples(problem.train, size, skip=seed * size)
    found = len(jax.tree.leaves(batch)[0])
    if found < size:
        raise ValueError(
            f"batch_size={size} with seed={seed} takes {(seed + 1) * size} training examples, "
            "since each seed has a minibatch of its own; the problem has fewer. Choose a smaller "
            "batch_size or seed."
        )
    return batch


@lru_cache(maxsize=1)  # the stages of a line follow one another
def _programs(config: str, draws: int) -> tuple[Any, Any, Any]:
    """Return the estimator of a `train` config, and ∇f and `_moments`, compiled once."""
    made: Any = OmegaConf.create(config)
    loss = from_config.problem(made).loss
    value_and_grad = from_config.estimator(made)(loss)
    moments = jax.jit(lambda *args: _moments(value_and_grad, draws, *args))
    return value_and_grad, jax.jit(jax.grad(loss)), moments


def _moments(
    value_and_grad: Any, draws: int, key: Array, at: PyTree, batch: PyTree, target: PyTree
) -> dict[str, Array]:
    """Return the moments of the estimate, and the cosine of all layers but the last."""
    keys = jax.random.split(key, draws)

    def draw(i: Array) -> list[Array]:
        found = value_and_grad(keys[i], at, batch)[1]
        return jax.tree.leaves(value_and_grad.params_of(found))

    hidden = {"hidden_cosine": slice(-_LAST_LEAVES)}
    return error_moments(draw, draws, jax.tree.leaves(target), hidden)


def _with_guess(
    config: DictConfig, value_and_grad: Any, params: PyTree, batch: PyTree, steps: int
) -> PyTree:
    """Return the estimator's state at the parameters, with a guess learnt there if it has one."""
    if (rate := config.estimator.get("guess_rate")) is None:
        return value_and_grad.init(params, batch)
    optimizer = guided_optimizer(optax.set_to_zero(), rate)
    learning = Training(config, init=lambda key: params, transformation=optimizer)
    learning.advance(steps)
    return learning.state.params


def trained(config: DictConfig, num_steps: int) -> PyTree:
    """Return the parameters after `num_steps` steps of a `train` config."""
    return _trained(OmegaConf.to_yaml(config, resolve=True), num_steps)


@lru_cache(maxsize=32)
def _trained(training: str, num_steps: int) -> PyTree:
    config: Any = OmegaConf.create(training)
    if num_steps == 0:  # no program of a step is needed
        return first_params(from_config.problem(config).init, config.seed)
    run = Training(config)
    run.advance(num_steps)
    return run.state.params
