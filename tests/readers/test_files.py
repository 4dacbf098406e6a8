from __future__ import annotations

import gzip
import io
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from phantoms import chest

from chestct.errors import ReadError
from chestct.readers import dicom_slices, files, read_volume
from chestct.readers.files import (
    Unpacked,
    UnreadableFileError,
    first_inside,
    folder_files,
    is_wrapped,
    memory_file,
    opened_files,
    path_status,
    read_range,
    unwrapped,
)
from chestct.simulate import write_dicom_series


def names(path: Path) -> list[str]:
    with opened_files(path) as found:
        return [source.name for source in found]


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_nested_folders_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == ["a/1", "b/2", "c"]


def test_clutter_of_file_managers_is_ignored(tmp_path: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "kept"):
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == ["kept"]


def test_linked_folder_that_leads_back_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "slice").write_bytes(b"x")
    (tmp_path / "scan" / "loop").symlink_to(tmp_path / "scan", target_is_directory=True)
    assert names(tmp_path) == ["scan/slice"]


def test_link_to_nothing_is_listed_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "nothing").symlink_to(tmp_path / "absent")
    (listed,) = files.folder_files(tmp_path)
    assert (listed.name, listed.problem) == ("nothing", "No such file or directory")


def test_pipe_in_a_folder_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path) == []


def test_pipe_named_as_a_scan_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(ReadError, match="neither a file nor a folder"),
        opened_files(tmp_path / "pipe"),
    ):
        pass


def test_folder_with_too_many_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 3)
    for index in range(4):
        (tmp_path / str(index)).write_bytes(b"x")
    with pytest.raises(ReadError, match="more than 3 files"):
        folder_files(tmp_path)


def test_folder_that_cannot_be_listed_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ReadError, match="Permission denied"):
        folder_files(tmp_path)


def test_file_that_cannot_be_opened_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="cannot be opened"):
        files._first_bytes(tmp_path / "absent", 4)


def test_zip_members_are_read_where_they_lie(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"b/x": b"123", "a": b"45", "__MACOSX/._a": b"6"})
    with opened_files(path) as found:
        contents = []
        for source in found:
            with source.open() as stream:
                contents.append((source.name, stream.read(), source.size))
    assert contents == [("a", b"45", 2), ("b/x", b"123", 3)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.zip"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "..\\x", "C:\\x", "\\x"])
def test_zip_member_whose_path_leaves_the_zip_is_refused(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    with pytest.raises(ReadError, match="leads out of the zip"), opened_files(path):
        pass


def test_zip_bomb_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{i}": bytes(2**25) for i in range(9)})
    with pytest.raises(ReadError, match="more than a CT scan does"), opened_files(path):
        pass


def test_zip_that_declares_more_than_any_scan_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MAX_UNPACKED_BYTES", 10)
    path = make_zip(tmp_path / "a.zip", {"a": os.urandom(11)})
    with pytest.raises(ReadError, match="would unpack"), opened_files(path):
        pass


def test_zip_with_too_many_members_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 1)
    path = make_zip(tmp_path / "a.zip", {"a": b"1", "b": b"2"})
    with pytest.raises(ReadError, match="holds 2 files"), opened_files(path):
        pass


def test_damaged_zip_is_an_error_of_ours(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a": b"1"})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ReadError, match="damaged zip"), opened_files(path):
        pass


def test_range_beyond_the_end_says_where_the_file_ends() -> None:
    with pytest.raises(UnreadableFileError, match="ends at byte 3, 5 were expected"):
        read_range(io.BytesIO(b"abc"), 1, 4)


def test_range_of_a_broken_stream_is_unreadable(tmp_path: Path) -> None:
    stream = (tmp_path / "x").open("wb")
    with stream, pytest.raises(UnreadableFileError, match="cannot be read"):
        read_range(stream, 0, 1)


def test_wrapped_file_is_unpacked() -> None:
    packed = gzip.compress(b"content" * 100)
    assert is_wrapped(packed)
    inner = unwrapped(memory_file(packed, "name", len(packed)))
    assert (inner.open().read(), inner.name) == (b"content" * 100, "name")
    assert (inner.stored_bytes, inner.size) == (len(packed), 700)


def test_bomb_wrapped_in_a_file_is_unreadable() -> None:
    packed = gzip.compress(bytes(2**24))
    with pytest.raises(UnreadableFileError, match="unpack"):
        unwrapped(memory_file(packed, "name", len(packed)))


def test_damaged_wrapped_file_is_unreadable() -> None:
    packed = gzip.compress(os.urandom(1000))[:500]
    with pytest.raises(UnreadableFileError, match="cannot be unpacked"):
        unwrapped(memory_file(packed, "name", len(packed)))


@pytest.mark.parametrize("size", [10, 300, 70_000, 300_000])
def test_first_bytes_inside_are_those_that_were_packed(size: int) -> None:
    content = bytes(128) + b"DICM" + os.urandom(size)
    assert first_inside(gzip.compress(content)[: 2**18]) == content[:132]


def test_first_bytes_inside_a_damaged_stream_are_none() -> None:
    assert first_inside(b"\x1f\x8b" + bytes(20)) == b""
    assert first_inside(gzip.compress(b"content")[:-9])[:3] == b"con"


def test_path_whose_name_is_too_long_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"File name too long\..*check its name") as raised:
        path_status(tmp_path / ("x" * 5000))
    assert len(str(raised.value)) < 500


def test_path_that_may_not_be_looked_at_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with (
        pytest.raises(ReadError, match=r"Permission denied\..*you may read the folders above"),
        opened_files(tmp_path),
    ):
        pass


@pytest.mark.parametrize("name", ["absent", "file/inside", "null\0byte"])
def test_path_where_nothing_can_be_is_an_error_of_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReadError, match="There is no file or folder"):
        path_status(tmp_path / name)


def test_status_of_a_regular_file_is_given(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert stat.S_ISREG(files._file_status(tmp_path / "x").st_mode)


@pytest.mark.parametrize(
    ("name", "start", "words"),
    [
        ("scan.tar", b"", "tar archive"),
        ("scan.tar.gz", b"\x1f\x8b", "tar archive"),
        ("scan.bin", bytes(257) + b"ustar", "tar archive"),
        ("scan.7z", b"7z\xbc\xaf\x27\x1c", "7z archive"),
        ("scan.rar", b"Rar!\x1a\x07\x01", "rar archive"),
    ],
)
def test_an_archive_that_is_not_read_is_named_with_the_remedy(
    tmp_path: Path, name: str, start: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(start + bytes(300))
    with pytest.raises(ReadError, match=rf"{words}, which is not read. Unpack it"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["inner.zip", "scan.nii.gz", "scan.mha", "scan.tar"])
def test_a_zip_of_archives_or_of_whole_scans_is_said_to_be_one(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr(f"a/{name}", b"anything")
    with pytest.raises(ReadError, match=r"not read inside a zip. Unpack it and name one"):
        read_volume(tmp_path / "outer.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damage_in_a_zip_of_any_method_is_a_sentence(tmp_path: Path, method: int) -> None:
    place = tmp_path / "scan.zip"
    with zipfile.ZipFile(place, "w", method) as archive:
        archive.writestr("slice.dcm", bytes(128) + b"DICM" + bytes(range(256)) * 40)
    content = bytearray(place.read_bytes())
    content[60:90] = bytes(30)
    place.write_bytes(content)
    with pytest.raises(ReadError):
        read_volume(place)


def test_a_zip_packed_by_a_method_that_is_not_unpacked_is_said(tmp_path: Path) -> None:
    place = tmp_path / "scan.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("slice.dcm", b"content")
    content = bytearray(place.read_bytes())
    deflate64 = (9).to_bytes(2, "little")
    content[8:10] = deflate64
    at = content.index(b"PK\x01\x02") + 10
    content[at : at + 2] = deflate64
    place.write_bytes(content)
    with pytest.raises(ReadError, match="packed by method 9"):
        read_volume(place)


def test_gzipped_slices_have_one_limit_for_all_of_them() -> None:
    unpacked = Unpacked(most_bytes=100)
    part = memory_file(bytes(60), "name", 9)
    assert unpacked.added(part, part) is part
    with pytest.raises(ReadError, match="in all, more than a CT scan"):
        unpacked.added(part, part)


def test_gzipped_slices_are_kept_unpacked_only_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in write_dicom_series(chest(), tmp_path / "scan"):
        path.with_suffix(".dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    kept = read_volume(tmp_path / "scan")
    monkeypatch.setattr(dicom_slices, "Unpacked", partial(Unpacked, most_kept=0))
    np.testing.assert_array_equal(read_volume(tmp_path / "scan").voxels, kept.voxels)
    monkeypatch.setattr(dicom_slices, "Unpacked", partial(Unpacked, most_bytes=20_000))
    with pytest.raises(ReadError, match="in all, more than a CT scan"):
        read_volume(tmp_path / "scan")


@pytest.mark.parametrize(("most_kept", "times"), [(2**28, 1), (0, 2)])
def test_gzipped_slices_are_unpacked_once_and_once_more_where_they_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_kept: int, times: int
) -> None:
    for path in write_dicom_series(chest(), tmp_path / "scan"):
        path.with_suffix(".dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    unpacked: Counter[str] = Counter()

    def counting(stream: io.BufferedReader, limit: int) -> Iterator[bytes]:
        unpacked[stream.name] += 1
        return unpack(stream, limit)

    unpack = files._gzip_chunks
    monkeypatch.setattr(files, "_gzip_chunks", counting)
    monkeypatch.setattr(dicom_slices, "Unpacked", partial(Unpacked, most_kept=most_kept))
    volume = read_volume(tmp_path / "scan")
    assert len(unpacked) == volume.voxels.shape[0]
    assert set(unpacked.values()) == {times}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.dcm.bz2", r"x\.dcm\.bz2 is packed by bzip2"),
        ("x.dcm.xz", r"x\.dcm\.xz is packed by xz"),
        (".x.dcm.icloud", r"\.x\.dcm\.icloud cannot be opened: it was not fetched from iCloud"),
    ],
)
def test_slices_that_are_packed_or_were_not_fetched_are_refused(
    tmp_path: Path, name: str, said: str
) -> None:
    write_dicom_series(chest(), tmp_path)
    (tmp_path / name).write_bytes(b"BZh9" + bytes(999))
    with pytest.raises(ReadError, match=said):
        read_volume(tmp_path)


@pytest.mark.parametrize("name", ["x.dcm.zst", "x.zst"])
def test_slices_packed_by_zstandard_are_said_and_not_left_out_in_silence(
    tmp_path: Path, name: str
) -> None:
    write_dicom_series(chest(), tmp_path / "scan")
    (tmp_path / "scan" / name).write_bytes(b"\x28\xb5\x2f\xfd" + bytes(2000))
    if name == "x.zst":
        left_out = read_volume(tmp_path / "scan").source.left_out
        assert left_out == {"file that cannot be opened": 1}
        return
    with pytest.raises(ReadError, match=r"x\.dcm\.zst is packed by Zstandard"):
        read_volume(tmp_path / "scan")
    alone = tmp_path / name
    (tmp_path / "scan" / name).rename(alone)
    with pytest.raises(ReadError, match="is a Zstandard archive, which is not read"):
        read_volume(alone)
