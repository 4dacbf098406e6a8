"""A local stand-in for the web: a folder over HTTP, with files that fail in known ways."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

LOGIN = ("me", "aVerySecretThing")
_LOGIN = "Basic " + b64encode(":".join(LOGIN).encode()).decode()


class _Handler(SimpleHTTPRequestHandler):
    """Paths with `refused`, `busy` or `torn` in them are not given or not whole

    Those with `locked` in them are given to `LOGIN` alone.
    """

    def send_head(self):  # type: ignore[no-untyped-def]
        if "refused" in self.path:
            self.send_error(403)
            return None
        if "locked" in self.path and self.headers.get("Authorization") != _LOGIN:
            self.send_error(401)
            return None
        if "busy" in self.path:
            self.send_error(503)
            return None
        if "torn" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
            return None
        return super().send_head()

    def log_message(self, *said: object) -> None:
        """Say nothing of requests among the test's output."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder at an address of this machine, without a slash at its end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
