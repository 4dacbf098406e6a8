"""Copies of files on other storage: whole, no more than allowed, and without anyone's password."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import fsspec
import pytest
from fsspec.registry import known_implementations
from object_server import LOGIN, served

from chestct.errors import ChestCTError, ReadError, WriteError
from chestct.extras import MissingExtraError
from chestct.remote import (
    LIMIT_VARIABLE,
    joined,
    local_copy,
    refuse_secrets,
    shown,
    stamp_of,
    whole,
)
from chestct.storage import is_address, make_folder, write_text

SECRET = "aVerySecretThing"


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of copies, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chestct" / "remote"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """Storage that is no disk."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An address, and the folder that is served there."""
    folder = tmp_path / "web"
    folder.mkdir()
    with served(folder) as address:
        yield address, folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def entries(copies: Path) -> list[Path]:
    return [path for path in copies.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/p07", "s3://bucket/p07"),
        ("s3://bucket/list/../p07", "s3://bucket/p07"),
        ("HTTPS://host/a%20b.nii.gz", "https://host/a%20b.nii.gz"),
        (f"https://host/p.zip?X-Amz-Signature={SECRET}/x", "https://host/p.zip"),
        (f"https://me:{SECRET}@host/p.zip", "https://host/p.zip"),
        (f"https://{SECRET}@host/p.zip", "https://host/p.zip"),
        ("sftp://me@host/p.zip", "sftp://me@host/p.zip"),
        ("abfs://scans@account.net/p07", "abfs://scans@account.net/p07"),
    ],
)
def test_an_address_is_known_as_a_path_and_shown_without_secrets(text: str, expected: str) -> None:
    assert is_address(text)
    assert is_address(Path(text))
    assert shown(text) == shown(Path(text)) == whole(Path(text)) == expected
    assert joined(Path("elsewhere"), text) == Path(text)


@pytest.mark.parametrize("text", ["/data/p07", "p07", "C:/data", "a:b", "hf:name", "x/s3:/y", ""])
def test_a_path_is_no_address(text: str) -> None:
    assert not is_address(text)
    assert shown(text) == text
    assert whole(text) == os.path.abspath(text)
    with local_copy(text) as place:
        assert place == Path(text)


def test_a_path_is_relative_to_a_folder_at_an_address() -> None:
    assert shown(joined(Path("s3://bucket/lists"), "../scans/p07")) == "s3://bucket/scans/p07"
    assert joined(Path("s3://bucket/lists"), "/data/p07") == Path("/data/p07")


def test_a_file_is_copied_once_until_it_changes(
    memory: fsspec.AbstractFileSystem, copies: Path
) -> None:
    memory.pipe_file("/scans/p07.nii.gz", b"first")
    address = Path("memory://scans/p07.nii.gz")
    for _ in range(2):
        with local_copy(address) as place:
            assert place.name == "p07.nii.gz"
            assert place.read_bytes() == b"first"
    assert len(entries(copies)) == 1
    memory.pipe_file("/scans/p07.nii.gz", b"other")
    with local_copy(address) as place:
        assert place.read_bytes() == b"other"
    assert len(entries(copies)) == 2


def test_several_that_want_the_same_at_once_get_it_whole(
    web: tuple[str, Path], copies: Path
) -> None:
    address, folder = web
    (folder / "p07.nii.gz").write_bytes(bytes(2**22))

    def read(_: int) -> int:
        with local_copy(f"{address}/p07.nii.gz") as place:
            return len(place.read_bytes())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(16))) == {2**22}
    assert len(entries(copies)) == 1


def test_nobody_waits_for_the_other_files_where_one_cannot_be_had(
    memory: fsspec.AbstractFileSystem, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bad", "long"):
        memory.pipe_file(f"/p07/{name}", b"slice")
    is_broken, whole_get = Event(), type(memory).get_file
    chunks = []

    def get(system: object, place: str, target: str, callback: fsspec.Callback) -> None:
        if place.endswith("bad"):
            is_broken.set()
            raise ConnectionResetError
        is_broken.wait()
        for _ in range(1000):
            time.sleep(0.01)
            chunks.append(place)
            callback.relative_update(0)
        whole_get(system, place, target)

    monkeypatch.setattr(type(memory), "get_file", get)
    with pytest.raises(ReadError, match=r"memory://p07 broke off \(ConnectionResetError\)"):
        local_copy("memory://p07").__enter__()
    assert len(chunks) < 1000
    assert files_below(copies) == {}


def test_a_folder_is_copied_with_those_in_it(memory: fsspec.AbstractFileSystem) -> None:
    for name in ("1.dcm", "2.dcm", "series/3.dcm"):
        memory.pipe_file(f"/scans/p07/{name}", name.encode())
    memory.pipe_file("/scans/p071/4.dcm", b"another scan")
    with local_copy("memory://scans/p07") as place:
        assert place.name == "p07"
        assert files_below(place) == {
            "1.dcm": b"1.dcm",
            "2.dcm": b"2.dcm",
            "series/3.dcm": b"series/3.dcm",
        }


def test_a_file_and_a_folder_come_from_the_web(web: tuple[str, Path]) -> None:
    address, folder = web
    scan = folder / "p 07"
    (scan / "more").mkdir(parents=True)
    (scan / "a b.dcm").write_bytes(b"first")
    (scan / "more" / "c.dcm").write_bytes(b"second")
    with local_copy(f"{address}/p%2007/a%20b.dcm") as place:
        assert (place.name, place.read_bytes()) == ("a b.dcm", b"first")
    with local_copy(f"{address}/p%2007") as place:
        assert place.name == "p 07"
        assert files_below(place) == {"a b.dcm": b"first", "more/c.dcm": b"second"}
    (scan / "more" / "c.dcm").write_bytes(b"changed since")
    with local_copy(f"{address}/p%2007") as place:
        assert files_below(place)["more/c.dcm"] == b"changed since"


def test_a_page_cannot_lead_out_of_its_folder(web: tuple[str, Path], copies: Path) -> None:
    address, folder = web
    (folder / "p07").mkdir()
    links = ("../other.dcm", "/other.dcm", "%2E%2E%2Fup.dcm", "1.dcm", "?C=N;O=D", f"{address}/x")
    page = "".join(f'<a href="{link}">file</a>' for link in links)
    (folder / "p07" / "index.html").write_text(page)
    (folder / "p07" / "1.dcm").write_bytes(b"slice")
    for name in ("other.dcm", "up.dcm"):
        (folder / name).write_bytes(b"of somebody else")
    with local_copy(f"{address}/p07") as place:
        found = files_below(place.parent)
    del found[".bytes"]
    assert all(name.startswith("p07/") for name in found)
    assert found["p07/1.dcm"] == b"slice"
    assert set(files_below(copies)) == {
        f"{place.parent.name}/{name}" for name in (*found, ".bytes")
    }


def test_copies_used_longest_ago_make_way_and_never_one_in_use(
    memory: fsspec.AbstractFileSystem, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, str(250 / 2**30))
    for name in "abcd":
        memory.pipe_file(f"/{name}", name.encode() * 100)

    def kept() -> set[str]:
        return {path.name for entry in entries(copies) for path in entry.iterdir()} - {".bytes"}

    with local_copy("memory://a") as first:
        with local_copy("memory://b"):
            pass
        assert kept() == {"a", "b"}
        with local_copy("memory://c") as third:
            assert kept() == {"a", "c"}, "a is older and in use"
            with pytest.raises(ReadError, match=r"are in use\. Allow more"):
                local_copy("memory://d").__enter__()
            assert third.read_bytes() == b"c" * 100
        assert first.read_bytes() == b"a" * 100
    os.utime(first.parent)
    with local_copy("memory://d"):
        assert kept() == {"a", "d"}, "c was used longer ago"


def test_what_is_larger_than_all_copies_may_be_is_refused(
    memory: fsspec.AbstractFileSystem, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.001")
    memory.pipe_file("/large", bytes(2**21))
    with pytest.raises(ReadError, match=rf"memory://large takes 0.00 GiB.*{LIMIT_VARIABLE}=40"):
        local_copy("memory://large").__enter__()
    assert files_below(copies) == {}


@pytest.mark.parametrize("said", ["much", "-1", "0", "nan"])
def test_a_limit_must_be_a_number(
    said: str, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, said)
    memory.pipe_file("/a", b"a")
    with pytest.raises(ReadError, match=f"is '{said}' and must be a number of GiB"):
        local_copy("memory://a").__enter__()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.nii.gz", "is not there. Correct the address"),
        ("refused.nii.gz", "may not be read: its storage wants other credentials"),
        ("busy.nii.gz", "answered with status 503; nothing half is kept"),
        ("torn.nii.gz", "broke off"),
        ("empty", "is a folder in which no file can be seen"),
    ],
)
def test_what_the_web_does_not_give_is_said_without_secrets_and_leaves_nothing(
    name: str, words: str, web: tuple[str, Path], copies: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, folder = web
    (folder / "empty").mkdir()
    place = address.replace("http://", f"http://me:{SECRET}@")
    query = "" if name == "empty" else f"?X-Amz-Signature={SECRET}"
    with pytest.raises(ReadError) as caught:
        local_copy(f"{place}/{name}{query}").__enter__()
    assert str(caught.value).startswith((f"{address}/{name} ", f"The storage of {address}/{name} "))
    assert words in str(caught.value)
    assert SECRET not in caplog.text
    # What --debug shows: no error of a library, which names the whole address.
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    left = files_below(copies) if copies.exists() else {}
    assert left == {}


def test_a_storage_that_is_not_reached_is_named(web: tuple[str, Path]) -> None:
    with served(web[1]) as address:
        pass
    with pytest.raises(ReadError, match=rf"The storage of {address}/p07 broke off .*Connect"):
        local_copy(f"{address}/p07").__enter__()


def test_a_login_is_taken_from_the_address_or_from_netrc(
    web: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = web
    (folder / "locked.zip").write_bytes(b"zip")
    with pytest.raises(ReadError, match="wants other credentials"):
        local_copy(f"{address}/locked.zip").__enter__()
    with local_copy(f"{address.replace('//', f'//{LOGIN[0]}:{LOGIN[1]}@')}/locked.zip") as place:
        assert place.read_bytes() == b"zip"
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {LOGIN[0]} password {LOGIN[1]}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with local_copy(f"{address}/locked.zip") as place:
        assert place.read_bytes() == b"zip"


def test_names_of_copies_hold_no_secret(web: tuple[str, Path], copies: Path) -> None:
    address, folder = web
    (folder / "p07.zip").write_bytes(b"zip")
    signed = f"{address.replace('//', f'//me:{SECRET}@')}/p07.zip?sig={SECRET}"
    with local_copy(signed) as place:
        assert place.read_bytes() == b"zip"
    assert SECRET not in " ".join(map(str, copies.rglob("*")))


def test_a_protocol_that_lacks_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = {"class": "chestct_not_there.System", "err": "Install chestct_not_there"}
    monkeypatch.setitem(known_implementations, "lacking", lacking)
    with pytest.raises(MissingExtraError, match=r"Install chestct_not_there.*'chestct\[remote\]'"):
        local_copy("lacking://host/p07").__enter__()


def test_the_web_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chestct.extras.is_installed", lambda package: package != "aiohttp")
    with pytest.raises(MissingExtraError, match=r"pip install 'chestct\[remote\]'"):
        local_copy("https://host/p07").__enter__()


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ReadError, match=r"'nowhere' is no storage that is known\. Expected https"):
        local_copy("nowhere://host/p07").__enter__()


def test_a_full_disk_is_said(
    memory: fsspec.AbstractFileSystem, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*said: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    memory.pipe_file("/a", b"a")
    monkeypatch.setattr(type(memory), "get_file", fill)
    with pytest.raises(ReadError, match="memory://a does not fit the disk"):
        local_copy("memory://a").__enter__()
    assert files_below(copies) == {}


def test_a_file_of_another_length_than_was_said_is_not_kept(
    memory: fsspec.AbstractFileSystem, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe_file("/a", b"four")
    facts = memory.info("/a")
    for size in (3, 5):
        said = {**facts, "size": size}
        monkeypatch.setattr(type(memory), "info", lambda *_, said=said: said)
        with pytest.raises(ReadError, match="memory://a came in another length"):
            local_copy("memory://a").__enter__()
        assert files_below(copies) == {}


def test_what_says_nothing_of_itself_is_copied_each_time(
    memory: fsspec.AbstractFileSystem, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe_file("/a", b"four")
    monkeypatch.setattr(type(memory), "info", lambda *_: {"type": "file", "size": None})
    for number in (1, 2):
        with local_copy("memory://a") as place:
            assert place.read_bytes() == b"four"
        assert len(entries(copies)) == number


def test_a_stamp_is_asked_for_once(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/stamped", b"first")
    stamp = stamp_of(Path("memory://stamped"))
    memory.rm("/stamped")
    assert stamp_of(Path("memory://stamped")) == stamp


def test_secrets_are_refused_where_they_would_be_kept() -> None:
    refuse_secrets("s3://bucket/p07", "row 2")
    refuse_secrets("/data/p07?x", "row 2")
    with pytest.raises(
        ReadError, match=r"^row 2: https://host/p07 is named with a password"
    ) as said:
        refuse_secrets(f"https://host/p07?sig={SECRET}", "row 2")
    assert SECRET not in str(said.value)


def test_results_are_not_written_to_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WriteError, match="on other storage"):
        make_folder(Path("s3://bucket/results"))
    with pytest.raises(ChestCTError, match="on other storage"):
        write_text(Path("s3://bucket/results/a.csv"), "")
    assert list(tmp_path.iterdir()) == []
