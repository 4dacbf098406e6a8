"""What a browser sends and who may: bounded before it is written, and under names of our own.

A request names an upload and a file of it by number. What the files are called on the other side
decides their order and their kind, and never where anything lies. Nobody may ask without the token,
from another page, or under another name.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chestct.errors import ChestCTError, printable
from chestct.readers.files import MAX_FILES
from chestct.readers.pictures import SIDECAR
from chestct.storage import reason_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


_MOST_BYTES: Final = 5 * 2**29
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

    def __init__(self, folder: Path, most_bytes: int = _MOST_BYTES) -> None:
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


_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No inline script or style, nothing from elsewhere. NiiVue carries its font as a data: picture."""
_HEADERS: Final[dict[str, str]] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
_HOST: Final = re.compile(
    r"\[?(?P<name>(?<=\[)[0-9A-Fa-f:.]+(?=\])|(?<!\[)[\w.-]+)\]?(:(?P<port>\d+))?"
)
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_SAFE_METHODS: Final = ("GET", "HEAD")
LEAST_TOKEN: Final = 16
"""Characters of the shortest token that is accepted."""


@dataclass(frozen=True)
class ServeSettings:
    """What a server serves, and to whom.

    Attributes:
        token: Opens the page; whoever knows it may see and do everything here.
        session: Folder of uploads and viewing copies, which goes when the server ends.
        results: Folder of results; None keeps them in `session`.
        scans: Folder in which scans of earlier results are looked for, by name.
        keeps_scans: Whether scans that were sent are kept, in `scans`.
        beside: Another folder of results, to be compared with.
        evaluation: An evaluation's folder, to be shown.
        names: Names under which the server may be asked for, besides those of loopback.
        most_bytes: Most bytes of one scan that is sent.
        is_secure: Whether a proxy in front of it speaks TLS with the browser.
    """

    token: str
    session: Path
    results: Path | None = None
    scans: Path | None = None
    keeps_scans: bool = False
    beside: Path | None = None
    evaluation: Path | None = None
    names: tuple[str, ...] = ()
    most_bytes: int = _MOST_BYTES
    is_secure: bool = False


def is_loopback(host: str) -> bool:
    """Whether an address or name is that of this computer for itself alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets nobody in without the token, from another page, or under another name of this server."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._token = app, settings.token
        self._names = {*_LOOPBACK_NAMES, *(name.lower() for name in settings.names)}
        self._is_secure = settings.is_secure
        # Made of the token, so that an open page outlives a server that is started again with it.
        key = hmac.new(settings.token.encode(), b"chestct page", hashlib.sha256)
        self._session = key.hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        answer = self._refusal_of(request) or self._welcome(request)
        await (answer or self._app)(scope, receive, partial(_send_guarded, send))

    def _refusal_of(self, request: Request) -> Response | None:
        """Why a request is refused whoever sends it."""
        headers = request.headers
        host = headers.get("host", "")
        named = _HOST.fullmatch(host)
        if named is None or named["name"].lower() not in self._names:
            msg = "The server is asked for under a name that is not its own."
            return sentence(msg, HTTPStatus.MISDIRECTED_REQUEST)
        origin = headers.get("origin")
        is_own = origin in (f"http://{host}", f"https://{host}")
        is_foreign = origin is not None and not is_own
        is_foreign |= headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        is_change = request.method not in _SAFE_METHODS
        is_entrance = request.url.path == "/" and not is_change
        if (is_foreign and not is_entrance) or (is_change and not is_own):
            return sentence("Another page may not ask this.", HTTPStatus.FORBIDDEN)
        return None

    def _welcome(self, request: Request) -> Response | None:
        """What somebody gets who is not in yet; None lets the request pass."""
        # By port, as browsers send the cookies of one server to all of this computer.
        named = _HOST.fullmatch(request.headers["host"])
        cookie = f"chestct-{named['port'] if named else ''}"
        given = request.query_params.get("token")
        if request.url.path == "/" and given is not None:
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                return sentence(_WRONG_TOKEN, HTTPStatus.FORBIDDEN)
            answer = Response(status_code=HTTPStatus.SEE_OTHER, headers={"Location": "/"})
            answer.set_cookie(
                cookie, self._session, httponly=True, samesite="strict", secure=self._is_secure
            )
            return answer
        known = request.cookies.get(cookie, "")
        if not hmac.compare_digest(known.encode(), self._session.encode()):
            return sentence(_WRONG_TOKEN, HTTPStatus.FORBIDDEN)
        return None


_WRONG_TOKEN: Final = (
    "Open the whole address that 'chestct serve' printed: it ends in a token, and the one at hand "
    "is missing, wrong, or of a server that has ended."
)


async def _send_guarded(send: Send, message: Message) -> None:
    """Send, with the headers that every answer has; an answer's own ones win."""
    if message["type"] == "http.response.start":
        own = {name.lower() for name, _ in message["headers"]}
        added = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
        message["headers"] = [*message["headers"], *(h for h in added if h[0] not in own)]
    await send(message)


def sentence(words: str, status: int) -> JSONResponse:
    """An answer that is one sentence for people."""
    return JSONResponse({"error": words}, status_code=status)
