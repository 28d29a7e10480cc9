"""A line or an entry that is missing in an experiment's table raises an error."""

import csv
import shutil

import pytest

from experiments import reproduce
from experiments.common.curves import read_curves
from experiments.modes import estimator_error, expression_swell, jacobian_modes
from experiments.races.results import read as read_race
from fwdgrad.records import RecordError

from .conftest import CONFIGS, committed
from .test_axes import FIGURES
from .timed import STEP, R, write_step_cost

RESULTS = CONFIGS.parent / "results"
READ = {
    "learning_curves": read_curves,
    "fair_comparison": read_curves,
    "accuracy_race": lambda path: read_race(path.parent, path.stem),
    "cnn_race": lambda path: read_race(path.parent, path.stem),
    "trajectories": lambda path: reproduce.trajectories._read(path.parent, path.stem),
}
PAIRED = ("learning_curves", "fair_comparison", "trajectories")


def rows_of(path):
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def write(path, rows):
    with path.open("w", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@pytest.mark.parametrize("name", READ)
def test_a_row_that_is_missing(tmp_path, name):
    """Anywhere in the table: a row at a time is taken out of every run of the first line."""
    path = tmp_path / f"{name}.csv"
    for table in committed(name).glob(f"{name}*.csv"):
        shutil.copy(table, tmp_path)
    header, *rows = rows_of(path)
    READ[name](path)
    seed, step = header.index("seed"), header.index("step")
    of_run = [i for i, row in enumerate(rows) if row[:seed] == rows[0][:seed]]
    assert len({rows[i][seed] for i in of_run}) > 1
    for i in of_run[:: max(1, len(of_run) // 5)]:
        write(path, [header, *rows[:i], *rows[i + 1 :]])
        with pytest.raises(RecordError, match=rf"{path}: rows are missing.* {rows[i][step]} "):
            READ[name](path)
    # Also out of order, or twice.
    write(path, [header, rows[1], rows[0], *rows[2:]])
    with pytest.raises(RecordError, match=rf"{path}: (the steps of .* do not rise|rows are)"):
        READ[name](path)
    write(path, [header, rows[0], *rows])
    with pytest.raises(RecordError, match=rf"{path}: (the steps of .* do not rise|rows are)"):
        READ[name](path)


@pytest.mark.parametrize("name", PAIRED)
def test_a_run_that_is_missing(tmp_path, name):
    path = tmp_path / f"{name}.csv"
    header, *rows = rows_of(committed(name) / path.name)
    seed = header.index("seed")
    lost = rows[0][: seed + 1]
    write(path, [header, *(row for row in rows if row[: seed + 1] != lost)])
    with pytest.raises(RecordError, match=rf"{path}: rows are missing: .* seeds {lost[-1]}, which"):
        READ[name](path)


@pytest.mark.parametrize("name", FIGURES)
def test_a_table_without_rows_or_with_an_entry_that_is_none(tmp_path, name):
    """For every experiment, in its figure or its section of the report."""
    source = committed("differentiation" if name == "step_cost" else name)
    for path in (*source.glob("*.json"), *source.glob("*.csv")):
        shutil.copy(path, tmp_path)
    write_step_cost(tmp_path, {"mlp-64": (STEP, R)})
    module = reproduce.EXPERIMENTS[name]
    table = {"differentiation": "step_sizes", "step_cost": "step_cost_timings"}.get(name, name)
    main = tmp_path / f"{table}.csv"
    header, *rows = rows_of(main)
    write(main, [header])
    with pytest.raises(RecordError, match=rf"{main} has no rows\. Restore"):
        module.describe(tmp_path)
    column = next(i for i, x in enumerate(header) if x in ("step", "value", "seconds", "error"))
    write(main, [header, [*rows[0][:column], "", *rows[0][column + 1 :]], *rows[1:]])
    kind = "(a number|an integer)"
    message = rf"{main}, row 1: {header[column]} is '', not {kind}\. Restore the file"
    with pytest.raises(RecordError, match=message):
        module.describe(tmp_path)
    write(main, [[*header[:column], "other", *header[column + 1 :]], *rows])
    with pytest.raises(RecordError, match=rf"{main} has no column {header[column]}: "):
        module.describe(tmp_path)


@pytest.mark.parametrize("part", [expression_swell, estimator_error, jacobian_modes])
def test_a_row_of_a_grid_that_is_missing_or_twice(tmp_path, part):
    path = tmp_path / f"{part.NAME}.csv"
    header, *rows = rows_of(committed("differentiation") / path.name)
    for wrong in (rows[:1] + rows[2:], [rows[0], *rows]):
        write(path, [header, *wrong])
        for call in (part.draw, part.describe):
            with pytest.raises(RecordError, match=rf"{path}: rows are missing, or there twice: "):
                call(tmp_path)


def test_every_committed_table_is_whole(tmp_path):
    tables = [(name, path) for name in READ for path in RESULTS.glob(f"*/{name}.csv")]
    assert len(tables) >= 4
    for name, path in tables:
        assert READ[name](path)
