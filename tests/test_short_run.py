"""The rows of sweeps that the short run leaves out."""

from pathlib import Path
from types import SimpleNamespace

from tests.sweeps import MOST_ROWS, beyond_the_short_run

HERE = Path(__file__).parent


def row(name, number, *, path=HERE / "package" / "test_x.py", marker=None):
    return SimpleNamespace(
        callspec=number, parent=path, path=path, originalname=name,
        get_closest_marker=lambda _: marker,
    )  # fmt: skip


def test_of_each_sweep_some_rows_are_kept_the_first_and_the_last_among_them():
    items = [*(row("a", i) for i in range(9)), *(row("b", i) for i in range(MOST_ROWS))]
    left_out = [(item.originalname, item.callspec) for item in beyond_the_short_run(items)]
    assert left_out == [("a", i) for i in (1, 2, 4, 6, 7)]


def test_thorough_rows_and_files_that_check_the_whole_repository_are_left_alone():
    thorough = [row("a", i, marker="thorough") for i in range(9)]
    of_all_files = [row("a", i, path=HERE / "test_docs.py") for i in range(9)]
    alone = SimpleNamespace(path=HERE / "package" / "test_x.py")
    assert not [*beyond_the_short_run([*thorough, *of_all_files, alone])]
