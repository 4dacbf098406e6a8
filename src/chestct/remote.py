"""Files on other storage, known by their address: copied whole into a bounded folder.

An address (`s3://BUCKET/p07`, `https://HOST/p07.nii.gz`) goes through the program as a `Path`, as
every scan does; here it becomes text again. Readers seek, and open files twice, so they are given a
copy. What may let others in, a password or a signed query, is never shown, and no part of a name.
"""

from __future__ import annotations

import errno
import math
import os
import posixpath
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from threading import Event
from typing import Any, Final
from urllib.parse import unquote

from chestct.errors import ChestCTError, ReadError, kind_of
from chestct.extras import MissingExtraError, import_extra
from chestct.storage import (
    cache_folder,
    file_sha256,
    held,
    is_address,
    reason_of,
    remove_unheld,
    text_key,
    working_folder,
)

LIMIT_VARIABLE: Final = "CHESTCT_REMOTE_GIB"
"""Environment variable: most that all copies may take, in GiB."""
_USUAL_LIMIT_GIB: Final = 20.0

_GIB: Final = 2**30
_FOLDER: Final = "remote"
_MIRRORS: Final = "mirrors"
_SIZE: Final = ".bytes"
_MAX_FILES: Final = 50_000
_AT_ONCE: Final = 8
_MOST_CAUSES: Final = 5
_PATIENCE_S: Final = 60.0
_WEB: Final = ("http", "https")
_MARKS: Final = (
    *("ETag", "etag", "Content-MD5", "md5", "Last-Modified", "LastModified"),
    *("mtime", "updated", "created"),
)
"""What storages call that by which another version of a file is known."""
_NOT_ALLOWED: Final = (401, 403)
_NOT_THERE: Final = (404, 410)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def shown(path: str | Path) -> str:
    """A path as it may be shown and kept: an address is left without password and query."""
    return _Address.of(path).shown if is_address(path) else str(path)


def whole(path: str | Path) -> str:
    """As `shown`, and a path of this machine from its root on: the same wherever one stands."""
    return shown(path) if is_address(path) else os.path.abspath(path)


def joined(folder: Path, path: str) -> Path:
    """A path or address that is relative to a folder, unless it is whole itself."""
    return Path(path) if is_address(path) else folder / path


def refuse_secrets(path: str | Path, where: str) -> None:
    """Refuse an address with a password or query where it would be kept in files.

    `where` is what names it, for the message.

    Raises:
        ReadError: It has one.
    """
    if is_address(path) and _Address.of(path).has_secret:
        msg = (
            f"{where}: {shown(path)} is named with a password, or with a query, which may be a "
            "signature, and would be kept with the results. Leave it out and give credentials as "
            "its storage takes them (AWS_PROFILE, ~/.netrc), or classify this scan alone."
        )
        raise ReadError(msg)


@contextmanager
def local_copy(path: str | Path) -> Iterator[Path]:
    """Where to read what a path or address names, as long as the block lasts.

    A path of this machine is given back. Of an address it is a copy, file or folder, of its last
    name; made where there is none of what the storage holds now, and not removed meanwhile.

    Raises:
        ReadError: It is not there, may not be read, is too large, or its connection broke.
        MissingExtraError: Its protocol needs a package that is not installed.
    """
    if not is_address(path):
        yield Path(path)
        return
    address = _Address.of(path)
    found = _look_at(address)
    entry = _copies_folder() / text_key(address.key, found.stamp)
    while True:
        with held(entry) as is_there:
            if is_there:
                with suppress(OSError):
                    os.utime(entry)
                yield entry / address.name
                return
        _fetch(address, found, entry)


@cache
def stamp_of(path: Path) -> str:
    """What stands for the files at an address as they were when this process first asked.

    Raises:
        ChestCTError: As `local_copy`.
    """
    return _look_at(_Address.of(path)).stamp


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, wherever it lies.

    Raises:
        ChestCTError: As `local_copy`.
    """
    with local_copy(path) as copy:
        return file_sha256(copy)


def mirror_of(folder: Path) -> Path:
    """Where a folder's files are used on this machine: there, or in what stands for an address.

    Raises:
        ReadError: There is no home folder.
    """
    if not is_address(folder):
        return folder
    return _copies_folder().with_name(_MIRRORS) / text_key(_Address.of(folder).key)


def bring(folder: Path, name: str) -> Path:
    """Where to look for a folder's file that never changes; fetched, where it is at an address.

    What is on this machine already is not asked for again. There may be no such file.

    Raises:
        ChestCTError: As `local_copy`, but for a file that is not there.
    """
    place = mirror_of(folder) / name
    if not is_address(folder) or place.exists():
        return place
    address = _Address.of(folder / name)
    with _explained(address):
        system, there = _system_of(address)
        system.invalidate_cache()
        if system.exists(there):
            with working_folder(place.parent) as working:
                system.get_file(there, str(working / "new"))
                (working / "new").replace(place)
    return place


def send(folder: Path, name: str, file: Path) -> None:
    """Give the storage a folder's file, before it is put in its place in `mirror_of`.

    A folder of this machine has it there alone; so does one on the web, where none is written.

    Raises:
        ChestCTError: The storage does not take it.
    """
    address = _Address.of(folder / name)
    if is_address(folder) and address.protocol not in _WEB:
        with _explained(address, "written"):
            system, there = _system_of(address)
            system.put_file(str(file), there)


@dataclass(frozen=True)
class _Address:
    """An address in its parts: protocol://login@place?query."""

    protocol: str
    login: str
    place: str
    query: str

    @classmethod
    def of(cls, path: str | Path) -> _Address:
        """Take one apart; `..` goes up, as in a path."""
        protocol, _, rest = str(path).partition(":/")
        before, mark, query = rest.lstrip("/").partition("?")
        host, slash, way = before.partition("/")
        login, at, host = host.rpartition("@")
        way = posixpath.normpath(f"/{way}").rstrip("/") if slash else ""
        return cls(protocol.lower(), login + at, host + way, mark + query)

    @property
    def full(self) -> str:
        """All of it; for the storage alone."""
        return f"{self.protocol}://{self.login}{self.place}{self.query}"

    @property
    def shown(self) -> str:
        """What is no secret; a user alone is one on the web, where it may be a token."""
        is_secret = ":" in self.login or self.protocol in _WEB
        return f"{self.protocol}://{'' if is_secret else self.login}{self.place}"

    @property
    def has_secret(self) -> bool:
        """Whether anything of it must not be shown."""
        return self.shown != self.full

    @property
    def key(self) -> str:
        """What stands for it in the folder of copies, hashed; a password could be guessed there."""
        return self.shown + self.query

    @property
    def name(self) -> str:
        """What the copy is called."""
        return _local_name(self.place.rpartition("/")[2], self.protocol)


def _local_name(name: str, protocol: str) -> str:
    """A name on this machine of a file or folder; the web writes blanks as "%20"."""
    plain = unquote(name) if protocol in _WEB else name
    plain = re.sub(r"[/\x00]", "_", plain)
    return f"_{plain}" if plain in ("", ".", "..", _SIZE) else plain


@dataclass(frozen=True, eq=False)
class _Found:
    """What lies at an address: a file system of fsspec, and its files.

    Attributes:
        system: What gives them.
        files: Place in the system, to path below the copy's folder; a file alone is the copy.
        facts: What is known of each, in the same order.
    """

    system: Any
    files: Mapping[str, str]
    facts: tuple[Mapping[str, Any], ...]

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """Bytes of each file, None where its storage does not say it."""
        return tuple(each.get("size") for each in self.facts)

    @property
    def known_bytes(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(size or 0 for size in self.sizes)

    @cached_property
    def stamp(self) -> str:
        """What stands for these files; of some that say nothing of themselves, never the same."""
        marks = [[str(each.get(name, "")) for name in ("size", *_MARKS)] for each in self.facts]
        are_marked = all(any(each[1:]) for each in marks)
        texts = [
            f"{path} {' '.join(mark)}"
            for path, mark in zip(self.files.values(), marks, strict=True)
        ]
        return text_key(*texts, "" if are_marked else secrets.token_hex(8))


def _look_at(address: _Address) -> _Found:
    """Ask the storage what lies at an address."""
    with _explained(address):
        system, place = _system_of(address)
        system.invalidate_cache()
        facts = system.info(place)
        if facts["type"] != "directory" and facts.get("mimetype") != "text/html":
            return _Found(system, {place: address.name}, (facts,))
        listed = _listed(address, system, place.rstrip("/"))
        if not listed:
            msg = f"{address.shown} is a folder in which no file can be seen. Name a scan."
            raise ReadError(msg)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            known = tuple(pool.map(partial(_sized, system), listed.values()))
        return _Found(system, _paths_below(address, place.rstrip("/"), listed), known)


def _system_of(address: _Address) -> tuple[Any, str]:
    """The file system of fsspec that knows an address, and what the address is called there."""
    fsspec = import_extra("fsspec", extra="remote")
    if address.protocol not in fsspec.available_protocols():
        msg = (
            f"{address.shown}: '{address.protocol}' is no storage that is known. Expected https, "
            "s3 or another protocol of fsspec; a folder of that name is meant by its whole path."
        )
        raise ReadError(msg)
    options: dict[str, Any] = {}
    if address.protocol in _WEB:
        aiohttp = import_extra("aiohttp", extra="remote")
        # A large scan may take its time, as long as something comes. Logins are in ~/.netrc.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_PATIENCE_S, sock_read=_PATIENCE_S)
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    system, place = fsspec.url_to_fs(address.full, **options)
    return system, place


def _listed(address: _Address, system: Any, root: str) -> dict[str, Mapping[str, Any]]:
    """The files below a folder, by what the storage calls them; nothing that leads elsewhere."""
    is_web = address.protocol in _WEB
    pending, seen = [root], {root}
    files: dict[str, Mapping[str, Any]] = {}
    while pending:
        for facts in system.ls(pending.pop(), detail=True):
            place = facts["name"].rstrip("/")
            # Pages that list files link to other orders of the list as well.
            if place in seen or not place.startswith(f"{root}/") or (is_web and "?" in place):
                continue
            seen.add(place)
            if facts["type"] == "directory":
                pending.append(place)
            else:
                files[place] = facts
            if len(seen) > _MAX_FILES:
                msg = f"{address.shown} holds over {_MAX_FILES} files. Name one scan."
                raise ReadError(msg)
    return files


def _sized(system: Any, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is known of a file, asked once more where a page lists it without its size."""
    return facts if facts.get("size") is not None else system.info(facts["name"])


def _paths_below(address: _Address, root: str, places: Iterable[str]) -> dict[str, str]:
    """Where each file of a folder is kept below the copy's entry."""

    def below(place: str) -> str:
        """The same names as there, below the copy."""
        names = place.removeprefix(f"{root}/").split("/")
        return "/".join((address.name, *(_local_name(each, address.protocol) for each in names)))

    return {place: below(place) for place in places}


def _fetch(address: _Address, found: _Found, entry: Path) -> None:
    """Copy what was found into its entry, whole or not at all."""
    parent = entry.parent
    try:
        with working_folder(parent) as working:
            room = _limit_bytes()
            _make_room(address, parent, working, needed=found.known_bytes, room=room)
            new = working / "new"
            with _explained(address):
                _copy(address, found, new, room)
            num_bytes = sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
            _make_room(address, parent, working, needed=num_bytes, room=room)
            (new / _SIZE).write_text(str(num_bytes))
            with suppress(OSError):
                new.rename(entry)
            if not entry.is_dir():
                new.rename(entry)
    except OSError as error:
        msg = (
            f"No copy of {address.shown} can be kept in {parent}: {reason_of(error)}. Free space, "
            "change permissions, or name another place with XDG_CACHE_HOME."
        )
        raise ReadError(msg) from None


def _copy(address: _Address, found: _Found, new: Path, room: int) -> None:
    """Copy files, several at once; each as long as the storage said."""
    from fsspec.callbacks import Callback

    is_given_up = Event()

    def copy(place: str, name: str, size: int | None) -> None:
        """Copy one file, whose size may not be known."""
        most = room if size is None else size

        def stop(size: object, value: int, **_: object) -> None:
            """End it after a piece, where it grew too long or the others are given up."""
            if value > most or is_given_up.is_set():
                raise _changed(address)

        target = new / name
        target.parent.mkdir(parents=True, exist_ok=True)
        found.system.get_file(place, str(target), callback=Callback(hooks={"stop": stop}))
        if size is not None and target.stat().st_size != size:
            raise _changed(address)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            list(pool.map(copy, found.files, found.files.values(), found.sizes))
        except BaseException:
            # After Ctrl-C, or an error of one file, nobody waits for the others.
            is_given_up.set()
            raise


def _changed(address: _Address) -> ReadError:
    msg = (
        f"{address.shown} came in another length than its storage said, or longer than may be kept"
    )
    return ReadError(f"{msg}; nothing of it was. Try again when nobody writes there.")


def _make_room(address: _Address, parent: Path, working: Path, *, needed: int, room: int) -> None:
    """Remove the copies used longest ago until another fits; never one that is in use."""
    if needed > room:
        msg = (
            f"{address.shown} takes {needed / _GIB:.2f} GiB, and copies may take {room / _GIB:g} "
            f"GiB in all. Allow more: {LIMIT_VARIABLE}=40, where {parent} has the space."
        )
        raise ReadError(msg)
    entries = []
    for entry in parent.iterdir():
        # One that another process removes now takes nothing.
        with suppress(OSError, ValueError):
            if not entry.name.startswith("."):
                size = int((entry / _SIZE).read_text())
                entries.append((entry.stat().st_mtime_ns, size, entry))
    taken = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if taken + needed <= room:
            return
        taken -= size if remove_unheld(entry, working) else 0
    if taken + needed > room:
        msg = (
            f"{address.shown} finds no room: copies may take {room / _GIB:g} GiB in all, and those "
            f"in {parent} are in use. Allow more ({LIMIT_VARIABLE}=40), or have fewer workers."
        )
        raise ReadError(msg)


def _copies_folder() -> Path:
    """Where copies lie.

    Raises:
        ReadError: There is no home folder.
    """
    try:
        return cache_folder() / _FOLDER
    except RuntimeError as error:
        msg = f"There is no place for copies: {error} Name one with XDG_CACHE_HOME."
        raise ReadError(msg) from error


def _limit_bytes() -> int:
    """Most that all copies may take."""
    said = os.environ.get(LIMIT_VARIABLE) or str(_USUAL_LIMIT_GIB)
    with suppress(ValueError):
        if math.isfinite(float(said)) and float(said) > 0:
            return int(float(said) * _GIB)
    raise ReadError(f"{LIMIT_VARIABLE} is '{said}' and must be a number of GiB, such as 40.")


@contextmanager
def _explained(address: _Address, what: str = "read") -> Iterator[None]:
    """Say what a storage answered in words that hold no secret; `what` may not be done there."""
    try:
        yield
    except ChestCTError:
        raise
    except Exception as error:
        # Each storage raises what it likes, with its whole address in it.
        raise _refusal(address, error, what) from None


def _refusal(address: _Address, error: Exception, what: str) -> ChestCTError:
    """What to say of an error of a storage, by the first of its causes that says something."""
    causes = [error]
    while isinstance(cause := causes[-1].__cause__, Exception) and len(causes) < _MOST_CAUSES:
        causes.append(cause)
    statuses = (getattr(each, "status", None) for each in causes)
    status = next((each for each in statuses if isinstance(each, int)), None)
    if isinstance(error, ImportError):
        msg = f"{address.shown} needs a package that is not installed: {error}. https comes"
        return MissingExtraError(
            f"{msg} with pip install 'chestct[remote]', s3 with 'chestct[s3]'."
        )
    if any(isinstance(each, OSError) and each.errno in _FULL for each in causes):
        msg = f"{address.shown} does not fit the disk under {_copies_folder()}; nothing of it was"
        return ReadError(f"{msg} kept. Free space, or name another place with XDG_CACHE_HOME.")
    if status in _NOT_ALLOWED or any(_is_about_permission(each) for each in causes):
        msg = (
            f"{address.shown} may not be {what}: its storage wants other credentials, or some. "
            "Give them as it takes them (s3: AWS_PROFILE; https: ~/.netrc), on every machine that "
            "works."
        )
        return ReadError(msg)
    if status in _NOT_THERE or (isinstance(error, FileNotFoundError) and len(causes) == 1):
        msg = f"{address.shown} is not there. Correct the address: a folder, file or zip of a scan."
        return ReadError(msg)
    how = f"answered with status {status}" if status else f"broke off ({kind_of(causes[-1])})"
    msg = f"The storage of {address.shown} {how}; nothing half is kept. Try again, and look whether"
    return ReadError(f"{msg} this machine reaches it.")


def _is_about_permission(error: BaseException) -> bool:
    """Whether an error is one of permissions, or a library's own of credentials."""
    return isinstance(error, PermissionError) or "Credentials" in type(error).__name__
