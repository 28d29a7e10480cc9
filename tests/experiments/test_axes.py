"""Figures of tables with numbers that have no place on a logarithmic axis."""

import csv
import itertools
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import reproduce
from experiments.common import curves, style
from tests.sweeps import thorough_but

from .conftest import committed
from .timed import STEP, R, write_step_cost

# Columns that are numbered or chosen, not measured.
GIVEN = {
    "seed", "step", "num_steps", "stage", "depth", "batch_size", "width", "inputs", "outputs",
    "num_tangents", "n", "rounds", "steps_per_call", "failed_seeds", "learning_rate", "chosen",
    "process", "turn", "num_examples",
}  # fmt: skip
FIGURES = {
    name: module
    for name, module in reproduce.EXPERIMENTS.items()
    if (committed(name) / f"{name}.json").exists()
}


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def copy_with(value, source, folder, of):
    """Tables whose measured numbers are all `value`, and the records beside them."""
    for path in source.glob("*.json"):
        shutil.copy(path, folder)
    for path in source.glob("*.csv"):
        if of(path.stem):
            header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
            changed = [
                [value if is_number(x) and name not in GIVEN else x
                 for name, x in zip(header, row, strict=True)]
                for row in rows
            ]  # fmt: skip
            with (folder / path.name).open("w", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([header, *changed])


@pytest.mark.parametrize(
    ("name", "value"),
    thorough_but(
        [
            ("depth_scaling", "0"),
            ("step_cost", "0"),
            ("learning_curves", "-1"),
            ("accuracy_race", "nan"),
            ("fair_comparison", "nan"),
        ],
        itertools.product(FIGURES, ("0", "-1", "nan")),
    ),
)
def test_every_figure_is_drawn(tmp_path, monkeypatch, name, value):
    """Warnings are errors; the files' own writing is left out, all else of `style.save` is done."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    if name == "differentiation" and value == "nan":
        value = "0"  # numbers of operations are integers
    source = committed(name)
    if name == "step_cost":
        source = tmp_path / "source"
        source.mkdir()
        write_step_cost(source, {"mlp-64": (STEP, R)}, paper="mlp")
    copy_with(value, source, tmp_path, lambda stem: True)
    FIGURES[name].draw(tmp_path)
    assert drawn and not plt.get_fignums()


@pytest.mark.parametrize(
    ("numbers", "scale"),
    [
        ([], "linear"),
        ([0.0], "linear"),
        ([-1.0, 0.0], "linear"),
        ([np.nan], "linear"),
        ([3.0], "log"),
        ([0.0, 3.0, np.nan], "log"),
        ([1e-3, 3.0], "log"),
    ],
)
def test_a_logarithmic_axis(numbers, scale):
    figure, axis = plt.subplots()
    axis.plot(range(len(numbers)), numbers)
    style.log_scale(axis)
    style.set_limits(axis, "y", 0, np.nan)
    figure.draw_without_rendering()
    assert axis.get_yscale() == scale
    low, high = axis.get_ylim()
    assert low < high and (low > 0 or scale == "linear")
    inside = [x for x in numbers if low <= x <= high]
    assert len(inside) == len([x for x in numbers if x > 0 or (scale == "linear" and x <= 0)])
    plt.close(figure)


def test_limits_that_are_none_change_nothing():
    figure, axis = plt.subplots()
    axis.plot([1, 10], [1, 10])
    style.log_scale(axis, "xy")
    before = axis.get_ylim()
    for low, high in ((0, 5), (-1, 5), (5, 5), (6, 5), (np.nan, 5), (1, np.inf)):
        style.set_limits(axis, "y", low, high)
        assert axis.get_ylim() == before
    style.set_limits(axis, "y", 2, 5)
    assert axis.get_ylim() == (2, 5)
    plt.close(figure)


def test_a_mean_of_logarithms_leaves_out_numbers_without_one():
    figure, axis = plt.subplots()
    samples = np.array([[1.0, 0.0, 4.0], [4.0, 1.0, 9.0]])
    curves.plot(axis, np.arange(3), samples, "backprop", logarithmic=True)
    (line,) = axis.lines
    np.testing.assert_allclose(line.get_ydata(), [2.0, np.nan, 6.0])
    plt.close(figure)
