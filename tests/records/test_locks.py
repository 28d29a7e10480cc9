"""One process at a time writes to a folder."""

import errno
import json
import os
import socket

import pytest

from fwdgrad.records import FolderInUseError, atomic_write, hold, locks


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_hold_raises_with_the_name_of_the_first(tmp_path):
    with hold(tmp_path) as held:
        with pytest.raises(FolderInUseError) as refused, hold(tmp_path):
            pass
        held.check()
    found = str(refused.value)
    assert found.startswith(
        f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}, since 2"
    )
    assert "Wait until that process has finished" in found
    assert names(tmp_path) == []
    with hold(tmp_path) as held:
        held.check()


def test_a_failed_hold_leaves_the_files_of_the_holder(tmp_path):
    with hold(tmp_path), atomic_write(tmp_path / "metrics.csv") as file:
        file.write("step\n")
        with pytest.raises(FolderInUseError), hold(tmp_path):
            pass
    assert (tmp_path / "metrics.csv").read_text() == "step\n" and names(tmp_path) == ["metrics.csv"]


def test_folders_beside_and_within_each_other_are_held_at_once(tmp_path):
    with hold(tmp_path), hold(tmp_path / "a" / "b"), hold(tmp_path / "a" / "c"):
        pass
    assert names(tmp_path) == []  # what was made and left empty is removed
    with hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert names(tmp_path / "a" / "b") == ["file"]


@pytest.mark.parametrize("holder", ['{"pid": 1, "token": "old"}', "", "{", "[]"])
def test_files_of_a_killed_holder_do_not_block_a_hold(tmp_path, holder):
    (tmp_path / ".lock").touch()
    (tmp_path / ".holder.json").write_text(holder)
    (tmp_path / ".metrics.csv-abc.unfinished").write_text("half")
    with hold(tmp_path) as held:
        held.check()
        assert json.loads((tmp_path / ".holder.json").read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


def test_a_folder_that_is_deleted_or_taken_over_is_noticed(tmp_path):
    folder = tmp_path / "run"
    with hold(folder) as first:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        with pytest.raises(FolderInUseError, match=f"{folder} was deleted or taken over"):
            first.check()
        with hold(folder) as second:
            with pytest.raises(FolderInUseError, match=f"this process .pid {os.getpid()}"):
                first.check()
            second.check()


def no_locks(self):
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"the folder cannot be locked .* \(output.root\).*file"):
        hold(tmp_path / "file").__enter__()
    monkeypatch.setattr(locks.FileLock, "acquire", no_locks)
    with pytest.raises(OSError, match=r"No locks available.*without locks.*output.root") as error:
        hold(tmp_path).__enter__()
    assert error.value.filename == str(tmp_path) and error.value.errno == errno.ENOLCK
