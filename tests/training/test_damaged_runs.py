"""Damaged, foreign and shared files of runs: right records, or an error with file and remedy."""

import hashlib
import re
import shutil

import numpy as np
import pytest

from fwdgrad.measurement import measured_once
from fwdgrad.records import (
    CheckpointError,
    FolderInUseError,
    RecordError,
    hold,
    load_checkpoint,
    read_about,
    read_run,
    save_checkpoint,
)
from fwdgrad.training import Settings, finished_run, loop
from fwdgrad.training.run_in_progress import RunInProgress
from tests.training.regression import CONFIG, SETTINGS, assert_same_run, rewrite, run


def lost(path):
    path.unlink()


def changed(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


EMPTIED, HALVED = changed(lambda b: b""), changed(lambda b: b[: len(b) // 2])
GARBAGE = changed(lambda b: b"\xff\xfe\x00PK" + b)
LAST_LINE_LOST = changed(lambda b: b"".join(b.splitlines(keepends=True)[:-1]))
SECOND_ROW_LOST = changed(lambda b: b"".join(np.delete(b.splitlines(keepends=True), 2)))
LAST_DIGIT_LOST = changed(lambda b: b[:-2] + b"\n")
NO_LAST_LINE_END = changed(lambda b: b[:-1])
ROUNDED = changed(lambda b: re.sub(rb"\.(\d{6})\d+", rb".\1", b))
SEMICOLONS = changed(lambda b: b.replace(b",", b";"))
ENTRY_LOST = changed(lambda b: b.replace(b",", b"", 1))
TEXT_IN_IT = changed(lambda b: b.replace(b"20,", b"20,n/a", 1))
# What spreadsheets and editors do to a file that they save, the entries being the same.
BOM = changed(lambda b: b"\xef\xbb\xbf" + b)
CRLF = changed(lambda b: b.replace(b"\n", b"\r\n"))
QUOTED = changed(lambda b: re.sub(rb"[^,\n]+", rb'"\g<0>"', b))
ALL_THREE = changed(
    lambda b: b"\xef\xbb\xbf" + re.sub(rb"[^,\n]+", rb'"\g<0>"', b).replace(b"\n", b"\r\n")
)

WRONG_METRICS = {
    "lost": lost, "emptied": EMPTIED, "halved": HALVED, "garbage": GARBAGE,
    "last line lost": LAST_LINE_LOST, "second row lost": SECOND_ROW_LOST,
    "last digit lost": LAST_DIGIT_LOST, "no last line end": NO_LAST_LINE_END, "rounded": ROUNDED,
    "semicolons": SEMICOLONS, "entry lost": ENTRY_LOST, "text": TEXT_IN_IT,
}  # fmt: skip


@pytest.mark.parametrize("is_old", [False, True], ids=["with sums", "from before sums"])
@pytest.mark.parametrize("damage", WRONG_METRICS.values(), ids=WRONG_METRICS)
def test_metrics_of_a_finished_run_that_were_damaged(problem, finished, copied, damage, is_old):
    folder = copied(finished)
    if is_old:
        rewrite(folder / "run.json", lambda info: info.pop("sums"))
    path = folder / "metrics.csv"
    damage(path)
    for read in (lambda: run(problem, folder), lambda: read_run(folder)):
        with pytest.raises(RecordError, match=f"{path}.*Restore the file, or") as error:
            read()
        assert "None" not in str(error.value) or damage is EMPTIED
    (folder / "run.json").unlink()  # then it is not finished, and is made again from the checkpoint
    record = run(problem, folder, config=CONFIG)
    assert record.metrics == read_run(finished).metrics


def test_a_number_that_was_changed_in_the_middle_of_the_metrics(problem, finished, copied):
    """Only the sum tells."""
    folder = copied(finished)
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True)
    step, *others = lines[2].split(",")
    lines[2] = ",".join([step, *others[:1], "0.5", *others[2:]])
    path.write_text("".join(lines))
    assert lines[2] not in (finished / "metrics.csv").read_text()
    with pytest.raises(RecordError, match=f"{path} was changed after the run had finished"):
        run(problem, folder)


@pytest.mark.parametrize("damage", [BOM, CRLF, QUOTED, ALL_THREE], ids=["BOM", "CRLF", '""', "3"])
def test_files_of_a_finished_run_that_were_saved_by_another_program(finished, copied, damage):
    folder = copied(finished)
    for name in ("metrics.csv", *(("config.yaml", "run.json") if damage in (BOM, CRLF) else ())):
        damage(folder / name)
    assert finished_run(folder, seed=3, settings=SETTINGS)[1:] == read_run(finished)[1:]


@pytest.mark.parametrize("damage", [lost, EMPTIED, HALVED, GARBAGE, LAST_LINE_LOST])
def test_config_of_a_finished_run(problem, finished, copied, damage):
    folder = copied(finished)
    damage(folder / "config.yaml")
    with pytest.raises(RecordError, match=f"{folder / 'config.yaml'} .*Restore the file, or del"):
        run(problem, folder, config=CONFIG)


def test_a_finished_run_without_its_checkpoint_is_whole(problem, finished, copied):
    folder = copied(finished)
    (folder / "checkpoint.eqx").unlink()
    assert run(problem, folder)[1:] == read_run(finished)[1:]


WRONG_INFO = {
    "emptied": (EMPTIED, "is no JSON"),
    "halved": (HALVED, "is no JSON"),
    "garbage": (GARBAGE, "is no JSON"),
    "a list": (changed(lambda b: b"[1]"), "holds list, not an object"),
    "null": (changed(lambda b: b"null"), "holds NoneType, not an object"),
    "no keys": (changed(lambda b: b"{}"), "has no status, seed, settings"),
    "a seed of text": (changed(lambda b: b.replace(b'"seed": 3', b'"seed": "3"')), "seed is '3'"),
    "no settings": (changed(lambda b: re.sub(rb'"settings": {[^}]*}', b'"settings": 1', b)),
                    "settings is 1, not of type dict"),
    "status": (changed(lambda b: re.sub(rb'"(running|finished)"', b'"done"', b)),
               "status is 'done', not one of"),
    "not final": (changed(lambda b: re.sub(rb'"(running|finished)"', b'"finished"', b).replace(
        b'"final"', b'"last"')), "a finished run has no final"),
    "no message": (changed(lambda b: re.sub(rb'"(running|finished)"', b'"diverged"', b)),
                   "a diverged run has no message"),
}  # fmt: skip


@pytest.mark.parametrize("state", ["finished", "unfinished"])
@pytest.mark.parametrize(("damage", "found"), WRONG_INFO.values(), ids=WRONG_INFO)
def test_run_json_that_was_damaged(problem, request, copied, state, damage, found):
    folder = copied(request.getfixturevalue(state))
    path = folder / "run.json"
    damage(path)
    for read in (lambda: run(problem, folder), lambda: read_run(folder)):
        with pytest.raises(RecordError, match=f"{path}.* {found}.*Restore the file, or del"):
            read()


def every(**damages):
    def damage(folder):
        for name, of_file in damages.items():
            of_file(folder / name.replace("_", "."))

    return damage


@pytest.mark.parametrize(
    ("damage", "resumed_at"),
    [
        (every(metrics_csv=lost, run_json=lost, config_yaml=lost), [27]),
        (every(metrics_csv=EMPTIED, run_json=BOM, config_yaml=HALVED), [27]),
        (every(metrics_csv=LAST_LINE_LOST, run_json=CRLF, config_yaml=GARBAGE), [27]),
        (every(checkpoint_eqx=lost, metrics_csv=ROUNDED), [0]),
        (every(checkpoint_eqx=lost, run_json=lost, metrics_csv=HALVED), []),
    ],
)
def test_an_unfinished_run_ends_with_the_same_bits_whatever_file_is_damaged(
    problem, unfinished, alone, copied, damage, resumed_at
):
    folder = copied(unfinished)
    damage(folder)
    record = run(problem, folder, config=CONFIG)
    assert_same_run(record, alone)
    assert record.info["resumed_at"] == resumed_at
    assert (folder / "config.yaml").read_text() == CONFIG
    assert finished_run(folder, seed=3, settings=SETTINGS) == record


def test_metrics_that_stand_for_nothing_are_an_error_when_read(unfinished, copied):
    folder = copied(unfinished)
    SEMICOLONS(folder / "metrics.csv")
    with pytest.raises(RecordError, match=r"metrics.csv has the columns step;.*Restore the file"):
        read_run(folder)


def test_a_checkpoint_of_another_run(problem, unfinished, copied, tmp_path):
    folder = copied(unfinished)
    (folder / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"another run: .* with seed 3; wanted is seed 4"):
        run(problem, folder, seed=4)
    settings = Settings(60, 8, 20, 7)
    with pytest.raises(CheckpointError, match="with num_steps 50; wanted is num_steps 60"):
        run(problem, folder, settings=settings)


def test_a_checkpoint_that_holds_more_or_less_than_the_state(tmp_path):
    save_checkpoint(tmp_path, [np.zeros(2), np.ones(3)], {"a": 1})
    assert read_about(tmp_path) == {"a": 1}
    zeros, ones = load_checkpoint(tmp_path, [np.ones(2), np.zeros(3)])
    assert (zeros == 0).all() and (ones == 1).all()
    for like in ([np.ones(2)], [np.ones(2), np.ones(3), np.ones(3)], [np.ones(2), np.ones(4)]):
        with pytest.raises(CheckpointError, match="does not hold the state of this run"):
            load_checkpoint(tmp_path, like)


def test_a_checkpoint_of_the_first_format(problem, unfinished, copied):
    folder = copied(unfinished)
    content = b"leaves"
    (folder / "checkpoint.eqx").write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(CheckpointError, match=r"by an earlier version of fwdgrad\). Delete the fo"):
        run(problem, folder)


def test_a_folder_that_is_in_use(problem, unfinished, copied, monkeypatch):
    folder = copied(unfinished)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(loop, "make_stepper", None)  # refused before anything compiles
    with hold(folder):
        with pytest.raises(FolderInUseError, match=f"{folder} is in use by process"):
            run(problem, folder)
        assert before.items() <= {p.name: p.read_bytes() for p in folder.iterdir()}.items()


def test_a_folder_in_which_another_process_measures(tmp_path):
    kept = measured_once(tmp_path, "m", {"n": 1}, lambda: 1)
    with hold(tmp_path):
        assert measured_once(tmp_path, "m", {"n": 1}, pytest.fail) == kept
        with pytest.raises(FolderInUseError, match=f"{tmp_path} is in use by process"):
            measured_once(tmp_path, "m", {"n": 2}, pytest.fail)


def test_a_finished_run_in_a_folder_that_cannot_be_written_to_is_read(problem, finished):
    with hold(finished):
        assert run(problem, finished) == read_run(finished)


def test_a_run_whose_folder_is_deleted_writes_no_more(problem, tmp_path, monkeypatch):
    advance = RunInProgress.advance

    def delete(self, count):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        advance(self, count)

    monkeypatch.setattr(RunInProgress, "advance", delete)
    with pytest.raises(FolderInUseError, match="was deleted or taken over"):
        run(problem, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (EMPTIED, "is no JSON"),
        (HALVED, "is no JSON"),
        (changed(lambda b: b.replace(b'"result"', b'"results"')), "has no result"),
        (changed(lambda b: b.replace(b'"n": 1', b'"n": 2')), "of another config than its name"),
    ],
)
def test_a_measurement_that_was_damaged(tmp_path, damage, found):
    measured_once(tmp_path, "m", {"n": 1}, lambda: 1)
    (path,) = tmp_path.iterdir()
    damage(path)
    with pytest.raises(RecordError, match=f"{path}.*{found}.*elete it"):
        measured_once(tmp_path, "m", {"n": 1}, lambda: 1)
