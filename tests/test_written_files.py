from __future__ import annotations

import errno
from pathlib import Path

import pytest

from chestct.errors import WriteError
from chestct.files import make_folder, write_folder_with, write_whole, write_whole_with


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
