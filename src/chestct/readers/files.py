"""Collect the files of a scan from a folder, a single file or a zip, with bounds on everything.

A zip is read where it lies: nothing is ever extracted to disk, so a member cannot leave the
folder, and no more is decompressed than its declared size, which is checked first.
"""

from __future__ import annotations

import gzip
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedIOBase, BytesIO
from pathlib import Path, PurePosixPath
from typing import cast

from chestct.errors import ReadError

try:
    from lzma import LZMAError
except ImportError:  # pragma: no cover - Pythons that were built without it
    LZMAError = OSError  # type: ignore[assignment, misc]

MAX_FILES = 50_000
"""Most files looked at in one folder or zip; a whole study of thin slices stays under 10 000."""
_MAX_UNPACKED_BYTES = 2**32
"""Most bytes a zip may declare in all: twice the largest volume read, as 16-bit values."""
UNDOUBTED_BYTES = 2**28
"""Up to this size an archive is read whatever its compression."""
MAX_RATIO = 200
"""Compression no real scan reaches as a whole: more, and it is taken for a bomb."""
_MAX_PATH_BYTES = 4096
"""Longest path followed; a folder tree that is deeper is left out."""

BROKEN_STREAM = (
    OSError,
    EOFError,
    zlib.error,
    LZMAError,
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
)
"""What opening or reading a damaged file, zip member or compressed stream raises."""

_ARCHIVES = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
_TAR_ENDINGS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
ARCHIVE_ENDINGS = (".zip", ".7z", ".rar", ".xz", *_TAR_ENDINGS)
EMPTY_FOLDER = "it is an empty folder"
"""Problem of what has the name of a file, perhaps, and is none."""
_UNPACKED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_TAR_MARK, _TAR_MARK_AT = b"ustar", 257
_MAX_POINTER_BYTES = 1024
_POINTERS = (b"/annex/objects/", b"version https://git-lfs.")
_CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")


class UnreadableFileError(ReadError):
    """One file is damaged or beyond the bounds; the message is the reason, without the name."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """Something with bytes: a file on disk, a member of a zip, an unpacked stream.

    Attributes:
        name: Path relative to what the user named.
        size: Most bytes it can give.
        stored_bytes: Bytes it takes on disk.
        open: Opens it for reading. Streams are independent of each other and may be read in
            several threads.
        is_seekable: Whether reading a later part does not mean unpacking all before it.
        path: Where it lies, for a file of its own.
        problem: Why it cannot be looked at, although it should be there.
        deflated_in: The file whose deflated data set this is.
    """

    name: str
    size: int
    stored_bytes: int
    open: Callable[[], BufferedIOBase]
    is_seekable: bool = True
    path: Path = Path()
    problem: str = ""
    deflated_in: FileSource | None = None


def disk_file(path: Path, name: str, size: int, problem: str = "") -> FileSource:
    """A regular file, or one that should be there and cannot be looked at: `problem` says why."""
    return FileSource(name, size, size, lambda: path.open("rb"), path=path, problem=problem)


def memory_file(content: bytes, name: str, stored_bytes: int) -> FileSource:
    """Bytes already unpacked, with the size they had on disk."""
    return FileSource(name, len(content), stored_bytes, partial(BytesIO, content))


@contextmanager
def readable() -> Iterator[None]:
    """Say that a file cannot be read when its stream breaks."""
    try:
        yield
    except BROKEN_STREAM as error:
        raise UnreadableFileError(f"cannot be read ({type(error).__name__})") from error


def read_range(stream: BufferedIOBase, start: int, length: int) -> bytes:
    """Read exactly `length` bytes from `start`.

    Raises:
        UnreadableFileError: The file ends before that, or cannot be read.
    """
    with readable():
        stream.seek(start)
        content = stream.read(length)
    if len(content) != length:
        msg = f"ends at byte {start + len(content)}, {start + length} were expected"
        raise UnreadableFileError(msg)
    return content


@contextmanager
def opened_files(path: Path) -> Iterator[list[FileSource]]:
    """All files under a folder, in a zip, or the one file; in the order of their names.

    Args:
        path: Folder (nested ones included), file or zip.

    Raises:
        ReadError: Nothing there, not readable, too many files, or a zip that is damaged, declares
            too much or has a member whose path leaves the folder.
    """
    if stat.S_ISDIR(path_status(path).st_mode):
        yield folder_files(path)
        return
    # Asked before it is opened: opening a pipe waits for ever.
    size = _file_status(path).st_size
    if _first_bytes(path, 4).startswith(_ZIP_MAGICS):
        with _opened_zip(path) as archive:
            yield _zip_members(archive, path)
    else:
        yield [disk_file(path, path.name, size)]


def path_status(path: Path) -> os.stat_result:
    """Status of what a user named.

    Raises:
        ReadError: Nothing is there, or it cannot be looked at.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        msg = f"There is no file or folder {path}. Name a scan: a folder, zip or file."
        raise ReadError(msg) from error
    except OSError as error:
        msg = f"{path!s:.200} cannot be looked at: {error.strerror}. A scan was expected: check its"
        raise ReadError(f"{msg} name, and that you may read the folders above it.") from error


def _first_bytes(path: Path, count: int) -> bytes:
    """How a file starts."""
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise ReadError(f"{path.name} cannot be opened: {error.strerror}.") from error


def why_unopened(source: FileSource) -> str | None:
    """Why a file's content is not at hand: a dead link, or a pointer to what was not fetched."""
    if source.problem:
        return f"cannot be opened: {source.problem}"
    if 0 < source.size <= _MAX_POINTER_BYTES:
        try:
            with source.open() as stream:
                start = stream.read(_MAX_POINTER_BYTES)
        except BROKEN_STREAM:
            return None
        if start.startswith(_POINTERS):
            return "is a pointer: its content was not fetched (git-annex or Git LFS)"
    return None


def folder_files(folder: Path) -> list[FileSource]:
    """Regular files under a folder, nested ones too, sorted by name, without clutter.

    Linked folders are followed once; a link that leads back is not followed again. Pipes and
    devices are never opened. A link to nothing, an empty folder, and what iCloud left in a file's
    place, is among them, with its problem.
    """
    found: list[FileSource] = []
    visited: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        for entry, status in _entries(current, visited):
            if isinstance(status, str):
                found.append(disk_file(entry, str(entry.relative_to(folder)), 0, status))
            elif stat.S_ISDIR(status.st_mode):
                pending.append(entry)
            elif stat.S_ISREG(status.st_mode):
                found.append(disk_file(entry, str(entry.relative_to(folder)), status.st_size))
            if len(found) + len(pending) > MAX_FILES:
                msg = (
                    f"{folder.name} holds more than {MAX_FILES} files. Name the folder of one scan."
                )
                raise ReadError(msg)
    return sorted(found, key=lambda file: file.name)


def _entries(
    folder: Path, visited: set[tuple[int, int]]
) -> Iterator[tuple[Path, os.stat_result | str]]:
    """Entries of a folder with their status, or with what prevents to know it; once a folder."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited or len(os.fsencode(folder)) > _MAX_PATH_BYTES:
            return
        visited.add((status.st_dev, status.st_ino))
        entries = [entry for entry in os.scandir(folder) if entry.name.lower() not in _CLUTTER]
    except OSError as error:
        raise ReadError(f"The folder {folder.name} cannot be read: {error.strerror}.") from error
    if all(entry.name.startswith(".") for entry in entries):
        yield folder, EMPTY_FOLDER
    for entry in entries:
        if entry.name.startswith("."):
            if entry.name.endswith(".icloud"):
                yield Path(entry.path), "it was not fetched from iCloud"
            continue
        try:
            yield Path(entry.path), entry.stat()
        except OSError as error:
            # A link to nothing, or one that leads to itself.
            yield Path(entry.path), error.strerror or type(error).__name__


def _file_status(path: Path) -> os.stat_result:
    """Status of a regular file."""
    status = path_status(path)
    if not stat.S_ISREG(status.st_mode):
        raise ReadError(f"{path.name} is neither a file nor a folder; a scan was expected.")
    return status


@contextmanager
def _opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open zip whose directory could be read."""
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN_STREAM as error:
        msg = f"{path.name} is a damaged zip ({type(error).__name__}). Make or fetch it again."
        raise ReadError(msg) from error
    with archive:
        yield archive


def _zip_members(archive: zipfile.ZipFile, path: Path) -> list[FileSource]:
    """Members that are files, after the bounds on the whole archive were checked."""
    members = [info for info in archive.infolist() if not info.is_dir()]
    if len(members) > MAX_FILES:
        msg = f"{path.name} holds {len(members)} files, over the {MAX_FILES} allowed. Zip one scan."
        raise ReadError(msg)
    unpacked, packed = sum(info.file_size for info in members), path.stat().st_size
    if unpacked > _MAX_UNPACKED_BYTES or unpacked > max(UNDOUBTED_BYTES, packed * MAX_RATIO):
        msg = (
            f"{path.name} would unpack from {packed / 1e6:.1f} MB to {unpacked / 1e6:.0f} MB, more"
            f" than a CT scan does ({MAX_RATIO} times, {_MAX_UNPACKED_BYTES / 1e6:.0f} MB)."
            " If it is a scan, unpack it and name the folder."
        )
        raise ReadError(msg)
    packed_otherwise = {info.compress_type for info in members} - _UNPACKED
    if packed_otherwise:
        msg = f"{path.name} is packed by method {min(packed_otherwise)}, which is not unpacked here"
        raise ReadError(f"{msg}. Unpack it and name the folder.")
    if any(_leaves_folder(info.filename) for info in members):
        msg = f"{path.name} holds a file whose path leads out of the zip. It was not read."
        raise ReadError(msg)
    wanted = [info for info in members if not _is_clutter(info.filename)]
    # Reading stops at the declared size.
    return [
        FileSource(
            info.filename,
            info.file_size,
            info.compress_size,
            cast("Callable[[], BufferedIOBase]", partial(archive.open, info)),
            is_seekable=False,
        )
        for info in sorted(wanted, key=lambda info: info.filename)
    ]


def refuse_archive(path: Path, scan_endings: Sequence[str]) -> None:
    """Refuse a file that wraps a scan in a way that is not unpacked, saying what to do.

    Args:
        path: A file.
        scan_endings: What the names of files end with that are whole scans.

    Raises:
        ReadError: It is a tar, 7z or rar archive, or a zip of nothing but archives or whole scans.
    """
    _file_status(path)
    start = _first_bytes(path, _TAR_MARK_AT + len(_TAR_MARK))
    kind = next((kind for magic, kind in _ARCHIVES.items() if start.startswith(magic)), None)
    if start[_TAR_MARK_AT:] == _TAR_MARK or path.name.lower().endswith(_TAR_ENDINGS):
        kind = "tar"
    if kind is not None:
        msg = f"{path.name} is a {kind} archive, which is not read. Unpack it and name the folder"
        raise ReadError(f"{msg} of the scan, or put its files into a zip.")
    if not start.startswith(_ZIP_MAGICS):
        return
    with _opened_zip(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
    names = [info.filename for info in members if not _is_clutter(info.filename)]
    wrapped = (*ARCHIVE_ENDINGS, *scan_endings)
    if names and all(name.lower().endswith(wrapped) for name in names):
        first = PurePosixPath(names[0]).suffix
        msg = f"{path.name} holds {len(names)} files of kind {first}, which are not read inside a"
        raise ReadError(f"{msg} zip. Unpack it and name one of them.")


def _leaves_folder(name: str) -> bool:
    """Whether a member's path is absolute or climbs up."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name.startswith(("/", "\\")) or name[1:2] == ":"


def _is_clutter(name: str) -> bool:
    """Whether a member is something a file manager left behind."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part.lower() in _CLUTTER for part in parts)


_MAX_UNWRAPPED_BYTES = 2**28
"""Most bytes unpacked from one file."""
_SMALL_BYTES = 2**20
"""Up to this size a file may be compressed in any ratio."""
PACKED_HEAD_BYTES = 2**18
"""As much of a packed file as shows how its inside begins."""

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 2**20
_INSIDE_BYTES = 132
"""Preamble and prefix of DICOM: enough to tell what is inside."""


class Unpacked:
    """What the gzipped files of one read unpack to in all; there is one limit for all of them.

    Args:
        most_bytes: The limit.
        most_kept: As much is kept in memory; what comes after it is unpacked again when asked for.
    """

    def __init__(
        self, most_bytes: int = _MAX_UNPACKED_BYTES, most_kept: int = UNDOUBTED_BYTES
    ) -> None:
        self._most_bytes, self._most_kept = most_bytes, most_kept
        self._num_bytes = 0

    def added(self, source: FileSource, content: FileSource) -> FileSource:
        """Count what a file unpacked to; where to read it from later on.

        Args:
            source: The gzipped file.
            content: What is inside it, in memory.

        Raises:
            ReadError: All together are more than a scan is.
        """
        self._num_bytes += content.size
        if self._num_bytes > self._most_bytes:
            msg = f"The gzipped files unpack to over {self._most_bytes / 1e6:.0f} MB in all, more"
            raise ReadError(f"{msg} than a CT scan does. If it is one, unpack them yourself.")
        if self._num_bytes <= self._most_kept:
            return content
        return replace(content, open=lambda: unwrapped(source).open(), is_seekable=False)


def is_wrapped(content: bytes) -> bool:
    """Whether a file that starts like this is a gzip stream."""
    return content.startswith(_GZIP_MAGIC)


def first_inside(packed: bytes) -> bytes:
    """The first bytes inside a gzip stream, given its start; none if it is damaged.

    A stream may be cut short, and unpack to any size: no more is unpacked than is looked at.
    """
    try:
        return zlib.decompressobj(wbits=31).decompress(packed, _INSIDE_BYTES)
    except zlib.error:
        return b""


def unwrapped(source: FileSource) -> FileSource:
    """What is inside a gzip stream.

    Raises:
        UnreadableFileError: It is damaged, or would unpack to more than a real file does.
    """
    limit = min(max(source.stored_bytes * MAX_RATIO, _SMALL_BYTES), _MAX_UNWRAPPED_BYTES)
    try:
        with source.open() as stream:
            content = b"".join(_gzip_chunks(stream, limit))
    except UnreadableFileError:
        raise
    except BROKEN_STREAM as error:
        raise UnreadableFileError(f"cannot be unpacked ({type(error).__name__})") from error
    return memory_file(content, source.name, source.stored_bytes)


def _gzip_chunks(stream: BufferedIOBase, limit: int) -> Iterator[bytes]:
    """The content of a gzip stream, given up as soon as it is longer than the limit."""
    num_bytes = 0
    with gzip.GzipFile(fileobj=stream) as unpacked:
        while chunk := unpacked.read(_CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > limit:
                msg = f"unpacks to over {MAX_RATIO} times its size or {_MAX_UNWRAPPED_BYTES} bytes"
                raise UnreadableFileError(f"{msg}, as a bomb does")
            yield chunk
