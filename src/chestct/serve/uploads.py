"""What a browser sends: bounded before anything is written, and under names of our own.

A request names an upload and a file of it by number. What the files are called on the other side
decides their order and their kind, and never where anything lies.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Final

from chestct.errors import ChestCTError, printable
from chestct.readers.files import MAX_FILES
from chestct.readers.pictures import SIDECAR
from chestct.storage import reason_of

MOST_BYTES: Final = 5 * 2**29
"""Most bytes of one upload, 2.7 GB: the largest volume that is read, uncompressed, and a half."""
_MOST_OPEN: Final = 16
_IDLE_S: Final = 90.0
_SPARE_BYTES: Final = 2**29
_MOST_NAME: Final = 80
_ENDINGS: Final = (
    *(".nii.gz", ".nii", ".zip", ".dcm", ".tiff", ".tif", ".png", ".jpeg", ".jpg"),
    *(".mha", ".nrrd"),
)


class UploadError(ChestCTError):
    """An upload is refused or broke off.

    Attributes:
        status: What the server answers with.
    """

    def __init__(self, message: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


@dataclass(eq=False)
class _Upload:
    """Files of one scan on their way.

    Attributes:
        number: Its identifier.
        folder: Its own folder.
        name: What the scan is called, fit for the name of a file or folder.
        is_file: Whether the scan is one file, and no folder.
        files: Name under which each file is kept, and its size in bytes.
        missing: Numbers of the files that are not there yet.
        used_at: When something last arrived, in seconds of `time.monotonic`.
    """

    number: str
    folder: Path
    name: str
    is_file: bool
    files: tuple[tuple[str, int], ...]
    missing: set[int] = field(default_factory=set)
    used_at: float = field(default_factory=time.monotonic)

    @property
    def scan(self) -> Path:
        """What `read_volume` is given: the file, or the folder of all files."""
        return self.folder / self.name


class Uploads:
    """The uploads of one server, in a folder of which all goes when it ends."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._open: dict[str, _Upload] = {}

    def begin(self, name: str, files: Sequence[tuple[str, int]]) -> _Upload:
        """Announce an upload; nothing is written but an empty folder.

        The name is that of the dropped file or folder; of each file path, as the browser has it,
        and size in bytes are told.

        Raises:
            UploadError: It is too much, or nothing.
        """
        self.sweep()
        self._check(files)
        is_file = len(files) == 1 and "/" not in files[0][0]
        kept = _kept_names([path for path, _ in files])
        number = secrets.token_hex(8)
        upload = _Upload(
            number,
            self._folder / number,
            _safe_name(name),
            is_file,
            tuple((kept_name, size) for kept_name, (_, size) in zip(kept, files, strict=True)),
            set(range(len(files))),
        )
        try:
            upload.folder.mkdir(mode=0o700)
            if not is_file:
                upload.scan.mkdir()
        except OSError as error:
            raise _full(error) from error
        self._open[number] = upload
        return upload

    def find(self, number: str) -> _Upload:
        """The open upload of this identifier.

        Raises:
            UploadError: There is none.
        """
        upload = self._open.get(number)
        if upload is None:
            msg = "This upload is not known any more: it broke off or took too long. Drop it again."
            raise UploadError(msg, HTTPStatus.NOT_FOUND)
        return upload

    async def receive(self, upload: _Upload, index: int, chunks: AsyncIterator[bytes]) -> None:
        """Write one file as it arrives.

        Raises:
            UploadError: It is not as it was announced, broke off, or cannot be written.
        """
        if index not in upload.missing:
            raise UploadError("This file was not announced, or is there already.")
        kept, size = upload.files[index]
        path = upload.scan if upload.is_file else upload.scan / kept
        num_bytes = 0
        try:
            with path.open("xb") as stream:
                async for chunk in chunks:
                    num_bytes += len(chunk)
                    if num_bytes > size:
                        raise UploadError("More arrived than was announced. Drop it again.")
                    stream.write(chunk)
                    upload.used_at = time.monotonic()
        except OSError as error:
            self.drop(upload)
            raise _full(error) from error
        except BaseException:
            # Also where the browser is gone: nothing of the scan stays.
            self.drop(upload)
            raise
        if num_bytes != size:
            self.drop(upload)
            raise UploadError("Less arrived than was announced. Drop it again.")
        upload.missing.discard(index)

    def finish(self, upload: _Upload) -> Path:
        """The scan, when all its files are there; the upload is open no more.

        Raises:
            UploadError: Files are missing.
        """
        if upload.missing:
            msg = f"{len(upload.missing)} files have not arrived yet. Drop the scan again."
            raise UploadError(msg, HTTPStatus.CONFLICT)
        del self._open[upload.number]
        return upload.scan

    def drop(self, upload: _Upload) -> None:
        """Remove an upload and all that came of it."""
        self._open.pop(upload.number, None)
        shutil.rmtree(upload.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove uploads of which nothing has come for long: their page was closed."""
        now = time.monotonic()
        for upload in list(self._open.values()):
            if now - upload.used_at > _IDLE_S:
                self.drop(upload)

    def _check(self, files: Sequence[tuple[str, int]]) -> None:
        total = sum(size for _, size in files)
        if len(self._open) >= _MOST_OPEN:
            msg = f"{_MOST_OPEN} scans are being sent already. Wait until they are there."
            raise UploadError(msg, HTTPStatus.SERVICE_UNAVAILABLE)
        if not files or total == 0:
            raise UploadError("Nothing was dropped: a folder, a zip or a NIfTI file was expected.")
        if len(files) > MAX_FILES:
            msg = (
                f"{len(files)} files are over the {MAX_FILES} allowed. Drop the folder of one scan."
            )
            raise UploadError(msg, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if total > self._most_bytes:
            msg = (
                f"This is {total / 1e9:.2f} GB, and {self._most_bytes / 1e9:.2f} GB are allowed for"
                " one scan. Drop the folder of one series, or start the server with --max-gb."
            )
            raise UploadError(msg, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        free = shutil.disk_usage(self._folder).free
        if total + _SPARE_BYTES > free:
            msg = (
                f"This is {total / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on the server's"
                " disk. Free some, or set XDG_CACHE_HOME to a larger one."
            )
            raise UploadError(msg, HTTPStatus.INSUFFICIENT_STORAGE)


def _full(error: OSError) -> UploadError:
    msg = f"The server cannot keep the upload: {reason_of(error)}. Free space, then drop it again."
    return UploadError(msg, HTTPStatus.INSUFFICIENT_STORAGE)


def _safe_name(name: str) -> str:
    """A name fit for a file or folder: one part, without anything that a system takes for more."""
    last = printable(name).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    plain = re.sub(r"[^\w .()+=@,-]", "_", last).strip(" .")
    ending = _ending_of(plain)
    stem = plain[: len(plain) - len(ending)][: _MOST_NAME - len(ending)].rstrip(" .")
    return f"{stem or 'scan'}{ending}"


def _ending_of(name: str) -> str:
    """What a file's name ends with, of the endings that say something; "" for all others."""
    lower = name.lower()
    return next((ending for ending in _ENDINGS if lower.endswith(ending)), "")


def _kept_names(paths: Sequence[str]) -> list[str]:
    """A name for each file: its place in the natural order of all, and its kind."""
    order = sorted(range(len(paths)), key=lambda i: _natural(paths[i]))
    place = {index: number for number, index in enumerate(order, start=1)}
    kept = [f"{place[index]:06d}{_ending_of(path)}" for index, path in enumerate(paths)]
    sidecars = [i for i, path in enumerate(paths) if PurePosixPath(path).name == SIDECAR]
    if len(sidecars) == 1:
        kept[sidecars[0]] = SIDECAR
    return kept


def _natural(path: str) -> list[tuple[str, int]]:
    """Sorts as people count: 2 before 10."""
    found = re.findall(r"([^0-9]*)([0-9]{0,18})", path)
    return [(text, int(digits or -1)) for text, digits in found]
