"""What a browser sends is bounded, named by us, and gone where it breaks off."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace

import pytest

from chestct.serve import uploads as uploads_module
from chestct.serve.uploads import UploadError, Uploads, _safe_name


async def chunks(*parts: bytes, fault: BaseException | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if fault is not None:
        raise fault


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_arrives_under_names_of_ours_in_its_own_order(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    paths = ["p07/s10.tif", "p07/s2.tif", "p07/chestct.json", "p07/README"]
    upload = uploads.begin("p07", [(path, 1) for path in paths])
    for index in range(4):
        asyncio.run(uploads.receive(upload, index, chunks(str(index).encode())))
    scan = uploads.finish(upload)
    assert scan.name == "p07"
    kept = {name: (scan / name).read_text() for name in names_below(scan)}
    # By natural order: README, chestct.json, s2, s10.
    assert kept == {"000001": "3", "000003.tif": "1", "000004.tif": "0", "chestct.json": "2"}


def test_a_single_file_is_the_scan_and_keeps_its_kind(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    upload = uploads.begin("lung.nii.gz", [("lung.nii.gz", 3)])
    asyncio.run(uploads.receive(upload, 0, chunks(b"a", b"bc")))
    scan = uploads.finish(upload)
    assert (scan.name, scan.read_bytes()) == ("lung.nii.gz", b"abc")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("..", "scan"),
        ("", "scan"),
        ("C:\\Users\\me\\p07.zip", "p07.zip"),
        ("a\0b\n<script>.zip", "a_b__script_.zip"),
        (".hidden", "hidden"),
        ("x" * 300 + ".nii.gz", "x" * 73 + ".nii.gz"),
        ("Müller 2 (alt).zip", "Müller 2 (alt).zip"),
    ],
)
def test_a_name_becomes_one_part_of_a_path(given: str, kept: str) -> None:
    assert _safe_name(given) == kept


def test_paths_that_lead_out_of_the_folder_stay_in_it(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads")
    (tmp_path / "uploads").mkdir()
    upload = uploads.begin("..", [("../../outside.dcm", 1), ("/etc/other.dcm", 1)])
    for index in range(2):
        asyncio.run(uploads.receive(upload, index, chunks(b"x")))
    assert names_below(uploads.finish(upload)) == ["000001.dcm", "000002.dcm"]
    assert [path.name for path in tmp_path.iterdir()] == ["uploads"]


@pytest.mark.parametrize(
    ("files", "words", "status"),
    [
        ([("a.nii", 3_000_000_000)], "3.00 GB", HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        ([("s/a", 1)] * 50_001, "50001 files", HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        ([], "Nothing was dropped", HTTPStatus.BAD_REQUEST),
        ([("s/a", 0), ("s/b", 0)], "Nothing was dropped", HTTPStatus.BAD_REQUEST),
    ],
)
def test_too_much_or_nothing_is_refused_before_anything_is_written(
    tmp_path: Path, files: list[tuple[str, int]], words: str, status: int
) -> None:
    with pytest.raises(UploadError, match=words) as refused:
        Uploads(tmp_path).begin("scan", files)
    assert refused.value.status == status
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        uploads_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000_000)
    )
    with pytest.raises(UploadError, match=r"0\.10 GB are free"):
        Uploads(tmp_path).begin("scan", [("a.nii", 1_000_000)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parts", [(b"ab",), (b"abcd",)])
def test_more_or_less_than_was_announced_is_refused_and_removed(
    tmp_path: Path, parts: tuple[bytes, ...]
) -> None:
    uploads = Uploads(tmp_path)
    upload = uploads.begin("a.nii", [("a.nii", 3)])
    with pytest.raises(UploadError, match="than was announced"):
        asyncio.run(uploads.receive(upload, 0, chunks(*parts)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UploadError, match="not known any more"):
        uploads.find(upload.number)


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space left on device"), asyncio.CancelledError()]
)
def test_a_full_disk_and_a_broken_connection_leave_nothing_behind(
    tmp_path: Path, fault: BaseException
) -> None:
    uploads = Uploads(tmp_path)
    upload = uploads.begin("p", [("p/a", 3), ("p/b", 3)])
    asyncio.run(uploads.receive(upload, 0, chunks(b"abc")))
    with pytest.raises((UploadError, asyncio.CancelledError)) as broken:
        asyncio.run(uploads.receive(upload, 1, chunks(b"a", fault=fault)))
    assert list(tmp_path.iterdir()) == []
    if isinstance(broken.value, UploadError):
        assert "no space left on device" in str(broken.value)


def test_a_file_is_taken_once_and_only_if_it_was_announced(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    upload = uploads.begin("p", [("p/a", 1), ("p/b", 1)])
    asyncio.run(uploads.receive(upload, 0, chunks(b"x")))
    for index in (0, 2):
        with pytest.raises(UploadError, match="not announced"):
            asyncio.run(uploads.receive(upload, index, chunks(b"x")))
    with pytest.raises(UploadError, match="1 files have not arrived"):
        uploads.finish(upload)


def test_an_upload_whose_page_was_closed_goes_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads(tmp_path)
    upload = uploads.begin("p", [("p/a", 1)])
    uploads.sweep()
    assert uploads.find(upload.number) is upload
    monkeypatch.setattr(uploads_module, "_IDLE_S", -1.0)
    uploads.sweep()
    assert list(tmp_path.iterdir()) == []
