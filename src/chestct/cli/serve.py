"""`chestct serve`: a web page on this computer, to look at scans and answers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chestct.cli import options
from chestct.cli.terminal import show_error, show_line
from chestct.errors import ReadError, WriteError

if TYPE_CHECKING:
    from chestct.serve.jobs import Setup
    from chestct.serve.uploads import ServeSettings

_PORT = 8642
_NETWORK = "Other computers"
_SHOWN = "What is shown"


@dataclass(frozen=True)
class _Shown:
    """What is shown beside the results, and whether scans are kept."""

    scans: Annotated[
        Path | None,
        typer.Option(
            "--scans",
            metavar="DIR",
            help="Where the scans of earlier results lie, to be shown in three planes.",
            rich_help_panel=_SHOWN,
        ),
    ] = None
    keeps_scans: Annotated[
        bool,
        typer.Option(
            "--keep-scans",
            help="Keep scans that are dropped onto the page, in --scans.",
            rich_help_panel=_SHOWN,
        ),
    ] = False
    beside: Annotated[
        Path | None,
        typer.Option(
            "--beside",
            metavar="DIR",
            help="Results of another classifier on the same scans, shown beside these.",
            rich_help_panel=_SHOWN,
        ),
    ] = None
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation",
            metavar="DIR",
            help="An evaluation's folder: its figures, and the wrong answers with their scans.",
            rich_help_panel=_SHOWN,
        ),
    ] = None

    def require_folders(self) -> None:
        """Refuse folders that are not there, and scans that are kept nowhere.

        Raises:
            ReadError: A folder is not there.
            WriteError: Scans are to be kept and no folder was named.
        """
        if self.keeps_scans and self.scans is None:
            raise WriteError("--keep-scans keeps scans in a folder. Name it: --scans DIR.")
        for folder in (self.beside, self.evaluation):
            if folder is not None:
                options.require_exists(folder)


@dataclass(frozen=True)
class _Network:
    """Where the page is reached, and by whom."""

    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: a free one.")
    ] = _PORT
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen on. Others than this computer's own need --token.",
            rich_help_panel=_NETWORK,
        ),
    ] = "127.0.0.1"
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TEXT",
            envvar="CHESTCT_TOKEN",
            help="What opens the page, 16 characters or more. Default: drawn anew each time.",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    tls_name: Annotated[
        str | None,
        typer.Option(
            "--tls-name",
            metavar="NAME",
            help="Name under which a proxy that speaks TLS passes the page on.",
            rich_help_panel=_NETWORK,
        ),
    ] = None

    def require_token(self) -> None:
        """Refuse to be reached by others without a token that somebody chose.

        Raises:
            WriteError: There is none, or it is too short.
        """
        from chestct.serve.uploads import LEAST_TOKEN, is_loopback

        host, token = self.host, self.token
        if host in ("0.0.0.0", "::", ""):
            msg = "--host needs the very address or name that browsers will use, as others are"
            raise WriteError(f"{msg} refused.")
        if token is None and not is_loopback(host):
            msg = (
                f"--host {host} lets other computers in. Choose what opens the page, --token TEXT "
                "or the variable CHESTCT_TOKEN, and let a proxy with TLS pass it on (--tls-name)."
            )
            raise ReadError(msg)
        if token is not None and len(token) < LEAST_TOKEN:
            msg = (
                f"The token has {len(token)} characters, {LEAST_TOKEN} or more are needed. Such as:"
            )
            raise ReadError(f"{msg} {secrets.token_urlsafe(24)}")


@dataclass(frozen=True)
class _Dropped:
    """What is done with scans that are dropped onto the page."""

    classifier: options.ClassifierFolder = None
    write: Annotated[
        str | None,
        typer.Option(
            "--write",
            metavar="NAMES",
            help="Which outputs are made, as 'classify --write' takes them. Default: all that this "
            "installation can make.",
        ),
    ] = None
    max_gb: Annotated[
        float,
        typer.Option("--max-gb", metavar="X", min=0.001, help="Largest scan that may be dropped."),
    ] = 2.7

    def setup(self, running: options.Running) -> Setup:
        """What classifies them, where, and what is written.

        Raises:
            UnknownNameError: There is no such writer.
            WriteError: None was named.
        """
        from chestct.serve.jobs import Setup

        writing = options.Outputs(write=self.write or _writers()).write_options()
        return Setup(self.classifier, running.engine, running.precision, running.device, writing)


@options.grouped
def serve(
    shown: _Shown,
    running: options.Running,
    network: _Network,
    results: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RESULTS]",
            help="Folder of results, as 'classify --out' makes it: shown as a list, and new ones "
            "are added to it. Without one, results are gone when the server ends.",
        ),
    ] = None,
    *,
    dropped: _Dropped,
) -> None:
    """Open a web page on this computer, to look at scans and their answers."""
    from chestct.extras import import_extra

    for package in ("starlette", "uvicorn"):
        import_extra(package, extra="serve")
    from chestct.serve.uploads import ServeSettings
    from chestct.storage import cache_folder, working_folder

    network.require_token()
    shown.require_folders()
    setup = dropped.setup(running)
    with working_folder(cache_folder() / "serve") as session:
        settings = ServeSettings(
            token=network.token or secrets.token_urlsafe(32),
            session=session,
            results=results,
            scans=shown.scans,
            keeps_scans=shown.keeps_scans,
            beside=shown.beside,
            evaluation=shown.evaluation,
            names=tuple(name for name in (network.host, network.tls_name) if name is not None),
            most_bytes=round(dropped.max_gb * 1e9),
            is_secure=network.tls_name is not None,
        )
        _serve(settings, setup, network.host, network.port)


def _serve(settings: ServeSettings, setup: Setup, host: str, port: int) -> None:
    """Listen, say where, and serve until the end."""
    from chestct.serve.app import listening_socket, make_app, serve_until_ended
    from chestct.serve.jobs import do_orders
    from chestct.serve.uploads import is_loopback
    from chestct.storage import make_folder

    results = settings.results
    if results is not None and not results.exists():
        make_folder(results)
    app = make_app(settings, partial(do_orders, setup))
    with listening_socket(host, port) as listening:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listening.getsockname()[1]}/?token={settings.token}"
        show_line(f"Open {address}")
        if settings.results is None:
            show_line("Results are gone when this ends; 'chestct serve RESULTS' keeps them.")
        if not is_loopback(host) and not settings.is_secure:
            show_error(
                "everyone on the network can read along, the token too. Let a proxy that speaks TLS"
                " (nginx, Caddy) pass the page on, and name it: --tls-name NAME. Or listen on "
                f"127.0.0.1 and use a tunnel: ssh -L {port}:127.0.0.1:{port} THIS-COMPUTER"
            )
        show_line("Ctrl-C ends it.")
        serve_until_ended(app, listening)


def _writers() -> str:
    """All outputs, or those that this installation can make."""
    from chestct.extras import is_installed
    from chestct.writers import DEFAULT

    return "all" if is_installed("highdicom") else ",".join((*DEFAULT, "nifti"))
