from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chestct import storage
from chestct.errors import WriteError
from chestct.storage import (
    _remove_abandoned,
    install,
    make_folder,
    working_folder,
    write_folder_with,
    write_whole,
    write_whole_with,
)


def full_disk(path: Path) -> None:
    """Write a little, then fail as a full disk does."""
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a" / "b" / "x.txt", b"whole")
    assert path.read_bytes() == b"whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.txt"]


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    write_whole(tmp_path / "x.txt", b"old")
    assert write_whole(tmp_path / "x.txt", b"new").read_bytes() == b"new"


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "x.txt", b"old")
    with pytest.raises(WriteError, match=r"x\.txt cannot be written: no space left on device"):
        write_whole_with(path, full_disk)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(WriteError, match="is a file and a folder is needed"):
        make_folder(tmp_path / "out")
    with pytest.raises(WriteError, match="cannot be written"):
        make_folder(tmp_path / "out" / "below")


def test_a_folder_that_may_not_be_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WriteError, match="permission denied"):
        make_folder(tmp_path / "out")


def test_a_folder_is_replaced_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    folder = write_folder_with(tmp_path / "scan", lambda aside: (aside / "1").write_text("one"))
    with pytest.raises(WriteError, match="no space left"):
        write_folder_with(folder, lambda aside: full_disk(aside / "2"))
    assert [entry.name for entry in folder.iterdir()] == ["1"]
    write_folder_with(folder, lambda aside: (aside / "3").write_text("three"))
    assert [entry.name for entry in folder.iterdir()] == ["3"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan"]


def working_folders(folder: Path) -> list[Path]:
    return sorted(folder.glob(".chestct-part-*"))


IN_WORK = """
import sys, time
from pathlib import Path
from chestct.storage import working_folder
with working_folder(Path(sys.argv[1])) as working:
    (working / "half").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def process_at_work(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is writing to the folder."""
    command = [sys.executable, "-c", IN_WORK, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_what_a_killed_process_left_goes_at_the_next_start_and_nobody_elses(
    process_at_work: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "x.txt", b"whole")
    assert len(working_folders(tmp_path)) == 1
    process_at_work.kill()
    process_at_work.wait()
    assert len(working_folders(tmp_path)) == 1
    # As the next process would find it.
    monkeypatch.setattr(storage, "_swept", set())
    write_whole(tmp_path / "x.txt", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_where_a_disk_knows_no_locks_what_is_left_goes_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with working_folder(tmp_path) as working:
        at_work = working.parent
        for age_s, num_left in ((0, 1), (25 * 3600, 0)):
            os.utime(at_work, (time.time() - age_s,) * 2)
            monkeypatch.setattr(storage, "_swept", set())
            _remove_abandoned(tmp_path)
            assert len(working_folders(tmp_path)) == num_left


def test_a_working_folder_that_was_taken_for_abandoned_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, calls = fcntl.flock, []

    def swept_once(lock: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            raise BlockingIOError
        usual(lock, how)

    monkeypatch.setattr("fcntl.flock", swept_once)
    with working_folder(tmp_path) as working:
        assert list(working.iterdir()) == []
        assert len(working_folders(tmp_path)) == 2


def test_two_at_once_get_folders_of_their_own_with_usual_permissions(tmp_path: Path) -> None:
    with working_folder(tmp_path) as first, working_folder(tmp_path) as second:
        assert first != second
        assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    folder = write_folder_with(tmp_path / "scan", lambda aside: (aside / "1").touch())
    (tmp_path / "usual").mkdir()
    assert folder.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert working_folders(tmp_path) == []


def installed(tmp_path: Path, names: Sequence[str], **named: Any) -> list[str]:
    """Install files of these names in a folder; returns what is there then."""
    folder = tmp_path / "out"
    with working_folder(folder) as working:
        for name in names:
            (working / name).parent.mkdir(exist_ok=True)
            (working / name).write_text(name)
        install(working, folder, **named)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_files_are_installed_whole_and_old_ones_go(tmp_path: Path) -> None:
    assert installed(tmp_path, ["a.txt", "b/c.txt"]) == ["a.txt", "b/c.txt"]
    assert installed(tmp_path, ["d.txt"], old=[tmp_path / "out" / "a.txt"]) == ["b/c.txt", "d.txt"]


def test_a_file_that_another_program_removes_meanwhile_is_noticed_before_success_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Path.replace

    def tidied_up(path: Path, target: Path) -> Path:
        found = usual(path, target)
        if target.name == "b.txt":
            (target.parent / "a.txt").unlink()
        return found

    monkeypatch.setattr(Path, "replace", tidied_up)
    with pytest.raises(WriteError, match=r"a\.txt was changed or removed by another program"):
        installed(tmp_path, ["a.txt", "b.txt"])


def test_two_processes_install_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    lock = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(installed, tmp_path, ["a.txt"])
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.2)
        os.close(lock)
        assert waiting.result(timeout=20) == ["a.txt"]


def test_a_refusal_without_a_reason_is_put_into_words(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise OSError("encoder error -2 when writing image file")

    with pytest.raises(WriteError, match=r"no reason was given, as happens when a disk is full"):
        write_whole_with(tmp_path / "x.png", refuse)
