"""The dashboard: its rows against the records, and its page in a headless browser."""

import math
import shutil
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf

import experiments
from experiments.common import vocabulary
from experiments.dashboard import command
from experiments.dashboard_runs import MOST_POINTS, find_runs, rows
from fwdgrad.records import Metrics, atomic_write, write_json, write_metrics

CODE = {"commit": "0123456789abcdef", "dirty": True, "sum": "5e5e"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# A browser that asks its maker for nothing, which a page without a network cannot be told from.
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture
def record(compose, tmp_path):
    """Write the record of a run: (label, seed, *overrides, losses=..., status=...)."""

    def write(label, seed, *overrides, losses=(2.0, 1.0, 0.5), status="finished", **changes):
        cfg = compose("train", *overrides, f"seed={seed}", f"num_steps={10 * (len(losses) - 1)}")
        config = OmegaConf.merge(cfg, changes.pop("config", {}))
        folder = tmp_path / "runs" / label / f"seed-{seed}"
        table = [
            Metrics(10 * i, 0.5 * i, 0.1, loss, loss + 0.25, changes.get("accuracy", 0.1 * i))
            for i, loss in enumerate(losses)
        ]
        write_metrics(folder, table)
        with atomic_write(folder / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(config, resolve=True))
        info = {
            "status": status, "seed": seed, "settings": {}, "resumed_at": [], "wall_seconds": 3.5,
            "code": CODE, "versions": {"jax": "9.8.7"}, "jax": {"platform": "gpu"},
            "hardware": {"device_kind": "NVIDIA <H100>"}, "started": "then", "written": "now",
        }  # fmt: skip
        if status == "finished":
            info["final"] = {**table[-1]._asdict(), "test_loss": 0.75, "test_accuracy": 0.625}
        if status == "diverged":
            info["message"] = "the training loss is nan at step 12"
        write_json(folder / "run.json", info)
        return folder

    return write


@pytest.fixture
def runs(record, tmp_path):
    """Three configs: of three seeds, one of which diverged; of two, one running; of one seed."""
    backprop, forward = ("estimator=backprop", "model=mlp"), ("tangents=low_rank", "model=cnn")
    record("mlp-backprop-0a", 0, *backprop, losses=(2.0, 0.4, 0.1))
    record("mlp-backprop-0a", 1, *backprop, losses=(2.0, 0.6, 0.3))
    record("mlp-backprop-0a", 2, *backprop, losses=(2.0, 9.0), status="diverged")
    record("cnn-forward-low_rank-0b", 0, *forward, losses=(2.4, 1.4, 1.1))
    record("cnn-forward-low_rank-0b", 1, *forward, losses=(2.6, 1.6), status="running")
    record("mlp-activities-block_sparse-0c", 0, "tangents=block_sparse", "space=activities",
           "estimator.value_and_grad.space.layerwise=true", "learning_rate=0.25")  # fmt: skip
    damaged = record("mlp-backprop-0d", 0, *backprop)
    (damaged / "metrics.csv").write_text("step,sec")
    (record("mlp-backprop-0e", 0, *backprop) / "config.yaml").write_text("a: [")
    (record("mlp-backprop-0f", 0, *backprop) / "run.json").unlink()
    return tmp_path / "runs"


def test_rows_are_the_records(runs):
    found, damaged = find_runs(runs)
    assert [text.partition(":")[0] for text in damaged] == [
        "mlp-backprop-0d/seed-0", "mlp-backprop-0e/seed-0", "mlp-backprop-0f/seed-0"
    ]  # fmt: skip
    assert "there is no run.json" in damaged[2] and "metrics.csv" in damaged[0]
    made = {(row.name, row.groups["seed"]): row for row in rows(found)}
    assert len(made) == 6 + 2
    one = made["mlp-activities-block_sparse-0c/seed-0", "0"]
    assert one.groups == {
        "problem": "image_classification", "model": "mlp", "dataset": "mnist",
        "estimator": "activities, layer-wise, block-sparse", "tangents": "block_sparse", "K": "1",
        "optimizer": "sgd, exponential decay", "platform": "gpu", "seed": "0", "status": "finished",
    }  # fmt: skip
    assert one.seed_choices == ("0", "means")  # it is in no mean
    np.testing.assert_array_equal(one.curve["train_loss"], [2.0, 1.0, 0.5])
    np.testing.assert_array_equal(one.curve["step"], [0, 10, 20])
    assert one.numbers["valid_loss"] == 0.75 and one.numbers["test_accuracy"] == 0.625


def test_a_mean_is_over_the_seeds_that_have_not_diverged_at_the_steps_that_all_have(runs):
    made = {(row.name, row.groups["seed"]): row for row in rows(find_runs(runs)[0])}
    backprop = made["mlp-backprop-0a", "mean of 2 of 3"]
    np.testing.assert_allclose(backprop.curve["train_loss"], [2.0, 0.5, 0.2])
    assert backprop.numbers["train_loss"] == pytest.approx(0.2)
    assert backprop.groups["status"] == "finished" and backprop.numbers["test_loss"] == 0.75
    forward = made["cnn-forward-low_rank-0b", "mean of 2"]
    np.testing.assert_allclose(forward.curve["train_loss"], [2.5, 1.5])
    assert forward.groups["status"] == "running" and math.isnan(forward.numbers["test_loss"])
    assert made["mlp-backprop-0a/seed-0", "0"].seed_choices == ("0",)
    diverged = made["mlp-backprop-0a/seed-2", "2"]
    assert diverged.seed_choices == ("2", "means") and diverged.numbers["train_loss"] == 9.0


def test_long_curves_are_thinned_and_keep_their_ends(record, tmp_path):
    record("mlp-backprop-0a", 0, losses=np.linspace(3, 1, 5001))
    (row,) = rows(find_runs(tmp_path)[0])
    assert len(row.curve["step"]) == MOST_POINTS
    assert row.curve["step"][[0, -1]].tolist() == [0, 50_000]
    assert len(set(np.diff(row.curve["step"]) // 10)) <= 2  # evenly


def test_a_problem_of_the_user_has_no_model_that_it_does_not_read(record, tmp_path):
    problem = {"problem": {"_target_": "mine.spirals.make_problem"}}
    record("spirals-forward-normal-0a", 0, config=problem, accuracy=math.nan)
    record("spirals-cnn-forward-normal-0b", 0, "model=cnn", config=problem)
    first, second = sorted(rows(find_runs(tmp_path)[0]), key=lambda row: row.name, reverse=True)
    assert first.groups["problem"] == "spirals" and first.groups["model"] == "–"
    assert second.groups["model"] == "cnn"
    assert math.isnan(first.numbers["valid_accuracy"])


@pytest.mark.thorough
def test_every_choice_of_estimator_has_a_name(compose):
    options = [("estimator=backprop",), ("estimator=spsa",), ("estimator=evolution",)]
    for tangents in ("normal", "sphere", "rademacher", "low_rank", "orthogonal", "block_sparse"):
        for space in ("weights", "weights_exact_last", "activities"):
            options.append((f"tangents={tangents}", f"space={space}", "guess=learned"))
            options.append((f"tangents={tangents}", f"space={space}", "aggregation=projection"))
    labels = {compose("train", *chosen).estimator.label for chosen in options}
    names = {label: vocabulary.find_name(label) for label in labels}
    assert None not in names.values() and len({*names.values()}) == len(labels) == 3 + 36


def test_a_folder_without_runs(compose, tmp_path):
    pytest.importorskip("bokeh")
    cfg = compose("dashboard", f"output.root={tmp_path}")
    with pytest.raises(
        FileNotFoundError, match=r"^output\.root=.* holds no run: .*output\.root=re"
    ):
        command(cfg)
    assert list(tmp_path.iterdir()) == []


def test_without_bokeh_the_error_names_the_extra(compose, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    for name in [name for name in sys.modules if name.startswith("bokeh.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "experiments.dashboard_page", raising=False)
    monkeypatch.delattr(experiments, "dashboard_page", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs the module 'bokeh.*\.\[dashboard\]"):
        command(compose("dashboard", f"output.root={runs}"))


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("bokeh")
    api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, compose, tmp_path):
    """Open the page of the runs in `tmp_path`; errors and requests are collected, and checked."""
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))

    def open_page():
        path = tmp_path / "page.html"
        command(compose("dashboard", f"output.root={tmp_path}", f"page={path}"))
        page.goto(path.as_uri())
        page.locator(".slick-row").first.wait_for()
        page.get_by_text("lines shown").wait_for()
        return page

    yield open_page
    assert errors == [] and requests == [(tmp_path / "page.html").as_uri()]
    page.close()


DRAWN = """name => {
  const panel = Bokeh.documents[0].get_model_by_name(name)
  const views = Bokeh.index.find_one(panel).views
  return panel.renderers.map(renderer => views.find_one(renderer).glyph.data_size)
}"""
PLACE = """([name, renderer, row]) => {  // of a row's last point, on the screen
  const panel = Bokeh.documents[0].get_model_by_name(name), view = Bokeh.index.find_one(panel)
  const data = panel.renderers[renderer].data_source.data
  const box = view.canvas_view.el.getBoundingClientRect(), frame = view.frame
  const i = data.name.indexOf(row)
  return [box.x + frame.x_scale.compute(data.step_end[i]),
          box.y + frame.y_scale.compute(data[`${name}_end`][i])]
}"""


def column(page, title):
    """Return the texts of a column of the table, from the top."""
    titles = page.locator(".slick-header-column").all_inner_texts()
    cells = page.locator(f".slick-row .slick-cell.l{titles.index(title)}")
    tops = [float(cell.evaluate("x => x.parentElement.getBoundingClientRect().y"))
            for cell in cells.all()]  # fmt: skip
    return [text.strip() for _, text in sorted(zip(tops, cells.all_inner_texts(), strict=True))]


def choose(page, group, value):
    choice = page.locator(".bk-input-group", has=page.locator("label", has_text=group))
    choice.locator("input").click()
    page.keyboard.type(value)
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")


def test_every_run_has_a_curve_and_a_filter_changes_curves_and_table(opened, runs):
    page = opened()
    for name in ("train_loss", "valid_loss", "valid_accuracy"):
        assert page.evaluate(DRAWN, name) == [8, 8]  # lines and their ends
    assert page.get_by_text("8 of 8 lines shown").is_visible()
    assert page.get_by_text("3 damaged, and not shown").is_visible()
    assert page.get_by_text("mlp-backprop-0e/seed-0").is_visible()
    choose(page, "model", "mlp")
    page.get_by_text("5 of 8 lines shown").wait_for()
    assert page.evaluate(DRAWN, "valid_loss") == [5, 5]
    assert set(column(page, "model")) == {"mlp"} and len(column(page, "model")) == 5
    choose(page, "seed", "means")
    page.get_by_text("3 of 8 lines shown").wait_for()
    assert sorted(column(page, "seed")) == ["0", "2", "mean of 2 of 3"]
    choose(page, "status", "diverged")
    page.get_by_text("1 of 8 lines shown").wait_for()
    assert page.evaluate(DRAWN, "train_loss") == [1, 1] and column(page, "status") == ["diverged"]


@pytest.mark.thorough
def test_a_click_on_a_heading_sorts(opened, runs):
    page = opened()
    expected = ["0.35", "0.45", "0.55", "0.75", "1.35", "1.75", "1.85", "9.25"]
    heading = page.locator(".slick-header-column", has_text="valid loss")
    heading.click()
    page.wait_for_timeout(300)
    assert column(page, "valid loss") == expected
    heading.click()
    page.wait_for_timeout(300)
    assert column(page, "valid loss") == expected[::-1]
    page.locator(".slick-header-column", has_text="test acc.").click()
    page.wait_for_timeout(300)
    assert column(page, "test acc.") == ["0.625"] * 5 + ["–"] * 3


def test_a_click_shows_provenance(opened, runs):
    page = opened()
    page.get_by_text("Click a curve").wait_for()
    page.locator(".slick-row", has_text="mean of 2 of 3").locator(".slick-cell").first.click()
    page.get_by_text("seed-1", exact=True).wait_for()
    x, y = page.evaluate(PLACE, ["valid_loss", 0, "runs/mlp-backprop-0a/seed-2"])
    page.mouse.click(x, y)
    page.get_by_text("diverged: the training loss is nan at step 12").wait_for()
    for text in ("0123456789, with uncommitted changes", "jax 9.8.7", "NVIDIA <H100>"):
        assert page.get_by_text(text).is_visible()
    page.locator(".slick-row", has_text="diverged").locator(".slick-cell").first.click()
    page.get_by_text("config.yaml").click()
    assert "_target_: fwdgrad.backprop_value_and_grad" in page.locator("pre").inner_text()


@pytest.mark.thorough
def test_seconds_in_the_place_of_steps(opened, runs):
    page = opened()
    end = "() => Bokeh.documents[0].get_model_by_name('train_loss').x_range.end"
    assert page.evaluate(end) > 20
    page.get_by_text("seconds", exact=True).first.click()
    page.wait_for_function(f"({end})() < 2")
    assert page.evaluate(DRAWN, "train_loss") == [8, 8]


@pytest.mark.thorough
def test_many_runs_open_with_the_means_of_one_model(opened, record):
    for seed in range(30):
        record("mlp-backprop-0a", seed, "estimator=backprop")
        record("cnn-backprop-0b", seed, "estimator=backprop", "model=cnn")
    record("cnn-forward-normal-0c", 0, "model=cnn")
    page = opened()
    page.get_by_text("2 of 63 lines shown").wait_for()
    assert sorted(column(page, "seed")) == ["0", "mean of 30"]


@pytest.mark.thorough
@pytest.mark.parametrize("damaged", [False, True])
def test_one_run_alone(opened, record, damaged):
    folder = record("mlp-backprop-0a", 0, accuracy=math.nan)
    if damaged:
        (folder / "config.yaml").write_text("learning_rate: 1")
        record("mlp-backprop-0b", 0, losses=(), status="running")
    page = opened()
    assert page.get_by_text("1 damaged, and not shown").count() == damaged
    assert page.evaluate(DRAWN, "train_loss") == [1, 1]
    names = (
        "() => ['valid_loss', 'valid_accuracy'].map(x => Bokeh.documents[0].get_model_by_name(x))"
    )
    assert [bool(panel) for panel in page.evaluate(names)] == [True, False]


@pytest.mark.thorough
def test_a_loss_that_explodes_is_cut_and_texts_are_no_markup(opened, record):
    evil = "<img src=x onerror='throw 1'>"
    record("mlp-backprop-0a", 0, losses=(2.0, 1e30), config={"estimator": {"label": evil}})
    record("mlp-backprop-0b", 0, losses=(3.0, 0.0, -1.0))
    page = opened()
    assert page.locator("img").count() == 0 and page.get_by_text(evil).first.is_visible()
    panel = "Bokeh.documents[0].get_model_by_name('train_loss')"
    drawn = page.evaluate(f"() => {panel}.renderers[0].data_source.data.train_loss_end")
    assert sorted(drawn.values() if isinstance(drawn, dict) else drawn) == [-1.0, 30.0]
    assert page.evaluate(f"() => {panel}.y_scale.type") == "LinearScale"
