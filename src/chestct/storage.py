"""What is kept on disk: whole files, whole folders, a cache of folders, and digests of them.

Everything is made in a working folder and then moved into place, so that nobody ever reads half of
it. A working folder is made for one process alone and locked as long as that lives: one that can be
locked belongs to a process that was killed, and goes when the next one starts there. Process
numbers could not tell: containers that share a disk give the same ones.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from chestct.errors import WriteError

_HAS_LOCKS = find_spec("fcntl") is not None
"""Not so on Windows, where a file that is open cannot be removed."""
if _HAS_LOCKS:
    import fcntl

logger = logging.getLogger(__name__)

REMEDY: Final = "Free space, change permissions or choose another --out."
"""What to do about a file that cannot be written where a command was told to."""
MAX_ENTRIES: Final = 12
"""Entries of the cache kept per kind; the ones used longest ago are removed first."""

_ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]+:/+(?=[^/])", re.IGNORECASE)
_WORKING: Final = ".chestct-part-"
_LOCK: Final = "lock"
_CONTENT: Final = "files"
_DIGESTS: Final = "digests.json"
_READ_AND_WRITE: Final = 0o666
_ABANDONED_AFTER_S: Final = 24 * 3600.0
"""Age of a working folder that counts where the disk knows no locks."""

_swept: set[Path] = set()
"""Folders whose leftovers this process has looked for."""


def reason_of(error: OSError) -> str:
    """Why the system refused, in words that hold no path."""
    if error.strerror:
        return error.strerror.lower()
    return "no reason was given, as happens when a disk is full or was taken away"


def is_address(path: str | Path) -> bool:
    """Whether a path is the address of something on other storage, such as s3://BUCKET/SCAN.

    A `Path` takes the two slashes for one, and is known all the same.
    """
    return _ADDRESS.match(str(path)) is not None


def make_folder(folder: Path) -> Path:
    """Make a folder and its parents where they are not there yet.

    Raises:
        WriteError: It cannot be made, or something that is not a folder has its name.
    """
    try:
        _refuse_address(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        msg = f"{folder} is a file and a folder is needed there. Choose another --out."
        raise WriteError(msg) from error
    except OSError as error:
        raise WriteError(_refusal(folder, error)) from error
    return folder


@contextmanager
def working_folder(parent: Path) -> Iterator[Path]:
    """An empty folder below `parent`, nobody else's, gone when its block ends.

    The content will be moved to `parent`: only there it is certainly on the same disk. What killed
    processes left there is removed first, once per process.

    Raises:
        OSError: It cannot be made.
    """
    _refuse_address(parent)
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    working, lock = _make_locked(parent)
    try:
        content = working / _CONTENT
        content.mkdir()
        yield content
    finally:
        # What hinders the writing may hinder this too; its reason is told elsewhere.
        os.close(lock)
        shutil.rmtree(working, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file aside and then rename it, so that nobody ever reads half of it.

    Raises:
        WriteError: It cannot be written; no half-written file is left behind.
    """
    return write_whole_with(path, lambda aside: aside.write_bytes(content))


def write_text(path: Path, text: str) -> Path:
    """As `write_whole`, for text."""
    return write_whole(path, text.encode())


def write_whole_with(path: Path, write: Callable[[Path], object], *, remedy: str = REMEDY) -> Path:
    """As `write_whole`, for content that another library writes to a path it is given.

    The path given has the name of `path`, as some libraries choose the format by it. `remedy` is
    said when it cannot be written.
    """
    try:
        with working_folder(path.parent) as working:
            write(working / path.name)
            _give_usual_permissions(working)
            (working / path.name).replace(path)
    except OSError as error:
        raise WriteError(_refusal(path, error, remedy)) from error
    return path


def write_folder_with(folder: Path, write: Callable[[Path], object]) -> Path:
    """As `write_whole_with` for a folder full of files; an older folder of this name is replaced.

    The older one is gone only when the new one is in its place; where that fails, it stays.

    Raises:
        WriteError: It cannot be written; nothing half-written is left behind.
    """
    try:
        with working_folder(folder.parent) as working:
            new, old = working / "new", working / "old"
            new.mkdir()
            write(new)
            _give_usual_permissions(new)
            _exchange(new, folder, old)
    except OSError as error:
        raise WriteError(_refusal(folder, error)) from error
    return folder


def install(
    working: Path, folder: Path, *, old: Iterable[Path] = (), first: str = "", last: str = ""
) -> list[Path]:
    """Move all files of a working folder into a folder, the files of one run and no others.

    Old files go first. Two processes do this one after the other, so that what is there at the
    end is all of one run.

    Args:
        working: Holds the new files, in folders too.
        folder: Where to; made where it is missing.
        old: Files in `folder` that go, also where no new one has their name.
        first: Name of a file that comes before the others: whose the others are.
        last: Name of a file that comes after the others: that all are there.

    Returns:
        The files, in their places.

    Raises:
        WriteError: A file cannot be removed or moved, or is not whole where it should be.
    """
    new = {path.relative_to(working): path.stat().st_size for path in _files_below(working)}
    order = sorted(new, key=lambda file: (file.name == last, file.name != first, file))
    with _one_at_a_time(make_folder(folder)):
        for file in order:
            make_folder((folder / file).parent)
            if (folder / file).is_dir():
                msg = f"{folder / file} is a folder and a file is to be written there. Move it"
                raise WriteError(f"{msg} away.")
        for path in old:
            remove_file(path)
        for file in order:
            _move(working / file, folder / file)
        for file in order:
            _require_whole(folder / file, new[file])
    return [folder / file for file in order]


def remove_file(path: Path) -> None:
    """Remove a file, if there is one.

    Raises:
        WriteError: It cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(_refusal(path, error)) from error


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Keep a folder from `remove_unheld` as long as the block lasts; gives whether it is there."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        if _HAS_LOCKS:
            # On a disk without locks nothing is removed either.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH)
        is_there = False
        with suppress(FileNotFoundError):
            is_there = os.path.samestat(os.fstat(lock), folder.stat())
        yield is_there
    finally:
        os.close(lock)


def remove_unheld(folder: Path, working: Path) -> bool:
    """Remove a folder that no process holds, by way of a working folder; whether it is gone."""
    if not _HAS_LOCKS:  # pragma: no cover
        return False
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.rename(working / folder.name)
    except OSError:
        return False
    finally:
        os.close(lock)
    shutil.rmtree(working / folder.name, ignore_errors=True)
    return True


def _refuse_address(folder: Path) -> None:
    """Refuse to make folders called "s3:" and the like."""
    if is_address(folder):
        raise OSError(errno.EINVAL, "It is on other storage, and results go to a disk")


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed processes left half-written in a folder, once per process and folder."""
    place = parent.absolute()
    if place in _swept:
        return
    _swept.add(place)
    for working in parent.glob(f"{_WORKING}*"):
        with suppress(OSError):
            if _is_abandoned(working):
                shutil.rmtree(working)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_key(*parts: str) -> str:
    """A file name that stands for several texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def code_digest(*places: Path) -> str:
    """Digest of the source code of packages and modules: what other code made is not used."""
    digest = hashlib.sha256()
    for place in places:
        for source in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(source.name.encode())
            digest.update(source.read_bytes() if source.exists() else b"")
    return digest.hexdigest()


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


def find_entry(kind: str, key: str) -> Path | None:
    """The folder of an entry of the cache, or None when it is absent, damaged or out of reach.

    An entry holds the digest of every other file in it; where one does not agree, it is damaged.
    """
    try:
        entry = cache_folder() / kind / key
        digests = json.loads((entry / _DIGESTS).read_text(encoding="utf-8"))
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
    """Make an entry of the cache, named by `text_key`, and put it in its place.

    `write` fills the empty folder it is given with files. None when the cache cannot be written,
    which is no error.
    """
    try:
        parent = cache_folder() / kind
        with working_folder(parent) as working:
            new = working / "new"
            new.mkdir()
            write(new)
            digests = {path.name: file_sha256(path) for path in sorted(new.iterdir())}
            (new / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
            # A damaged entry makes way, a sound one that another process made stays.
            if find_entry(kind, key) is None:
                _exchange(new, parent / key, working / "old")
        _remove_oldest(parent)
    except (OSError, RuntimeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        logger.warning("Nothing is cached: %s", reason)
    return find_entry(kind, key)


def _make_locked(parent: Path) -> tuple[Path, int]:
    """A new working folder and its open lock; one that is swept meanwhile is not taken."""
    while True:
        working = parent / f"{_WORKING}{secrets.token_hex(6)}"
        working.mkdir(mode=0o700)
        lock = os.open(working / _LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        if _is_mine(working / _LOCK, lock):
            return working, lock
        os.close(lock)


def _is_mine(path: Path, lock: int) -> bool:
    if not _HAS_LOCKS:  # pragma: no cover
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A disk without locks: without this file, only age tells.
        path.unlink()
        return True
    return os.path.lexists(path)


def _is_abandoned(working: Path) -> bool:
    """Whether the process that made a working folder has ended."""
    path = working / _LOCK
    if not path.exists():
        return time.time() - working.stat().st_mtime > _ABANDONED_AFTER_S
    if not _HAS_LOCKS:  # pragma: no cover
        path.unlink()
        return True
    lock = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(lock)
    return True


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is installing files in a folder, where the disk knows locks."""
    if not _HAS_LOCKS:  # pragma: no cover
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """Put a folder in the place of another, which goes to `old`."""
    if not os.path.lexists(folder):
        new.rename(folder)
        return
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _give_usual_permissions(folder: Path) -> None:
    """Let files be read by whom the system lets read new ones: some libraries choose themselves."""
    usual = folder.stat().st_mode & _READ_AND_WRITE
    for path in _files_below(folder):
        # Some disks know no permissions.
        with suppress(OSError):
            path.chmod(usual)


def _move(path: Path, target: Path) -> None:
    try:
        path.replace(target)
    except OSError as error:
        msg = f"{target} cannot be replaced: {reason_of(error)}. Choose another --out."
        raise WriteError(msg) from error


def _require_whole(path: Path, num_bytes: int) -> None:
    try:
        is_whole = path.stat().st_size == num_bytes
    except OSError:
        is_whole = False
    if not is_whole:
        msg = f"{path} was changed or removed by another program while it was written. Let no"
        raise WriteError(f"{msg} other program tidy up there, or choose another --out.")


def _remove_oldest(parent: Path) -> None:
    entries = [path for path in parent.iterdir() if not path.name.startswith(".")]
    by_age = sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in by_age[MAX_ENTRIES:]:
        shutil.rmtree(path, ignore_errors=True)


def _refusal(path: Path, error: OSError, remedy: str = REMEDY) -> str:
    return f"{path} cannot be written: {reason_of(error)}. {remedy}"
