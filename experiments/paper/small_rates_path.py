"""A training followed along its path: norms, gradients and curvature at some of its steps."""

import json
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hydra.utils import instantiate
from jax import Array
from omegaconf import DictConfig, OmegaConf

from experiments.common import from_config, problems
from experiments.common.curvature import curvature
from experiments.common.unrecorded import Training
from fwdgrad.training import Programs, first_examples, first_params
from fwdgrad.util.trees import PyTree


class Stages(NamedTuple):
    """The steps at which a path is measured, and how.

    Attributes:
      loss_every, gradient_every, curvature_every: steps between two measurements.
      minibatches: the number of minibatches that are the fixed examples of the gradient.
      curvature_minibatches: the number of those, the first, that are the examples of curvature.
      lanczos: the number of Lanczos iterations for the largest eigenvalue.
      probes: the number of random vectors for the trace.
    """

    loss_every: int
    gradient_every: int
    curvature_every: int
    minibatches: int
    curvature_minibatches: int
    lanczos: int
    probes: int


def follow(config: DictConfig, stages: Stages) -> dict[str, list[list[float]]]:
    """Return quantity -> [step, value] at the stages of a training, until a loss is not finite.

    With L the loss on the fixed examples, θ the parameters, H the Hessian of L (on fewer examples),
    and g the gradient on a minibatch:

        valid_loss          on the validation set
        loss                L
        rate_sum, squared_rate_sum   the sums of η and of η² over the steps before
        distance            ‖θ − θ₀‖
        norm_1, norm_2, …   of each matrix, in the order of the parameters
        squared_gradient    ‖∇L‖², by two halves of the examples, without the bias of their noise
        squared_minibatch_gradient   the mean of ‖g‖²
        sharpness           the largest eigenvalue of H
        trace               tr H, by random signs
        along_gradient      ∇Lᵀ H ∇L
    """
    made = from_config.problem(config)
    training = Training(config, programs=_shared(_identity(config)))
    programs = _programs(_yaml_of_problem(config), stages)
    start = first_params(made.init, config.seed)
    rates = np.concatenate([[0.0], np.cumsum(_rates(config)), np.cumsum(_rates(config) ** 2)])
    sums = rates[1:].reshape(2, -1)
    found: dict[str, list[list[float]]] = {}
    step = 0
    while True:
        params = training.state.params
        if not np.isfinite(float(training.state.loss)):
            return found
        is_last = step == config.num_steps
        has_curvature = is_last or step % stages.curvature_every == 0
        has_gradient = has_curvature or step % stages.gradient_every == 0
        values: dict[str, Any] = {}
        if has_gradient or step % stages.loss_every == 0:
            values |= programs["loss"](params)
        if has_gradient:
            before = sums[:, step - 1] if step else np.zeros(2)
            values |= dict(zip(("rate_sum", "squared_rate_sum"), before, strict=True))
            values |= programs["gradient"](params, start)
        if has_curvature:
            values |= programs["curvature"](params)
        if not np.isfinite([float(x) for x in values.values()]).all():
            return found
        for name, value in values.items():
            found.setdefault(name, []).append([step, float(value)])
        if is_last:
            return found
        every = (stages.loss_every, stages.gradient_every, stages.curvature_every)
        then = min(config.num_steps, *((step // n + 1) * n for n in every))
        training.advance(then - step)
        step = then


def _rates(config: DictConfig) -> np.ndarray:
    """Return the learning rates of all steps."""
    rate = config.optimizer.learning_rate
    schedule = instantiate(rate) if isinstance(rate, DictConfig) else lambda step: rate + 0 * step
    return np.asarray(jax.vmap(schedule)(jnp.arange(config.num_steps)), float)


def _identity(config: DictConfig) -> str:
    return json.dumps(from_config.identity_config(config), sort_keys=True)


@lru_cache(maxsize=8)  # as many as there are lines
def _shared(identity: str) -> Programs:
    """Return the compiled programs of the trainings of a line, which differ in their seeds."""
    return Programs()


def _yaml_of_problem(config: DictConfig) -> str:
    given = {key: config[key] for key in ("problem", "model", "dataset") if key in config}
    return OmegaConf.to_yaml({**given, "batch_size": config.batch_size}, resolve=True)


@lru_cache(maxsize=1)  # the lines and seeds of a comparison share them
def _programs(text: str, stages: Stages) -> dict[str, Callable[..., dict[str, Array]]]:
    config: Any = OmegaConf.create(text)
    made = problems.problem(config)
    loss, size = made.loss, config.batch_size
    examples = first_examples(made.train, stages.minibatches * size)
    of_curvature = first_examples(made.train, stages.curvature_minibatches * size)
    batched = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), examples)
    halves = [jax.tree.map(itemgetter(slice(i, None, 2)), batched) for i in (0, 1)]

    def mean_gradient(params: PyTree, batches: PyTree) -> tuple[PyTree, Array, Array]:
        """Return the mean gradient of minibatches, their mean loss, and the mean of ‖g‖²."""

        def add(total: PyTree, batch: PyTree) -> tuple[PyTree, tuple[Array, Array]]:
            value, grad = jax.value_and_grad(loss)(params, batch)
            return jax.tree.map(jnp.add, total, grad), (value, _inner(grad, grad))

        total, of_each = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), batches)
        n = of_each[0].shape[0]
        return jax.tree.map(lambda x: x / n, total), *(x.mean() for x in of_each)

    def gradient(params: PyTree, start: PyTree) -> dict[str, Array]:
        first, second = (mean_gradient(params, batches) for batches in halves)
        matrices = [x for x in jax.tree.leaves(params) if x.ndim > 1]
        difference = jax.tree.map(jnp.subtract, params, start)
        return {
            "loss": (first[1] + second[1]) / 2,
            "distance": jnp.sqrt(_inner(difference, difference)),
            **{f"norm_{i}": jnp.linalg.norm(x.ravel()) for i, x in enumerate(matrices, 1)},
            "squared_gradient": _inner(first[0], second[0]),
            "squared_minibatch_gradient": (first[2] + second[2]) / 2,
        }

    return {
        "loss": jax.jit(lambda params: {"valid_loss": loss(params, made.valid)}),
        "gradient": jax.jit(gradient),
        "curvature": jax.jit(lambda params: curvature(
            lambda x: loss(x, of_curvature), params, stages.lanczos, stages.probes)),
    }  # fmt: skip


def _inner(x: PyTree, y: PyTree) -> Array:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), x, y)
    return jnp.asarray(sum(jax.tree.leaves(products)))
