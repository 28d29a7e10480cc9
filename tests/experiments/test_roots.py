"""Two processes at one root, and tables that were changed after they were written."""

from types import SimpleNamespace

import pytest

from experiments import reproduce
from experiments.common import alone, jobs
from experiments.cost import null_test
from experiments.modes import walkthrough
from experiments.paper import trajectories
from fwdgrad.records import FolderInUseError, hold, write_table

COMMANDS = {
    "reproduce": reproduce.run,
    "trajectories": lambda cfg: alone.run_alone(cfg, trajectories),
    **{m.__name__.split(".")[-1]: m.command for m in (null_test, walkthrough)},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_raises_if_its_root_is_in_use(compose, tmp_path, monkeypatch, name):
    config, options = (name, ()) if name != "trajectories" else ("reproduce", ())
    if config == "reproduce":
        options = ("preset=smoke",)
    cfg = compose(config, *options, f"output.root={tmp_path}")
    for module in (null_test, walkthrough, trajectories):
        monkeypatch.setattr(module, "run", pytest.fail)
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {})
    with hold(tmp_path):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(FolderInUseError, match=f"{tmp_path} is in use by process"):
            COMMANDS[name](cfg)
        assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def experiment(name, drawn):
    """An experiment with one table of two rows."""

    def run(cfg, folder):
        write_table(folder / f"{name}.csv", ("seed",), [(0,), (1,)])
        jobs.write_information(folder, name, [name], {"provenance": [], "wall_seconds": 1})

    return SimpleNamespace(
        NAME=name, run=run, draw=lambda folder: drawn.append(name),
        describe=lambda folder: f"## {name}", findings=lambda folder: [],
    )  # fmt: skip


def test_nothing_is_drawn_of_a_table_that_lost_a_line(compose, tmp_path, monkeypatch):
    drawn = []
    experiments = {name: experiment(name, drawn) for name in ("first", "second")}
    monkeypatch.setattr(reproduce, "EXPERIMENTS", experiments)
    root = ("preset=smoke", f"output.root={tmp_path}")
    assert reproduce.run(compose("reproduce", *root)) == {} and drawn == ["first", "second"]
    (tmp_path / "first.csv").write_text("seed\n0\n")

    redraw = compose("reproduce", *root, "draw_only=true")
    failures = reproduce.run(redraw)
    assert failures.keys() == {"first"} and drawn == ["first", "second", "second"]
    found = f"its tables: RecordError: {tmp_path / 'first.csv'} is not the table that first.json"
    assert failures["first"].startswith(found)
    report = (tmp_path / "README.md").read_text()
    assert f"**first failed:** {found}" in report and "## first" not in report

    with pytest.raises(ValueError, match=r"first.csv is not the table that first.json was written"):
        alone.run_alone(redraw, experiments["first"])
    # Run again, it is made again.
    assert reproduce.run(compose("reproduce", *root)) == {} and "first" in drawn[-2:]
