"""Controls of `small_rates` by hand, its paths against `train`, and verdicts that refute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from experiments.common import alone, from_config
from experiments.common.curvature import curvature
from experiments.paper import small_rates
from experiments.paper.small_rates_controls import (
    noisy_value_and_grad,
    sgd_with_grown_norms,
    sgd_with_held_norms,
)
from experiments.paper.small_rates_path import Stages, follow
from experiments.paper.small_rates_predictions import (
    COLUMNS,
    PREDICTIONS,
    RATE_COLUMNS,
    checked,
    read_paths,
)
from fwdgrad.problems import MLP
from fwdgrad.records import read_table, write_json, write_table
from fwdgrad.training import first_params
from tests.sweeps import thorough_but

from .test_figures import check, drawn  # noqa: F401

GRADIENT = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([0.5])}


def linear(params, batch):
    """A loss whose gradient is `GRADIENT` everywhere."""
    products = jax.tree.map(lambda p, g: jnp.sum(p * g), params, GRADIENT)
    return sum(jax.tree.leaves(products)) + 0 * batch


@pytest.mark.parametrize("drift", [None, 1.0, 0.0])
def test_independent_noise_has_the_moments_of_the_estimate(drift):
    """None: the estimate itself. Its covariance is ‖∇f‖² I + ∇f ∇fᵀ."""
    estimator = (
        fwdgrad.forward_value_and_grad(linear, tangents=fwdgrad.Normal())
        if drift is None
        else noisy_value_and_grad(linear, drift=drift)
    )
    n = 40_000
    keys = jax.random.split(jax.random.key(0), n)
    params = jax.tree.map(jnp.ones_like, GRADIENT)
    values, grads = jax.jit(jax.vmap(lambda key: estimator(key, params, jnp.zeros(()))))(keys)
    np.testing.assert_allclose(values, float(linear(params, 0.0)), rtol=1e-6)
    draws = np.concatenate([np.asarray(grads[name]).reshape(n, -1) for name in ("w", "b")], 1)
    g = np.concatenate([GRADIENT[name].ravel() for name in ("w", "b")])
    expected = g @ g * np.eye(3) + np.outer(g, g)
    # An entry's fourth moment is at most 105 ‖g‖⁴ (of a product of two normals of one sign).
    squared = g @ g
    error = 5 * squared * (105 / n) ** 0.5
    mean = (1.0 if drift is None else drift) * g
    np.testing.assert_allclose(draws.mean(0), mean, atol=5 * (2 * squared / n) ** 0.5)
    np.testing.assert_allclose((draws - mean).T @ (draws - mean) / n, expected, atol=error)


def step_of(make_optimizer, rate=0.1):
    params = {"w": jnp.array([[3.0, 4.0]]), "zero": jnp.zeros((2, 2)), "b": jnp.array([1.0])}
    grads = {"w": jnp.array([[1.0, -2.0]]), "zero": jnp.zeros((2, 2)), "b": jnp.array([0.5])}
    optimizer = make_optimizer(rate)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    plain = jax.tree.map(lambda p, g: p - rate * g, params, grads)
    return params, grads, plain, jax.tree.map(jnp.add, params, updates)


@pytest.mark.parametrize("make_optimizer", [sgd_with_held_norms, sgd_with_grown_norms])
def test_only_the_norms_of_matrices_differ_from_those_of_sgd(make_optimizer):
    params, grads, plain, after = step_of(make_optimizer)
    np.testing.assert_allclose(after["b"], plain["b"], rtol=1e-6)
    assert not np.any(after["zero"])
    directions = [x["w"] / np.linalg.norm(x["w"]) for x in (after, plain)]
    np.testing.assert_allclose(*directions, rtol=1e-6)
    if make_optimizer is sgd_with_held_norms:
        expected = np.linalg.norm(params["w"]) ** 2
    else:  # the mean of ‖W − η(∇f + ‖∇f‖ z)‖² over z
        squared = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads))
        expected = np.linalg.norm(plain["w"]) ** 2 + plain["w"].size * 0.1**2 * squared
    np.testing.assert_allclose(np.linalg.norm(after["w"]) ** 2, expected, rtol=1e-6)


def test_curvature_of_a_quadratic_is_exact():
    a = np.array([[3.0, 1.0, 0.0], [1.0, -5.0, 2.0], [0.0, 2.0, 1.0]])
    x = {"p": jnp.array([1.0, -1.0]), "q": jnp.array([2.0])}
    flat = np.array([1.0, -1.0, 2.0])

    def loss(params):
        v = jnp.concatenate([params["p"], params["q"]])
        return v @ jnp.asarray(a) @ v / 2

    found = curvature(loss, x, lanczos=3, probes=1)
    np.testing.assert_allclose(found["sharpness"], np.linalg.eigvalsh(a)[-1], rtol=1e-5)
    np.testing.assert_allclose(found["along_gradient"], a @ flat @ a @ a @ flat, rtol=1e-5)
    # vᵀ A v of signs is the trace and ± 2 of each pair off the diagonal.
    n, off_diagonal = 2_000, 2 * (1 + 4) ** 0.5
    many = curvature(loss, x, lanczos=1, probes=n)
    np.testing.assert_allclose(many["trace"], np.trace(a), atol=5 * off_diagonal / n**0.5)


@pytest.mark.thorough
def test_the_trace_of_a_relu_network_is_that_of_gauss_and_newton():
    """So that second-order terms of isotropic noise raise the loss."""
    params, static = fwdgrad.partition(MLP((4, 3), shape=(2, 2), key=jax.random.key(0)))
    images, labels = jax.random.normal(jax.random.key(1), (5, 2, 2)), jnp.arange(5)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def logits(x):
        return jax.vmap(fwdgrad.combine(unravel(x), static))(images)

    def loss_of(z):
        return -jax.nn.log_softmax(z)[jnp.arange(5), labels].mean()

    hessian = jax.hessian(lambda x: loss_of(logits(x)))(flat)
    jacobian = jax.jacobian(logits)(flat)
    of_logits = jax.hessian(loss_of)(logits(flat))
    gauss_newton = jnp.einsum("abi,abcd,cdi->", jacobian, of_logits, jacobian)
    np.testing.assert_allclose(jnp.trace(hessian), gauss_newton, rtol=1e-4)
    assert float(gauss_newton) > 0


@pytest.mark.thorough
def test_a_path_is_that_of_train(small):
    config, _ = small("estimator=backprop", "num_steps=6", "eval_every=2")
    stages = Stages(2, 4, 6, minibatches=2, curvature_minibatches=1, lanczos=2, probes=1)
    for seed in (1, 0):  # they share a program
        config.seed = seed
        found = follow(config, stages)
        rows = [[row.step, row.valid_loss] for row in from_config.run(config).metrics]
        np.testing.assert_allclose(found["valid_loss"], rows, rtol=1e-6)
    assert [step for step, _ in found["loss"]] == [0, 4, 6]
    assert [step for step, _ in found["trace"]] == [0, 6]
    assert found["distance"][0] == [0, 0.0] and found["distance"][-1][1] > 0
    rates = 2e-4 * np.exp(-1e-4 * np.arange(6))
    np.testing.assert_allclose(found["rate_sum"][-1][1], rates.sum(), rtol=1e-5)
    np.testing.assert_allclose(found["squared_rate_sum"][1][1], (rates[:4] ** 2).sum(), rtol=1e-5)
    start = first_params(from_config.problem(config).init, config.seed)
    matrices = [x for x in jax.tree.leaves(start) if x.ndim > 1]
    norms = [found[f"norm_{i}"][0][1] for i in (1, 2)]
    np.testing.assert_allclose(norms, [jnp.linalg.norm(x) for x in matrices], rtol=1e-6)
    assert "norm_3" not in found


LINES = (
    "backprop", "forward-normal", "forward-low_rank", "backprop-noise", "noise", "backprop-grown",
    "backprop-held", "forward-low_rank-held",
)  # fmt: skip
# The advantage of each line over backprop, for two worlds: one in which the norms do it, one in
# which the direction does.
OF_NORMS = {"forward-normal": 0.5, "forward-low_rank": 0.5, "backprop-noise": 0.5,
            "backprop-grown": 0.6}  # fmt: skip
OF_DIRECTIONS = {"forward-normal": 0.5, "forward-low_rank": 0.5, "forward-low_rank-held": 0.4}
STEPS = np.arange(0, 11, 2)


def write_tables(folder, advantages, trace=50.0, seeds=3):
    """Write tables of runs whose loss falls from 2 to the exponential of minus the advantage."""
    rows = []
    for line in LINES:
        for seed in range(seeds):
            wobble = 1 + 0.01 * seed
            end = np.exp(-advantages.get(line, 0.0) * wobble)
            losses = np.full(6, 2.0) if line == "noise" else np.linspace(2, end, 6)
            fall = (2 - end * wobble) / 1e-3  # a first-order term as large as the change
            values = {
                "valid_loss": losses, "loss": losses, "rate_sum": 1e-4 * STEPS,
                "squared_rate_sum": 1e-8 * STEPS, "distance": STEPS, "norm_1": 1 + STEPS,
                "norm_2": 2 + STEPS, "squared_gradient": np.full(6, fall),
                "squared_minibatch_gradient": np.full(6, 2 * fall), "sharpness": 1 + STEPS,
                "trace": np.full(6, trace), "along_gradient": np.ones(6),
            }  # fmt: skip
            for quantity, of in values.items():
                rows += [(quantity, line, seed, *row) for row in zip(STEPS, of, strict=True)]
    order = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: (order.index(row[0]), LINES.index(row[1]), row[2]))
    write_table(folder / "small_rates.csv", COLUMNS, rows)
    rates = [
        (line, rate, seed, loss, 0.9)
        for line, losses in (("backprop", (1.9, 1.0, 0.3, 0.1)), ("forward-normal", (1.9, 0.6)))
        for rate, loss in zip((2e-5, 2e-4, 2e-3, 2e-2), losses, strict=False)
        for seed in range(seeds)
    ]
    rates += [("forward-normal", 2e-3, 0, float("nan"), float("nan"))]
    write_table(folder / "small_rates_rates.csv", RATE_COLUMNS, rates)
    information = {
        "title": "MLP", "learning_rate": 2e-4, "examples": 2, "diverged": [], "provenance": [],
        "wall_seconds": 1.0,
    }  # fmt: skip
    write_json(folder / "small_rates.json", information)


def test_the_finding_if_norms_do_it(tmp_path):
    write_tables(tmp_path, OF_NORMS)
    verdicts = [verdict for *_, verdict in checked(read_paths(tmp_path))]
    assert verdicts == ["as predicted"] * len(PREDICTIONS)
    section = small_rates.describe(tmp_path)
    assert "holds in all its predictions" in section and "is refuted in" not in section
    # Between 1.0 at 2e-4 and 0.3 at 2e-3, in logarithms: exp(-0.505) is at 2e-4 · 10^0.42.
    assert "at 2.63 times this rate" in section and "at 0.02, where its loss is 0.1" in section


def test_the_finding_if_directions_do_it(tmp_path):
    write_tables(tmp_path, OF_DIRECTIONS, trace=-50.0)
    verdicts = [verdict for *_, verdict in checked(read_paths(tmp_path))]
    assert verdicts == ["refuted", "as predicted", "refuted", "refuted", "refuted", "as predicted"]
    section = small_rates.describe(tmp_path)
    assert "is refuted in a part" in section and "holds in all" not in section
    assert "The curvature helps" in section and "directions of the estimate matter" in section


def test_nothing_is_decided_by_two_seeds(tmp_path):
    write_tables(tmp_path, OF_NORMS, seeds=2)
    assert {verdict for *_, verdict in checked(read_paths(tmp_path))} == {"not decided"}
    assert "not decided by these runs" in small_rates.describe(tmp_path)


@pytest.mark.parametrize("seeds", thorough_but([3], [2, 3]))
def test_the_figure(drawn, tmp_path, seeds):  # noqa: F811
    write_tables(tmp_path, OF_NORMS, seeds=seeds)
    small_rates.draw(tmp_path)
    check(drawn["small_rates"])


@pytest.mark.thorough
def test_every_line_alone_and_then_all(compose, tmp_path):
    """Lines are trained one by one, as in processes of their own; then all are read back."""
    overrides = (
        "preset=smoke", f"output.root={tmp_path}", "output.progress=false",
        "experiments.small_rates.shown=null", "experiments.small_rates.seeds=[0,1]",
        "experiments.small_rates.rates.forward-low_rank=[1e-4]",
    )  # fmt: skip
    for line in LINES:
        alone.run_alone(compose("reproduce", *overrides, f"line={line}"), small_rates)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(made) == 8 * 2 + 2 and not (tmp_path / "small_rates.csv").exists()
    alone.run_alone(compose("reproduce", *overrides), small_rates)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    rows = read_table(tmp_path / "small_rates.csv")
    assert {row["estimator"] for row in rows} == {*LINES}
    last = {
        (row["quantity"], row["estimator"]): float(row["value"])
        for row in rows if row["seed"] == "0"
    }  # fmt: skip
    first = {}
    for row in rows:
        first.setdefault((row["quantity"], row["estimator"]), float(row["value"]))
    for name in ("backprop-held", "forward-low_rank-held"):
        for norm in ("norm_1", "norm_2"):
            assert last[norm, name] == pytest.approx(first[norm, name], rel=1e-5)
    assert last["norm_2", "backprop-grown"] > last["norm_2", "backprop"]
