"""The cache: all of an entry or nothing, and never a damaged one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from chestct import storage
from chestct.storage import cache_folder, find_entry, store_entry, text_key


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "chestct" / "things"


def write_words(entry: Path) -> None:
    (entry / "words").write_text("some words")
    (entry / "more").write_text("more words")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_stored_is_found(folder: Path) -> None:
    assert find_entry("things", "a") is None
    stored = store_entry("things", "a", write_words)
    assert stored == find_entry("things", "a") == folder / "a"
    assert (folder / "a" / "words").read_text() == "some words"
    assert names(folder) == ["a"]


@pytest.mark.parametrize("name", ["words", "digests.json"])
@pytest.mark.parametrize("content", [None, b"", b"other words", b"[]", b"{}", b'{"words": 3}'])
def test_a_damaged_entry_is_absent_and_can_be_stored_again(
    folder: Path, name: str, content: bytes | None
) -> None:
    store_entry("things", "a", write_words)
    if content is None:
        (folder / "a" / name).unlink()
    else:
        (folder / "a" / name).write_bytes(content)
    assert find_entry("things", "a") is None
    assert store_entry("things", "a", write_words) == folder / "a"
    assert names(folder) == ["a"]


def test_an_entry_that_cannot_be_written_leaves_nothing(folder: Path) -> None:
    def fail(entry: Path) -> None:
        write_words(entry)
        raise OSError("disk full")

    assert store_entry("things", "a", fail) is None
    assert names(folder) == []


def test_a_sound_entry_of_a_faster_process_stays(folder: Path) -> None:
    def slow(entry: Path) -> None:
        store_entry("things", "a", write_words)
        (entry / "words").write_text("late words")

    assert store_entry("things", "a", slow) == folder / "a"
    assert (folder / "a" / "words").read_text() == "some words"
    assert names(folder) == ["a"]


def test_the_entries_used_longest_ago_are_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, key in enumerate(["new", "old", "older"]):
        store_entry("things", key, write_words)
        os.utime(folder / key, (1e9 - age, 1e9 - age))
    assert find_entry("things", "old") is not None
    monkeypatch.setattr(storage, "MAX_ENTRIES", 2)
    store_entry("things", "newest", write_words)
    assert names(folder) == ["newest", "old"]


def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path.home()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == home / ".cache" / "chestct"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == home / "Library" / "Caches" / "chestct"
    monkeypatch.setenv("LOCALAPPDATA", "local")
    assert cache_folder() == Path("local") / "chestct"


def test_without_a_home_nothing_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(storage, "cache_folder", homeless)
    assert find_entry("things", "a") is None
    assert store_entry("things", "a", write_words) is None


def test_keys_tell_texts_apart() -> None:
    assert text_key("ab", "c") != text_key("a", "bc")
    assert text_key("ab", "c") == text_key("ab", "c")
