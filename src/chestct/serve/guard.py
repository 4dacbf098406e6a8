"""Who may ask the server: nobody without the token, from another page, or under another name."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chestct.serve.uploads import MOST_BYTES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
    most_bytes: int = MOST_BYTES
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
