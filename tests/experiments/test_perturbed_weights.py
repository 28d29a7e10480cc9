"""Perturbed weights: the law against all tangents and against draws, tables with known steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fwdgrad
from experiments.common import alone, from_config
from experiments.common.unrecorded import Training
from experiments.quality import perturbed_weights
from experiments.quality.perturbed_weights_law import (
    COLUMNS,
    LAW_COLUMNS,
    TERMS,
    follow,
    measurement,
    read,
    slowdown,
)
from fwdgrad.records import read_table, write_json, write_table
from fwdgrad.training import Programs
from tests.sweeps import thorough_but

from .test_axes import copy_with
from .test_figures import check, drawn  # noqa: F401

NAME = perturbed_weights.NAME


@pytest.mark.parametrize("num_tangents", [1, 2])
def test_the_law_is_the_mean_over_normal_tangents(num_tangents):
    """Exact: a mean of degree 4 is that over ±√3 and 0, of the weights 1/6, 1/6 and 2/3."""
    random, d = np.random.default_rng(0), 4
    g, h = random.normal(size=d), random.normal(size=(d, d))
    h += h.T + 4 * np.eye(d)
    nodes = np.array([*itertools.product([-(3**0.5), 0, 3**0.5], repeat=num_tangents * d)])
    weights = np.where(nodes == 0, 2 / 3, 1 / 6).prod(1)
    tangents = nodes.reshape(-1, num_tangents, d)
    estimates = np.einsum("nk,nkd->nd", tangents @ g, tangents) / num_tangents
    np.testing.assert_allclose(weights @ estimates, g)
    along = np.einsum("nd,de,ne->n", estimates, h, estimates)
    terms = dict(zip(TERMS, (0, g @ g, g @ h @ g, np.trace(h)), strict=True))
    assert weights @ along == pytest.approx(slowdown(terms, num_tangents) * (g @ h @ g))
    assert np.isnan(slowdown({**terms, "minibatch_curvature": 0.0}, num_tangents))


def test_the_terms_are_those_of_the_loss_and_estimates_follow_the_law(compose):
    sizes = (f"problem.{x}" for x in ("num_inputs=3", "widths=[2]", "num_examples=200"))
    config = compose("train", "problem=regression", *sizes, "batch_size=8")
    problem, probes = from_config.problem(config), 64
    params = problem.init(jax.random.key(0))
    found = measurement(config, minibatches=2, curvature_minibatches=1, probes=probes)(params)
    flat, unravel = ravel_pytree(params)
    batches = [jax.tree.map(lambda x, i=i: x[8 * i : 8 * i + 8], problem.train) for i in range(3)]
    h = np.asarray(jax.hessian(lambda x: problem.loss(unravel(x), batches[0]))(flat), float)
    one, other = (
        np.asarray(ravel_pytree(jax.grad(problem.loss)(params, batch))[0], float)
        for batch in batches[1:]
    )
    expected = {
        "squared_gradient": one @ other,
        "minibatch_square": (one @ one + other @ other) / 2,
        "minibatch_curvature": (one @ h @ one + other @ h @ other) / 2,
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-3), name
    trace, squares = np.trace(h), (h**2).sum() - (np.diag(h) ** 2).sum()
    # vᵀ H v of signs has the variance 2 Σ H_ij² over i ≠ j.
    assert float(found["trace"]) == pytest.approx(trace, abs=5 * (2 * squares / probes) ** 0.5)

    n = 4000
    estimate = fwdgrad.forward_value_and_grad(
        lambda x: problem.loss(unravel(x), batches[1]), tangents=fwdgrad.Normal()
    )
    estimates = np.asarray(
        jax.jit(lambda keys: jax.lax.map(lambda key: estimate(key, flat)[1], keys, batch_size=500))(
            jax.random.split(jax.random.key(0), n)
        ),
        float,
    )
    terms = dict(zip(TERMS, (0, one @ one, one @ h @ one, trace), strict=True))
    law = slowdown(terms, 1) * (one @ h @ one)
    # With a = uᵀ H u, b = P H u and C = P H P for u = g/‖g‖ and P = I − u uᵀ, the mean square of
    # (g·v)² vᵀ H v is ‖g‖⁴ (105 a² + 60 ‖b‖² + 30 a tr C + 3 (tr C)² + 6 tr C²).
    u = one / np.linalg.norm(one)
    p = np.eye(len(u)) - np.outer(u, u)
    a, b, c = u @ h @ u, p @ h @ u, p @ h @ p
    square = 105 * a**2 + 60 * b @ b + 30 * a * np.trace(c) + 3 * np.trace(c) ** 2
    square = (one @ one) ** 2 * (square + 6 * (c * c).sum())
    along = np.einsum("nd,nd->n", estimates @ h, estimates)
    assert along.mean() == pytest.approx(law, abs=5 * ((square - law**2) / n) ** 0.5)


def write_tables(folder, seeds=3):
    """Backprop's error is 60/√m % after m steps, M tr H/Q is 99: S_1 is 101, and S_4 is 26."""
    draw = np.random.default_rng(0)
    rows, path = [], []
    for seed in range(seeds):
        wobble = 1 + 0.01 * draw.normal()
        for m in (4, 16, 64, 256, 1024):
            rows.append(("backprop", m, seed, 0.5, 1.0, 0.5, 1 - 0.6 * m**-0.5))
            stages = [x for x in (0, 8, 32, 128, 512) if x < m]
            path += [("backprop", m, seed, step, 1.0, 3.0, 2.0, 66.0) for step in (*stages, m)]
        rows.append(("control-last-layer", 100, seed, 2.0, 1.0, 0.95, 1 - 0.04 * wobble))
        for line, n in (
            *(("weights-low_rank", n) for n in (1010, 10100)), ("weights-low_rank-4", 5000),
            ("weights-normal", 1010), ("weights-low_rank-momentum", 1010),
        ):  # fmt: skip
            error = 12 * wobble * (1010 / n) ** 0.5
            rows.append((line, n, seed, 7e-4, 1.0, 0.5, 1 - error / 100))
            path += [(line, n, seed, step, 1.0, 3.0, 2.0, 132.0) for step in (0, n)]
    write_table(folder / f"{NAME}.csv", COLUMNS, rows)
    write_table(folder / f"{NAME}_law.csv", LAW_COLUMNS, path)
    numbers = {"weights-low_rank": 1, "weights-low_rank-4": 4, "weights-normal": 1,
               "weights-low_rank-momentum": 1}  # fmt: skip
    information = {
        "num_tangents": numbers, "momentum": {"weights-low_rank-momentum": 0.9},
        "published_error": 8.6, "failed": [["weights-normal", 50]],
        "tuning": {"num_rates": 5, "seeds": [1000]}, "provenance": [], "wall_seconds": 1.0,
    }  # fmt: skip
    write_json(folder / f"{NAME}.json", information)


def test_predictions_of_tables_with_known_steps(tmp_path):
    write_tables(tmp_path)
    measured = read(tmp_path, NAME)
    one, four, sums = measured.law(1), measured.law(4), measured.sums_of_rates()
    np.testing.assert_allclose(one.values, [[404, 1616, 6464, 25856, 103424]] * 3)
    np.testing.assert_allclose(four.values, one.values * 26 / 101)
    np.testing.assert_allclose(sums.values, one.values * 0.5 / 101)
    np.testing.assert_allclose(one.errors[0], [30, 15, 7.5, 3.75, 1.875])
    errors = np.array([8.6, 30.1, 1.0])  # one between points, one before them and one beyond
    np.testing.assert_allclose(one.at(errors), [101 * (60 / 8.6) ** 2, np.nan, np.nan])

    text = perturbed_weights.describe(tmp_path)
    assert (
        "S_1 is 101; S_4 is 26." in text and "to the published 8.6 %, 4,920 with K = 1 and" in text
    )
    assert "(forward gradient, low-rank, 10,100 steps); the control has" in text
    assert "No rate works for forward gradient, dense normal with 50 steps." in text
    # At 12 % 1,010 steps of the law's 101 · 25, and 7e-4 · 1,010 of backprop's 0.5 · 25.
    (row,) = (x for x in text.splitlines() if "dense normal | 1,010" in x)
    assert "| 0.402 [" in row and "| 0.0568 [" in row and row.endswith("| 2 |")  # of three seeds
    (row,) = (x for x in text.splitlines() if "momentum | 1,010" in x)
    assert "| 0.402 [" in row and "| 0.568 [" in row
    assert text.count("| forward gradient") == 5 and text.count("| – | – | – |") == 6
    assert text.split("\n\n")[2].count(". ") == 5  # six sentences


def test_what_the_law_does_not_tell(tmp_path):
    """Without a curvature along gradients, or without backprop, there is no prediction."""
    write_tables(tmp_path)
    path = tmp_path / f"{NAME}_law.csv"
    before, rows = read(tmp_path, NAME).law(1).values, read_table(path)
    for stages in (("0", "8", "1024"), range(2000)):
        rows = [
            {**row, "minibatch_curvature": -1.0} if row["step"] in map(str, stages) else row
            for row in rows
        ]
        write_table(path, LAW_COLUMNS, [row.values() for row in rows])
        found = read(tmp_path, NAME).law(1).values  # neighbours stand for unknown stages
        np.testing.assert_allclose(found, before if len(stages) == 3 else np.nan)
    text = perturbed_weights.describe(tmp_path)
    assert "not reached by backprop's runs with K = 1" in text and "M tr H, which" not in text
    others = [x for x in read_table(tmp_path / f"{NAME}.csv") if x["line"] != "backprop"]
    write_table(tmp_path / f"{NAME}.csv", COLUMNS, [row.values() for row in others])
    assert "The law predicts" not in perturbed_weights.describe(tmp_path)


@pytest.mark.parametrize("seeds", thorough_but([3], [2, 3]))
def test_the_figure(drawn, tmp_path, seeds):  # noqa: F811
    write_tables(tmp_path, seeds=seeds)
    perturbed_weights.draw(tmp_path)
    check(drawn[NAME])


@pytest.mark.thorough
@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_the_figure_of_numbers_without_a_logarithm(drawn, tmp_path, value):  # noqa: F811
    (tmp_path / "source").mkdir()
    write_tables(tmp_path / "source")
    copy_with(value, tmp_path / "source", tmp_path, lambda stem: True)
    perturbed_weights.draw(tmp_path)
    perturbed_weights.describe(tmp_path)
    assert drawn[NAME]


@pytest.mark.thorough
def test_a_path_is_that_of_a_training(small):
    config, _ = small("estimator=backprop", "optimizer=cosine", "num_steps=5", "learning_rate=0.1")
    measure = measurement(config, minibatches=2, curvature_minibatches=1, probes=1)
    programs = Programs()
    for seed in (1, 0):
        config.seed = seed
        rows = follow(config, [2, 3, 9], measure, programs)
        assert [row[0] for row in rows] == [0, 2, 3, 5]
        training = Training(config)
        training.advance(3)
        found = measure(training.state.params)
        np.testing.assert_allclose(rows[2][1:], [float(found[x]) for x in TERMS], rtol=1e-4)


@pytest.mark.thorough
def test_lines_made_alone_are_read_back(compose, tmp_path, monkeypatch):
    """`line=NAME` makes all of a line; nothing of it is made again."""
    overrides = ("preset=smoke", f"output.root={tmp_path}", "output.progress=false")
    for line in compose("reproduce", *overrides).experiments[NAME].shown:
        alone.run_alone(compose("reproduce", *overrides, f"line={line}"), perturbed_weights)
    monkeypatch.setattr(perturbed_weights, "follow", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(
        from_config, "train_together", lambda *_, **__: pytest.fail("trained again")
    )
    alone.run_alone(compose("reproduce", *overrides), perturbed_weights)
    rows = read_table(tmp_path / f"{NAME}.csv")
    assert [(x["line"], x["num_steps"]) for x in rows] == [
        ("backprop", "4"), ("control-last-layer", "2"), ("weights-low_rank", "2")
    ]  # fmt: skip
    law = read_table(tmp_path / f"{NAME}_law.csv")
    assert [(x["line"], x["step"]) for x in law] == [
        *(("backprop", step) for step in "014"), *(("weights-low_rank", step) for step in "02")
    ]  # fmt: skip
    assert all(jnp.isfinite(float(x[name])) for x in law for name in TERMS)
    tuned = read_table(tmp_path / f"{NAME}_tuning.csv")
    assert len(tuned) == 3 * (3 + 1) and tuned[0]["estimator"] == "backprop"
