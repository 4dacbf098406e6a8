"""Folders kept beside the user's other caches, written at once or not at all, checked when read.

An entry is a folder with a `digests.json` that holds the hash of every other file in it. It is
written aside and renamed into place, so that a reader sees all of it or nothing, and an entry
whose hashes do not agree is treated as absent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

DIGESTS: Final = "digests.json"
MAX_ENTRIES: Final = 12
"""Entries kept per kind; the ones used longest ago are removed first."""


def cache_folder() -> Path:
    """Where this program keeps what it can make again.

    `XDG_CACHE_HOME/chestct` where that is set, else the platform's usual place.

    Raises:
        RuntimeError: There is no home folder.
    """
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    if named:
        return Path(named) / "chestct"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "chestct"
    return Path.home() / ".cache" / "chestct"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_key(*parts: str) -> str:
    """A file name that stands for several texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def find_entry(kind: str, key: str) -> Path | None:
    """The folder of an entry, or None when it is absent, damaged or out of reach."""
    try:
        entry = cache_folder() / kind / key
        digests = json.loads((entry / DIGESTS).read_text(encoding="utf-8"))
        if not isinstance(digests, dict) or not digests:
            return None
        if any(file_sha256(entry / name) != digest for name, digest in digests.items()):
            logger.warning("A damaged entry of the cache is made again: %s/%s", kind, key)
            return None
        os.utime(entry)
    except (OSError, RuntimeError, ValueError):
        return None
    return entry


def store_entry(kind: str, key: str, write: Callable[[Path], None]) -> Path | None:
    """Make an entry and put it in its place.

    Args:
        kind: Kind of entry, a folder of the cache.
        key: Name of the entry, from `text_key`.
        write: Fills the empty folder it is given with files.

    Returns:
        The entry's folder, or None when the cache cannot be written; that is no error.
    """
    try:
        parent = cache_folder() / kind
        parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    except (OSError, RuntimeError) as error:
        logger.warning("Nothing is cached: %s", error)
        return None
    try:
        write(aside)
        digests = {path.name: file_sha256(path) for path in sorted(aside.iterdir())}
        (aside / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
        _move_into_place(aside, parent / key)
        _remove_oldest(parent)
    except (OSError, RuntimeError) as error:
        logger.warning("Nothing is cached: %s", error)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return find_entry(kind, key)


def _move_into_place(aside: Path, entry: Path) -> None:
    """Rename; a damaged entry makes way, a sound one that another process made stays."""
    if entry.exists() and find_entry(entry.parent.name, entry.name) is None:
        damaged = Path(tempfile.mkdtemp(prefix=".old-", dir=entry.parent))
        entry.rename(damaged / entry.name)
        shutil.rmtree(damaged, ignore_errors=True)
    if not entry.exists():
        aside.rename(entry)


def _remove_oldest(parent: Path) -> None:
    entries = [path for path in parent.iterdir() if not path.name.startswith(".")]
    by_age = sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in by_age[MAX_ENTRIES:]:
        shutil.rmtree(path, ignore_errors=True)
