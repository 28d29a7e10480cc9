"""Claims of the figures on differentiation, checked on their tables."""

import numpy as np
import pandas as pd
import pytest

from experiments.modes import (
    estimator_error,
    expression_swell,
    jacobian_modes,
    step_sizes,
    walkthrough,
)


@pytest.fixture(scope="module")
def steps():
    return step_sizes.measure({"width": 3, "num_steps": 161, "smallest": -16})


def slope(rows, dtype, method, low, high):
    """Return the slope of log error by log step, between two steps."""
    chosen = [(s, e) for d, m, s, e in rows if (d, m) == (dtype, method) and low <= s <= high]
    assert len(chosen) >= 4
    x, y = np.log(np.array(chosen)).T
    return np.polyfit(x, y, 1)[0]


@pytest.mark.parametrize(("dtype", "eps"), [("float32", 1.2e-7), ("float64", 2.2e-16)])
@pytest.mark.parametrize(("method", "order"), [("forward", 1), ("central", 2)])
def test_truncation_and_rounding(steps, dtype, eps, method, order):
    """Error h^order to the right of the best step, ε/h to the left."""
    best = eps ** (1 / (order + 1))
    assert slope(steps, dtype, method, 4 * best, 0.2) == pytest.approx(order, abs=0.2)
    # Rounding errors are noise about their line, of which only the envelope has the slope −1.
    left = slope(steps, dtype, method, 8 * eps, best / 4)
    assert left == pytest.approx(-1, abs=0.25)


def test_automatic_and_symbolic_are_at_rounding_level(steps):
    for dtype, eps in (("float32", 1.2e-7), ("float64", 2.2e-16)):
        for method in ("automatic, forward", "automatic, reverse", "symbolic"):
            (error,) = [e for d, m, _, e in steps if (d, m) == (dtype, method)]
            assert error < 8 * eps
        smallest = min(e for d, m, _, e in steps if (d, m) == (dtype, "complex"))
        assert smallest < 8 * eps  # no subtraction, no loss
        lost = min(e for d, m, _, e in steps if (d, m) == (dtype, "central"))
        assert lost > 8 * eps


def test_symbolic_derivatives_swell_and_programs_do_not():
    rows = expression_swell.measure({"depth": 8})
    counts = {k: np.array([n for _, kind, n in rows if kind == k]) for k in expression_swell.KINDS}
    symbolic = counts["symbolic"]
    assert (symbolic[3:] > 1.8 * symbolic[2:-1]).all()  # doubles with each layer, or more
    # Once what repeats is found again, of each layer what all before it have: a square.
    assert np.diff(counts["shared"], n=2)[2:].max() <= 5
    for mode in ("forward", "reverse"):
        growth = np.diff(counts[mode])
        assert (growth == growth[0]).all() and growth[0] < 20
    assert counts["shared"][-1] < symbolic[-1] / 10


@pytest.mark.thorough
def test_columns_for_tall_and_rows_for_wide():
    """By operations the crossing is at m = n. Time has it wherever the machine does: but columns
    are the faster at one end, and rows at the other.

    Columns take w n (n + m) products and the values, rows w m (n + m): m/n times as many, but for
    the values, which are at most one pass more for either.
    """
    sizes = [2, 16, 128]
    measured = jacobian_modes.measure({"sizes": sizes, "width": 64, "rounds": 15})
    rows = pd.DataFrame(measured, columns=[*jacobian_modes.COLUMNS])
    found = jacobian_modes.log_ratios(rows, "operations")
    for i, m in enumerate(sizes):
        for j, n in enumerate(sizes):
            low, high = np.log2(m / (n + 2)), np.log2((m + 2) / n)
            assert low - 0.2 < found[i, j] < high + 0.2  # activations are not counted here
    np.testing.assert_allclose(np.diag(found), 0, atol=0.5)
    assert (np.diff(found, axis=0) > 0).all() and (np.diff(found, axis=1) < 0).all()
    times = jacobian_modes.log_ratios(rows)  # log₂ of rows over columns
    assert times[0, -1] < 0 < times[-1, 0]
    memory = rows.set_index(["inputs", "outputs", "method"])["temp_bytes"]
    assert memory[2, 128, "columns"] < memory[2, 128, "rows"]
    assert memory[128, 2, "rows"] < memory[128, 2, "columns"]


@pytest.mark.thorough
def test_errors_of_the_estimators_are_those_of_theory():
    """Slope −1/2 and the constants. Student's interval of the squares, at a confidence of 95 %,
    misses one in twenty; 2.5 of its half-widths do not (1e-6, in the normal approximation). Of
    d = 6 parameters the constants d + 1 and d − 1 differ by more than that. The slope is a sum of
    the logarithms with known weights, so its bound follows from theirs.
    """
    numbers = [1, 16]
    rows = estimator_error.measure({"width": 2, "numbers": numbers, "repetitions": 5000})
    x = np.log(numbers) - np.log(numbers).mean()
    for estimator, constant in (
        ("forward-normal", 7), ("forward-rademacher", 5), ("forward-sphere", 5),
        ("forward-low_rank", 5),
    ):  # fmt: skip
        chosen = [row for row in rows if row[0] == estimator]
        bounds = []
        for _, number, n, squared, low, high, theory in chosen:
            bounds.append(2.5 * (high - low) / 2)
            assert n == 5000 and theory == constant / number
            assert abs(squared - theory) < bounds[-1] < theory / 6
        squares = np.array([row[3] for row in chosen])
        slack = np.sum(np.abs(x) * np.array(bounds) / squares / 2) / np.sum(x**2)
        assert np.sum(x * np.log(squares) / 2) / np.sum(x**2) == pytest.approx(-0.5, abs=slack)


def test_walkthrough(compose, tmp_path):
    """The number is one at every layer, and the vectors are the table's."""
    walked = walkthrough.run(compose("walkthrough", f"output.root={tmp_path}"))
    text = (tmp_path / "README.md").read_text()
    products = [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| ")]
    assert len(set(products[1:])) == 1 and len(products) == 5
    product = walked.layers[2] @ walked.layers[1] @ walked.layers[0]
    np.testing.assert_allclose(walked.whole, product, rtol=1e-5)
    np.testing.assert_allclose(walked.forward.v[-1], walked.whole[:, 0], rtol=1e-5)
    np.testing.assert_allclose(walked.reverse.v[0], walked.whole[0], rtol=1e-5)
    assert (tmp_path / "walkthrough.png").exists()
