"""Time and memory of a step of a deep network: one point of `depth_scaling`."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import fwdgrad
from experiments.common import budget
from fwdgrad.measurement import (
    Program,
    Step,
    StepProgram,
    loss_step,
    peak_bytes,
    sgd_step,
    time_in_processes,
)
from fwdgrad.problems import DeepNetwork
from fwdgrad.util.trees import Array, PyTree

ESTIMATORS = ("backprop", "backprop-checkpointed", "forward-normal", "forward-low_rank")
_NUM_BATCHES = 2  # with one alone, XLA would take the loss out of a loop of steps


def measure(config: dict[str, Any]) -> dict[str, Any]:
    """Measure a step of each estimator at one depth and minibatch size.

    Time is taken in turns in several processes, memory in a process for each estimator, or, without
    `resident`, by XLA's account of the calls that are timed.

    Args:
      config: `depth`, `width`, `batch_size`; `processes`, `rounds` and `max_seconds` as in
        `time_in_processes`; `products_per_call`, of a vector and a matrix: a small network makes
        several steps in a compiled call; `resident`, whether resident memory is measured.

    Returns:
      The result of `time_in_processes`, and `memory`: estimator -> `parameter_bytes`, `temp_bytes`
      and `total_bytes` (by XLA's account) and `peak_bytes` (resident, or None).
    """
    times = time_in_processes(
        partial(programs, config),
        ("loss", *ESTIMATORS),
        **{key: config[key] for key in ("processes", "rounds", "max_seconds")},
        go_on=budget.present().go_on,
    )
    if config.get("resident", True):
        return {**times, "memory": _in_processes(_memory, config, ESTIMATORS)}
    parameter_bytes = 4 * config["depth"] * config["width"] ** 2
    known = {"parameter_bytes": parameter_bytes, "peak_bytes": None}
    memory = {
        name: {**known, **{key: times["facts"][name][key] for key in ("temp_bytes", "total_bytes")}}
        for name in ESTIMATORS
    }
    return {**times, "memory": memory}


def programs(config: dict[str, Any], order: Sequence[str]) -> dict[str, Program]:
    """Return the program of the loss and of each estimator, compiled in this order."""
    all_steps, params, batches = steps(config)
    products = config["depth"] * config["batch_size"]
    steps_per_call = max(1, config["products_per_call"] // products)
    return {
        name: StepProgram(all_steps[name], params, batches, steps_per_call=steps_per_call).timed()
        for name in order
    }


def steps(config: dict[str, Any]) -> tuple[dict[str, Step], PyTree, Array]:
    """Return the step of the loss and of each estimator, the parameters, and minibatches."""
    width, depth = config["width"], config["depth"]
    network = DeepNetwork(width, depth, key=jax.random.key(0))
    batches = jax.random.normal(jax.random.key(1), (_NUM_BATCHES, config["batch_size"], width))
    forward = partial(fwdgrad.forward_value_and_grad, _loss)
    backprop = fwdgrad.backprop_value_and_grad
    by_name = {
        "loss": loss_step(_loss),
        "backprop": sgd_step(backprop(_loss)),
        "backprop-checkpointed": sgd_step(backprop(_checkpointed_loss)),
        "forward-normal": sgd_step(forward(tangents=fwdgrad.Normal())),
        "forward-low_rank": sgd_step(forward(tangents=fwdgrad.LowRank())),
    }
    return by_name, network, batches


def _loss(network: DeepNetwork, x: Array) -> Array:
    return jnp.mean(network(x) ** 2)


def _checkpointed_loss(network: DeepNetwork, x: Array) -> Array:
    """Return the loss with √depth segments; the backward pass keeps their ends alone.

    Chen et al., Training deep nets with sublinear memory cost (2016).
    """
    *weights, last = network.weights
    length = max(1, round(len(network.weights) ** 0.5))
    for start in range(0, len(weights), length):
        x = _checkpoint(_segment)(weights[start : start + length], x)
    return jnp.mean((x @ last) ** 2)


def _segment(weights: list[Array], x: Array) -> Array:
    for weight in weights:
        x = jax.nn.relu(x @ weight)
    return x


def _checkpoint(function: Callable[[PyTree, Array], Array]) -> Callable[[PyTree, Array], Array]:
    """Return `jax.checkpoint` of a function, in a form that XLA for CPUs does not undo.

    On a CPU XLA drops the optimization barriers that keep the second computation of a segment apart
    from the first, and merges the two: as many operations, as much memory as without. Here the
    second computation depends on the cotangent by 0 · cotangent, which XLA must not simplify, since
    0 · nan is nan.
    """
    checkpointed = jax.custom_vjp(function)

    def backward(saved: tuple[PyTree, Array], cotangent: Array) -> tuple[PyTree, Array]:
        params, x = saved
        after_cotangent = x + 0 * cotangent.ravel()[0]
        return jax.vjp(function, params, after_cotangent)[1](cotangent)

    checkpointed.defvjp(lambda params, x: (function(params, x), (params, x)), backward)
    return checkpointed


def _memory(config: dict[str, Any], name: str) -> dict[str, int | None]:
    """Return the bytes of a step: XLA's account, and resident besides parameters and minibatch."""
    all_steps, params, batches = steps(config)
    StepProgram(all_steps["loss"], params, batches)()  # what any first call allocates
    program = StepProgram(all_steps[name], params, batches)
    return {
        "parameter_bytes": sum(x.nbytes for x in jax.tree.leaves(params)),
        "temp_bytes": program.temp_bytes,
        "total_bytes": program.total_bytes,
        "peak_bytes": peak_bytes(program),
    }


def _in_processes(function: Any, config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return name -> function(config, name), each from a process that does nothing else."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share an accelerator
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        return dict(zip(names, pool.map(function, [config] * len(names), names), strict=True))
