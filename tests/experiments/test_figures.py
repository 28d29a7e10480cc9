"""Every figure of the committed results, and of few samples: can a README show it?"""

import csv
import itertools
import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments.common import style
from experiments.modes import walkthrough
from experiments.paper.learning_curves_figure import draw_figures
from experiments.quality import own_loss
from tests.sweeps import thorough_but

from .conftest import CONFIGS
from .deuteranopia import distance, lab
from .test_axes import FIGURES
from .timed import STEP, R, write_step_cost

RESULTS = CONFIGS.parent / "results"
LEAST_DISTANCE = 20  # ΔE; about 2 is the least that anyone sees, side by side
MOST_LINES = 8
OF_PAPER = {"trajectories", "learning_curves", "depth_scaling", "step_cost"}  # have its numbers


@pytest.fixture
def drawn(monkeypatch):
    """Stem -> figure, of all that `style.save` has laid out; they are not written."""
    figures, save = {}, style.save

    def save_and_keep(figure, folder, stem, caption):
        figures[stem] = figure
        save(figure, folder, stem, caption)

    monkeypatch.setattr(style, "save", save_and_keep)
    monkeypatch.setattr(Figure, "savefig", lambda *args, **kwargs: None)
    return figures


def texts(figure):
    found = [x for x in figure.findobj(Text) if x.get_text().strip() and x.get_visible()]
    hidden = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in axis.get_ticklabels(which="both")
        if not axes.axison or not is_inside(axis, label)
    }
    return [x for x in found if x not in hidden]


def is_inside(axis, label):
    """Return whether the tick of a label is within the limits, so that it is drawn."""
    low, high = sorted(axis.get_view_interval())
    place = label.get_position()[0 if axis.axis_name == "x" else 1]
    slack = 1e-9 * (high - low)
    return low - slack <= place <= high + slack


def lines(axes):
    """The curves of a panel; what has two points is a guide."""
    return [x for x in axes.lines if x.get_visible() and len(x.get_xdata()) > 2]


def looks(axes):
    """The pairs of colour and dash or marker of curves and points."""
    shown = [x for x in axes.lines if x.get_visible() and len(x.get_xdata())]
    return {
        (to_hex(x.get_color()), str(x.get_linestyle()), str(x.get_marker()), x.is_dashed())
        for x in shown
    }


def check(figure):
    width, height = figure.get_size_inches()
    assert width <= style.WIDTH
    figure.draw_without_rendering()
    shown = texts(figure)
    boxes = [text.get_window_extent() for text in shown]
    for text, box in zip(shown, boxes, strict=True):
        assert text.get_fontsize() >= 8, text.get_text()
        assert r"\times" not in text.get_text(), "a tick such as 6 × 10⁻¹"
        assert box.x0 >= -2 and box.x1 <= 100 * width + 2, f"{text.get_text()!r} is cut off"
        assert box.y0 >= -2 and box.y1 <= 100 * height + 2, f"{text.get_text()!r} is cut off"
    for (one, a), (two, b) in itertools.combinations(zip(shown, boxes, strict=True), 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        if across > 2 and down > 0.35 * min(a.height, b.height):
            raise AssertionError(f"{one.get_text()!r} lies upon {two.get_text()!r}")
    (caption,) = (x for x in shown if x is figure._supxlabel)
    assert re.search(r"n = \d", caption.get_text()) or "exact" in caption.get_text()
    assert "interval" in caption.get_text()
    for axes in figure.axes:
        assert len(lines(axes)) <= MOST_LINES
        for (one, *of_one), (two, *of_two) in itertools.combinations(looks(axes), 2):
            if one != two and of_one == of_two:
                assert distance(one, two) >= LEAST_DISTANCE, (axes.get_title(loc="left"), one, two)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_the_committed_results(drawn, tmp_path, name):
    source = RESULTS / "paper"
    for path in (*source.glob("*.csv"), *source.glob("*.json")):
        shutil.copy(path, tmp_path)
    if name == "step_cost":
        panels = (f"{model}, minibatch {size}" for model in ("MLP", "CNN") for size in ("64", "8"))
        write_step_cost(tmp_path, dict.fromkeys(panels, (STEP, R)), paper="mlp")
    FIGURES[name].draw(tmp_path)
    assert drawn and not plt.get_fignums()
    for figure in drawn.values():
        check(figure)
    if name in OF_PAPER:
        diamonds = [x for axes in drawn[name].axes for x in axes.lines if x.get_marker() == "D"]
        assert len(diamonds) >= 2 and {x.get_markerfacecolor() for x in diamonds} == {"white"}


NUMBERED = [(x, "learning_curves") for x in ("paper", "gpu", "h200", "quick")]
NUMBERED += [(x, "step_cost") for x in ("paper", "gpu", "quick")]


@pytest.mark.parametrize(
    ("folder", "name"), thorough_but([x for x in NUMBERED if x[0] == "paper"], NUMBERED)
)
def test_numbers_lie_upon_no_mark_and_no_curve(drawn, tmp_path, folder, name):
    """The figures that have the paper's marks among numbers, with the results of each machine."""
    for path in (RESULTS / folder).glob(f"{name}*.[cj]s*"):
        shutil.copy(path, tmp_path)
    FIGURES[name].draw(tmp_path)
    for figure in drawn.values():
        figure.draw_without_rendering()
        for axes in figure.axes:
            for text in axes.texts:
                box = text.get_window_extent().padded(-1)
                for line in axes.lines:
                    x, y = axes.transData.transform(line.get_xydata()).T
                    is_free = text.xycoords == "axes fraction" and line in lines(axes)
                    if line.get_marker() == "D" or is_free:
                        r = 3 if line.get_marker() == "D" else 0  # the mark is not a point
                        across = (box.x0 - r < x) & (x < box.x1 + r)
                        inside = across & (box.y0 - r < y) & (y < box.y1 + r)
                        assert not inside.any(), (text.get_text(), axes.get_ylabel())


def test_the_walkthrough(drawn, compose, tmp_path):
    walkthrough.run(compose("walkthrough", f"output.root={tmp_path}"))
    check(drawn["walkthrough"])


def with_few_samples(source, folder, n):
    """Copy tables with n seeds or processes alone, and n for every number of samples."""
    for path in source.glob("*.json"):
        shutil.copy(path, folder)
    for path in source.glob("*.csv"):
        header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        for column in {"seed", "process"} & set(header):
            rows = [row for row in rows if int(row[header.index(column)]) < n]
        for column in {"n", "rounds"} & set(header):
            for row in rows:
                row[header.index(column)] = str(n)
        with (folder / path.name).open("w", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


def intervals(figure):
    """The areas of bands, and the lengths of bars."""
    found = []
    for axes in figure.axes:
        for band in axes.findobj(FillBetweenPolyCollection):
            found += [np.ptp(path.vertices[:, 1]) for path in band.get_paths()]
        for container in axes.containers:
            for bar in container.lines[2]:
                found += [np.ptp(segment, axis=0).max() for segment in bar.get_segments()]
    return np.array(found)


# The times of Jacobians have no number of samples in their table.
@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"differentiation", "step_cost"}))
@pytest.mark.parametrize("n", thorough_but([2], [2, 3]))
def test_no_interval_of_two_samples(monkeypatch, tmp_path, name, n):
    drawn = {}  # not laid out, which takes most of the time

    def keep(figure, folder, stem, caption):
        drawn[stem] = figure, caption
        plt.close(figure)

    monkeypatch.setattr(style, "save", keep)
    with_few_samples(RESULTS / "paper", tmp_path, n)
    FIGURES[name].draw(tmp_path)
    assert drawn
    for stem, (figure, caption) in drawn.items():
        has_intervals = (intervals(figure) > 0).any()
        assert has_intervals == (n >= 3 and not stem.startswith("trajectories")), stem
        if n < 3 and not stem.startswith("trajectories"):
            assert "no interval below n = 3" in caption


def test_both_files_are_the_same_bytes_again(tmp_path):
    def draw(folder):
        figure, axes = plt.subplots(figsize=(3, 2))
        axes.plot([1, 2, 3], [1, 2, 4])
        style.label_ends(axes, [("end", "black")])
        style.save(figure, folder, "figure", "n = 3 runs; no interval")
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first, second = draw(tmp_path / "a"), draw(tmp_path / "b")
    assert first == second and set(first) == {"figure.png", "figure.svg"}
    assert b"<dc:date>" not in first["figure.svg"]


def test_labels_at_one_place_are_moved_apart(drawn, tmp_path):
    figure, axes = plt.subplots(figsize=(4, 2))
    for height in (1.0, 1.01, 1.02, 3.0):
        axes.plot([1, 2, 3], [0, 1, height], color="black")
        style.label_ends(axes, [(f"label {height}", "black")])
    style.save(figure, tmp_path, "figure", "n = 4; no interval")
    check(figure)
    boxes = [text.get_window_extent() for text in axes.texts]
    middles = [(box.y0 + box.y1) / 2 for box in boxes]
    assert middles == sorted(middles)  # in the order of the lines
    ends = axes.transData.transform([(3, h) for h in (1.0, 1.01, 1.02, 3.0)])[:, 1]
    assert middles[3] == pytest.approx(ends[3], abs=2)  # what is alone stays
    assert np.mean(middles[:3]) == pytest.approx(np.mean(ends[:3]), abs=2)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.9, 1100, ["1", "10", "100", "1,000"]),
        (0.4, 3, ["0.5", "1", "2"]),
        (2e-6, 2, None),  # powers of ten
    ],
)
def test_ticks_of_a_logarithmic_axis_are_plain(low, high, expected):
    figure, axes = plt.subplots()
    axes.plot([1, 2], [low, high])
    style.log_scale(axes)
    axes.set_ylim(low, high)
    figure.draw_without_rendering()
    labels = [x for x in axes.yaxis.get_ticklabels() if is_inside(axes.yaxis, x)]
    found = [x.get_text() for x in labels]
    assert found == expected or (expected is None and all("10^" in x for x in found))
    assert not any(x.get_text() for x in axes.yaxis.get_ticklabels(minor=True))
    plt.close(figure)


def test_distances_of_colours():
    """Red and green of one lightness are far apart to most people, and close here."""
    np.testing.assert_allclose(lab(np.ones(3)), [100, 0, 0], atol=0.01)
    assert distance("black", "white") == pytest.approx(100, abs=0.1)
    assert distance("#D55E00", "#A38400") < 20 < distance("#D55E00", "#0072B2")
    # By colorspacious 1.1.2.
    assert distance("#009E73", "#CC79A7") == pytest.approx(17.88, abs=0.02)
    assert distance("#0072B2", "#D55E00") == pytest.approx(108.42, abs=0.02)


def test_no_figure_is_a_pdf():
    """SVG has taken the place of PDF in the committed results."""
    assert not list(RESULTS.rglob("*.pdf"))
    for path in RESULTS.rglob("*.png"):
        assert path.with_suffix(".svg").exists()


def curve(losses):
    losses = np.array(losses, float)
    steps = np.broadcast_to(np.arange(losses.shape[1]) * 10.0, losses.shape)
    seeds = np.broadcast_to(np.arange(len(losses))[:, None], losses.shape)
    same = dict.fromkeys(("train_loss", "valid_loss"), losses)
    return {
        "seed": seeds,
        "step": steps,
        "seconds": steps,
        "valid_accuracy": 1 - losses / 4,
        **same,
    }


@pytest.mark.parametrize("shortened", [{}, {"cnn": "20 of 20,000"}])
def test_a_line_that_lost_a_seed_is_compared_with_the_seeds_it_has(drawn, tmp_path, shortened):
    """Backprop's third seed is far better; the other line has the first two, and is the faster."""
    panel = {
        "backprop": curve([[2, 1.5, 1.0], [2, 1.5, 1.0], [2, 0.5, 0.1]]),
        "forward-low_rank": curve([[2, 1.0, 0.9], [2, 1.0, 0.9]]),
    }
    information = {"titles": {"cnn": "CNN"}, "shortened": shortened, "changed": {"cnn": ""}}
    draw_figures({"cnn": panel}, information, tmp_path, "learning_curves")
    texts = [x.get_text() for x in drawn["learning_curves"].findobj(Text)]
    assert any("(2 of 3 seeds)" in text for text in texts)
    assert "$T_f$ = 10 s, $T_f/T_b$ = 0.5" in texts  # of a mean of all three it is not reached
    assert any(text.startswith("paper: $T_f/T_b$") for text in texts) == (not shortened)


@pytest.mark.thorough
def test_compared_estimators(drawn, compose, tmp_path):
    short = ("model=logistic", "max_keys=6", "batch_size=4", f"output.root={tmp_path}")
    own_loss.run(compose("compare", *short), tmp_path)
    own_loss.draw(tmp_path)
    check(drawn["compare"])
