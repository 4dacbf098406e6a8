"""The server: who may ask, what they may ask for, and what they get.

Every request passes `guard.Guard` first. What a request names is an identifier in a table of ours.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from chestct import __version__
from chestct.errors import ChestCTError, WriteError
from chestct.labels import NOT_FOR_CLINICAL_USE, THREE_CLASSES, LabelSet
from chestct.pictures import HEAT_LEVELS, LINE_LEVELS, LUNG_COLOR, heat_palette
from chestct.serve.jobs import (
    FACTS_FILE,
    HEAT_STEPS,
    INSIDE,
    PARTS,
    RIM,
    THUMBNAIL_FILE,
    Job,
    Jobs,
    Order,
    copy_name,
)
from chestct.serve.results import (
    READINGS_FILE,
    Entry,
    Evaluation,
    Reading,
    Readings,
    Results,
    is_plain,
    number_of,
    page_of,
    rows_csv,
    scans_below,
)
from chestct.serve.uploads import Guard, ServeSettings, UploadError, Uploads, sentence
from chestct.storage import make_folder, reason_of
from chestct.writers.json_report import ResultDocument

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


_REPORT_POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
)
"""A report is one page with its style in it and needs no script; whoever wrote it gets none."""
_PAGE_FILES: Final[dict[str, str]] = {
    "index.html": "text/html",
    "style.css": "text/css",
    **{
        f"{name}.js": "text/javascript"
        for name in (
            "app",
            "answer",
            "curve",
            "evaluation",
            "list",
            "niivue",
            "parts",
            "send",
            "viewer",
        )
    },
    "icon.svg": "image/svg+xml",
}
"""The files of the page and their types; no other is given out."""
_MOST_JSON_BYTES: Final = 2**23
_MOST_PATH: Final = 1024
_MOST_COPIES: Final = 24
_SWEEP_S: Final = 20.0


def make_app(settings: ServeSettings, work: Callable[[Connection], None]) -> Starlette:
    """The server as an ASGI application; `work` is run by the process that classifies (`Jobs`)."""
    server = _Server.start(settings, work)
    app = Starlette(
        routes=_routes(server),
        lifespan=server.lifespan,
        exception_handlers={
            ChestCTError: _refused,
            HTTPException: _refused,
            OSError: _refused,
            ClientDisconnect: _refused,
            Exception: _refused,
        },
    )
    app.add_middleware(Guard, settings=settings)
    return app


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that browsers can connect to; port 0 takes a free one.

    Raises:
        WriteError: There is no such address, or it is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with ExitStack() as closing:
            listening = closing.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
            closing.pop_all()
            return listening
    except OSError as error:
        msg = f"The server cannot listen on {host}, port {port}: {reason_of(error)}."
        raise WriteError(f"{msg} Choose another --port, or --port 0 for a free one.") from error


def serve_until_ended(app: Starlette, listening: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM. Nothing is logged: addresses would hold tokens."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listening])


async def _refused(request: Request, error: Exception) -> Response:
    """What went wrong in a sentence, and never more of it: other texts can hold names."""
    if isinstance(error, UploadError):
        return sentence(str(error), error.status)
    if isinstance(error, ChestCTError):
        return sentence(str(error), HTTPStatus.BAD_REQUEST)
    if isinstance(error, HTTPException):
        return sentence(error.detail, error.status_code)
    if isinstance(error, OSError):
        return sentence(f"The system refused: {reason_of(error)}.", HTTPStatus.CONFLICT)
    words = f"Internal error ({type(error).__name__}). Report it, if it happens again."
    return sentence(words, HTTPStatus.INTERNAL_SERVER_ERROR)


def _missing(words: str = "There is no such thing here any more. Load the page again.") -> Response:
    return sentence(words, HTTPStatus.NOT_FOUND)


@dataclass(eq=False)
class _Server:
    """What the routes share."""

    settings: ServeSettings
    results: Results
    beside: Results | None
    uploads: Uploads
    readings: Readings
    jobs: Jobs
    viewing: Path

    @classmethod
    def start(cls, settings: ServeSettings, work: Callable[[Connection], None]) -> _Server:
        """Make the folders of a session."""
        results = settings.results or settings.session / "results"
        folders = {name: settings.session / name for name in ("uploads", "viewing")}
        for folder in (*folders.values(), results):
            make_folder(folder)
        jobs = Jobs(work)
        server = cls(
            settings,
            Results(results),
            None if settings.beside is None else Results(settings.beside),
            Uploads(folders["uploads"], settings.most_bytes),
            Readings(results / READINGS_FILE),
            jobs,
            folders["viewing"],
        )
        jobs.when_over = server.tidy
        return server

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Work as long as the server runs."""
        tasks = [asyncio.create_task(self.jobs.run()), asyncio.create_task(self._sweep())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.uploads.sweep()

    def tidy(self, job: Job) -> None:
        """Keep or remove what a job leaves behind."""
        scan = job.order.scan
        is_upload = scan.is_relative_to(self.settings.session)
        if is_upload and job.order.results is not None:
            if job.state != "done":
                shutil.rmtree(scan.parent, ignore_errors=True)
            elif self.settings.keeps_scans and self.settings.scans is not None:
                with suppress(OSError, shutil.Error):
                    shutil.move(scan, _free_path(self.settings.scans, scan.name))
        copies = sorted(self.viewing.iterdir(), key=lambda path: path.stat().st_mtime)
        for copy in copies[: max(0, len(copies) - _MOST_COPIES)]:
            shutil.rmtree(copy, ignore_errors=True)

    def entry(self, request: Request) -> Entry:
        """The scan that a request names.

        Raises:
            HTTPException: There is none.
        """
        found = self.results.find(request.path_params["scan"])
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "This scan is not in the list any more.")
        return found

    def answer_of(self, number: str) -> tuple[ResultDocument, Path | None] | None:
        """A scan's answer and its folder, or its answer alone while that is being written."""
        for job in reversed(self.jobs.all()):
            if job.document and number_of(job.folder) == number:
                return ResultDocument.model_validate_json(job.document), None
        found = self.results.find(number)
        return None if found is None else (found.document, found.folder)

    def scan_of(
        self, document: ResultDocument, folder: Path | None
    ) -> tuple[Path, str | None] | None:
        """Where the scan of an answer lies, if it is at hand, and which series of it is meant."""
        for job in reversed(self.jobs.all()):
            is_its = folder is not None and job.folder == folder.name and job.order.results
            if is_its and job.order.scan.exists():
                return job.order.scan, job.order.series
        if self.settings.scans is None:
            return None
        found = scans_below(self.settings.scans).get(document.scan, [])
        return (found[0], document.provenance.series_uid) if len(found) == 1 else None

    def copy_of(self, document: ResultDocument, *, is_whole: bool = False) -> Path:
        """The folder of a scan's viewing copy, there or not."""
        name = copy_name(document.provenance.pixel_sha256)
        return self.viewing / (f"{name}-whole" if is_whole else name)

    def rows(self) -> list[dict[str, object]]:
        """The list of what was classified."""
        beside = [] if self.beside is None else self.beside.entries()
        others = {entry.document.provenance.pixel_sha256: entry.document for entry in beside}
        said = self.readings.verdicts()
        return [
            entry.row(others.get(entry.document.provenance.pixel_sha256))
            | {"readings": said.get(entry.document.scan, [])}
            for entry in self.results.entries()
        ]


def _free_path(folder: Path, name: str) -> Path:
    """A path of this name in a folder, numbered where it is taken."""
    make_folder(folder)
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{number}-{name}"
    return path


_Handler = Callable[["_Server", Request], Awaitable[Response]]


def _routes(server: _Server) -> list[Route]:
    """Every address the server knows."""

    def route(path: str, handler: _Handler, *methods: str) -> Route:
        """One address and what answers there."""

        async def answer(request: Request) -> Response:
            """Have the handler answer."""
            return await handler(server, request)

        return Route(path, answer, methods=list(methods or ("GET",)))

    return [
        route("/", _page),
        route("/page/{name}", _page),
        route("/api/about", _about),
        route("/api/events", _events),
        route("/api/scans", _list),
        route("/api/scans.csv", _list_csv),
        route("/api/readers.csv", _readers_csv),
        route("/api/uploads", _begin_upload, "POST"),
        route("/api/uploads/{upload}", _drop_upload, "DELETE"),
        route("/api/uploads/{upload}/done", _finish_upload, "POST"),
        route("/api/uploads/{upload}/{file:int}", _receive_file, "PUT"),
        route("/api/jobs/{job}", _cancel_job, "DELETE"),
        route("/api/jobs/{job}/series", _choose_series, "POST"),
        route("/api/scans/{scan}", _scan),
        route("/api/scans/{scan}/thumbnail", _thumbnail),
        route("/api/scans/{scan}/preview", _preview),
        route("/api/scans/{scan}/report", _report),
        route("/api/scans/{scan}/files/{file:int}", _file),
        route("/api/scans/{scan}/view", _make_view, "POST"),
        route("/api/scans/{scan}/view/{part}", _view),
        route("/api/scans/{scan}/readings", _add_reading, "POST"),
        route("/api/evaluation", _evaluation),
        route("/api/evaluation/pictures/{picture:int}", _evaluation_picture),
    ]


async def _page(server: _Server, request: Request) -> Response:
    """The page and what it is made of."""
    name = request.path_params.get("name", "index.html")
    if name not in _PAGE_FILES:
        return _missing()
    content = resources.files("chestct.serve").joinpath("page", name).read_bytes()
    return Response(content, media_type=_PAGE_FILES[name])


async def _about(server: _Server, request: Request) -> Response:
    """What the page needs to know once."""
    settings = server.settings
    return JSONResponse(
        {
            "version": __version__,
            "notice": NOT_FOR_CLINICAL_USE,
            "labels": {each.name: each.words for each in LabelSet.of_names(THREE_CLASSES).classes},
            "is_kept": settings.results is not None,
            "keeps_scans": settings.keeps_scans,
            "has_evaluation": settings.evaluation is not None,
            "has_beside": settings.beside is not None,
            "most_bytes": settings.most_bytes,
            "layer": {"steps": HEAT_STEPS, "inside": INSIDE, "rim": RIM, "rim_color": LUNG_COLOR},
            "heat": [_colors(is_disease=is_disease) for is_disease in (False, True)],
        }
    )


def _colors(*, is_disease: bool) -> list[list[list[float]]]:
    """The report's colours of each step of heat, outside the lungs and inside.

    Each is red, green, blue (0 to 255) and opacity (0 to 1).
    """
    palette = heat_palette(is_disease=is_disease).reshape(2, HEAT_LEVELS, LINE_LEVELS, 4)[:, :, 0]
    steps = np.rint(np.linspace(0, HEAT_LEVELS - 1, HEAT_STEPS + 1)).astype(int)
    colors = palette[:, steps].astype(float)
    colors[..., 3] = (colors[..., 3] / 255.0).round(4)
    return [each.tolist() for each in colors]


def _job_words(job: Job, waiting: int) -> dict[str, object]:
    return {
        "id": job.number,
        "name": job.name,
        "state": job.state,
        "stage": job.stage,
        "step": job.step,
        "scan": number_of(job.folder) if job.folder else None,
        "is_viewable": job.is_viewable,
        "is_classifying": job.order.results is not None,
        "is_whole": job.order.is_whole,
        "ahead": waiting,
        "series": list(job.series.items()),
    }


async def _events(server: _Server, request: Request) -> Response:
    """The jobs, again each time that one of them has changed."""

    async def stream() -> AsyncIterator[str]:
        """One message after another, as long as somebody listens."""
        async for version in server.jobs.versions():
            if await request.is_disconnected():
                return
            jobs = server.jobs.all()
            waiting = [job.number for job in jobs if job.state == "waiting"]
            words = [
                _job_words(job, waiting.index(job.number) if job.state == "waiting" else 0)
                for job in jobs
            ]
            yield f"id: {version}\ndata: {json.dumps(words)}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


async def _list(server: _Server, request: Request) -> Response:
    """What was classified."""
    rows = await asyncio.to_thread(server.rows)
    return JSONResponse({"scans": rows, "num_unreadable": server.results.num_unreadable})


async def _list_csv(server: _Server, request: Request) -> Response:
    """The same as a table for a spreadsheet."""
    text = rows_csv(await asyncio.to_thread(server.rows))
    return _download(text.encode(), "chestct-scans.csv", "text/csv")


async def _readers_csv(server: _Server, request: Request) -> Response:
    """What readers said."""
    if not server.readings.file.exists():
        return _missing("No reader has said anything yet.")
    return _download(server.readings.file.read_bytes(), READINGS_FILE, "text/csv")


def _download(content: bytes, name: str, media_type: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)


async def _json_of(request: Request) -> dict[str, Any]:
    """A request's body.

    Raises:
        HTTPException: It is too long, or no object.
    """
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MOST_JSON_BYTES:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request is too long.")
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise _not_sent_by_page()
    return said


def _not_sent_by_page() -> HTTPException:
    return HTTPException(HTTPStatus.BAD_REQUEST, "The request is not what the page sends.")


async def _begin_upload(server: _Server, request: Request) -> Response:
    """Announce a scan: its name, and path and size of each file."""
    said = await _json_of(request)
    name, files = said.get("name"), said.get("files")
    is_right = isinstance(name, str) and isinstance(files, list)
    is_right = is_right and all(map(_is_announced, files or []))
    if not is_right:
        raise _not_sent_by_page()
    upload = server.uploads.begin(str(name), [(path, size) for path, size in files or []])
    return JSONResponse({"id": upload.number, "name": upload.name})


def _is_announced(file: object) -> bool:
    """Whether this is a path and a size in bytes."""
    if not (isinstance(file, list) and len(file) == 2):
        return False
    path, size = file
    is_path = isinstance(path, str) and 0 < len(path) <= _MOST_PATH
    return is_path and type(size) is int and size >= 0


async def _receive_file(server: _Server, request: Request) -> Response:
    """Take one file of a scan that was announced."""
    upload = server.uploads.find(request.path_params["upload"])
    await server.uploads.receive(upload, request.path_params["file"], request.stream())
    return JSONResponse({"missing": len(upload.missing)})


async def _finish_upload(server: _Server, request: Request) -> Response:
    """Put a scan whose files are all there into the queue."""
    upload = server.uploads.find(request.path_params["upload"])
    scan = server.uploads.finish(upload)
    try:
        order = Order(scan, server.results.folder, server.viewing)
        job = await server.jobs.add(upload.name, order)
    except ChestCTError:
        server.uploads.drop(upload)
        raise
    return JSONResponse({"job": job.number})


async def _drop_upload(server: _Server, request: Request) -> Response:
    """Give up a scan that is being sent."""
    server.uploads.drop(server.uploads.find(request.path_params["upload"]))
    return JSONResponse({})


async def _cancel_job(server: _Server, request: Request) -> Response:
    """Cancel what is waiting or being done."""
    await server.jobs.cancel(request.path_params["job"])
    return JSONResponse({})


async def _choose_series(server: _Server, request: Request) -> Response:
    """Say which of several series a scan is."""
    series = (await _json_of(request)).get("series")
    if not isinstance(series, str):
        raise _not_sent_by_page()
    await server.jobs.choose(request.path_params["job"], series)
    return JSONResponse({})


async def _scan(server: _Server, request: Request) -> Response:
    """All that is said of one scan."""
    found = await asyncio.to_thread(server.answer_of, request.path_params["scan"])
    if found is None:
        return _missing("This scan is not in the list any more.")
    document, folder = found
    copy = server.copy_of(document)
    words = page_of(request.path_params["scan"], document, folder)
    facts = copy / FACTS_FILE
    words["view"] = json.loads(facts.read_text(encoding="utf-8")) if facts.exists() else None
    words["has_whole"] = (server.copy_of(document, is_whole=True) / "scan.nii").exists()
    is_at_hand = await asyncio.to_thread(server.scan_of, document, folder) is not None
    words["can_view"] = is_at_hand
    said = server.readings.of(document.scan)
    words["readings"] = [vars(reading) for reading in said]
    return JSONResponse(words)


async def _thumbnail(server: _Server, request: Request) -> Response:
    """A small picture of a scan."""
    entry = server.entry(request)
    copy = server.copy_of(entry.document) / THUMBNAIL_FILE
    if copy.exists():
        return Response(copy.read_bytes(), media_type="image/png", headers=_KEPT)
    preview = entry.folder / "preview.png"
    if not is_plain(preview):
        return _missing()
    content = await asyncio.to_thread(_small_picture, preview)
    return Response(content, media_type="image/png", headers=_KEPT)


_KEPT: Final = {"Cache-Control": "private, max-age=600"}
_PREVIEW_BOX: Final = (36, 92, 36 + 2 * 330 + 12, 92 + 300)
"""Where a preview shows its first two slices, in pixels."""
_THUMBNAIL_SIZE: Final = (320, 145)


def _small_picture(preview: Path) -> bytes:
    """The first slices of a preview, small."""
    from PIL import Image

    with Image.open(preview) as picture:
        box = _PREVIEW_BOX if picture.width >= _PREVIEW_BOX[2] else None
        small = picture.convert("RGB").resize(_THUMBNAIL_SIZE, box=box)
    stream = BytesIO()
    small.save(stream, "PNG")
    return stream.getvalue()


async def _preview(server: _Server, request: Request) -> Response:
    """The still picture of a scan."""
    preview = server.entry(request).folder / "preview.png"
    return FileResponse(preview, media_type="image/png") if is_plain(preview) else _missing()


async def _report(server: _Server, request: Request) -> Response:
    """The still report of a scan, as a page of its own that may run nothing."""
    report = server.entry(request).folder / "report.html"
    if not is_plain(report):
        return _missing()
    policy = {"Content-Security-Policy": _REPORT_POLICY}
    return FileResponse(report, media_type="text/html", headers=policy)


async def _file(server: _Server, request: Request) -> Response:
    """One of the outputs, to be kept."""
    files = server.entry(request).files
    index = request.path_params["file"]
    if index >= len(files):
        return _missing()
    path = files[index][1]
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


async def _make_view(server: _Server, request: Request) -> Response:
    """Have the viewing copy of an earlier scan made, or the scan itself with all its voxels."""
    said = await _json_of(request)
    entry = server.entry(request)
    is_whole = said.get("whole") is True
    at_hand = await asyncio.to_thread(server.scan_of, entry.document, entry.folder)
    if at_hand is None:
        return _missing(
            "The scan itself is not at hand: drop it onto the page again, or start the server with "
            "--scans and the folder in which it lies."
        )
    copy = server.copy_of(entry.document, is_whole=is_whole).name
    found = entry.document.provenance.pixel_sha256
    scan, series = at_hand
    order = Order(scan, None, server.viewing, copy, is_whole, found, series)
    job = await server.jobs.add(entry.document.scan, order)
    return JSONResponse({"job": job.number})


async def _view(server: _Server, request: Request) -> Response:
    """A part of a viewing copy."""
    found = await asyncio.to_thread(server.answer_of, request.path_params["scan"])
    part = request.path_params["part"].removesuffix(".nii")
    if found is None or part not in PARTS:
        return _missing()
    path = server.copy_of(found[0], is_whole=part == "whole") / PARTS[part]
    return FileResponse(path) if path.exists() else _missing()


async def _add_reading(server: _Server, request: Request) -> Response:
    """Keep what a reader says of an answer."""
    said = await _json_of(request)
    document = server.entry(request).document
    if document.findings is not None:
        msg = "A reading gives a scan one class, and this answer is of findings: label them in a"
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"{msg} spreadsheet with a column each.")
    given = [said.get(name, "") for name in ("reader", "verdict", "label", "note")]
    if not all(isinstance(each, str) for each in given):
        raise _not_sent_by_page()
    reading = Reading(*given)
    labels = list(document.classes or document.probabilities)
    server.readings.add(document.scan, document.decision, reading, labels)
    return JSONResponse({"readings": [vars(each) for each in server.readings.of(document.scan)]})


async def _evaluation(server: _Server, request: Request) -> Response:
    """An evaluation's figures and wrong answers."""
    folder = server.settings.evaluation
    if folder is None:
        return _missing("No evaluation was named: chestct serve RESULTS --evaluation DIR")
    entries = await asyncio.to_thread(server.results.entries)
    try:
        return JSONResponse(await asyncio.to_thread(Evaluation(folder).words, entries))
    except (OSError, ValueError, AttributeError) as error:
        msg = f"{folder.name} holds no evaluation that can be read ({type(error).__name__}). Name"
        raise WriteError(f"{msg} the folder that 'chestct evaluate' wrote.") from error


async def _evaluation_picture(server: _Server, request: Request) -> Response:
    """One of an evaluation's pictures."""
    folder = server.settings.evaluation
    pictures = [] if folder is None else Evaluation(folder).pictures
    index = request.path_params["picture"]
    return FileResponse(pictures[index]) if index < len(pictures) else _missing()
