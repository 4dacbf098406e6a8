"""One scan after another: a queue, and a process of its own that does the work.

The work is done in another process, so that it can be cancelled at any moment, and so that a scan
that brings the interpreter down or takes all memory costs its own answer and not the server. It is
kept warm: the classifier is loaded once.

It leaves a viewing copy: the scan, and over it lungs and heat-map, on a grid that a browser draws
at once. Everything lies on the axes of the body, so that the page need not know how a scan was
stored: the n-th slice of the report is the n-th part of the copy's height. Lungs and heat-map are
one layer, because each layer costs a browser without a graphics card a second.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int16, UInt8
from scipy import ndimage

from chestct.analysis import ScanAnalysis
from chestct.arrays import Shape
from chestct.errors import ChestCTError, SeveralSeriesError, kind_of
from chestct.explain.back_to_scan import map_on_body
from chestct.explain.explanation import HeatMap, HeatPlane
from chestct.pictures import Plane, Scene, draw_slice, fullest_slice
from chestct.preprocess.oblique import on_body
from chestct.storage import write_folder_with
from chestct.volume import Grid, Volume
from chestct.writers.nifti import write_nifti
from chestct.writers.pages import to_png

if TYPE_CHECKING:
    from chestct.classifier import Classifier
    from chestct.engines import Engine
    from chestct.writers import WriteOptions


_MOST_VOXELS: Final[Shape] = (200, 256, 256)
"""Largest viewing copy, (depth, height, width): drawn without a graphics card in seconds."""
HEAT_STEPS: Final = 119
"""What a heat of 1 is stored as outside the lungs; inside, `INSIDE` is added."""
INSIDE: Final = 120
RIM: Final = 255
"""The outline of the lungs, in each slice across the body."""
PARTS: Final = {"scan": "scan.nii", "layer": "layer.nii", "whole": "scan.nii"}
"""What the page may ask for, and the files in which it lies."""
FACTS_FILE: Final = "facts.json"
THUMBNAIL_FILE: Final = "thumbnail.png"

_WITHIN_SLICE: Final = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], dtype=np.bool_)
_SHOWN_HU: Final = (-1024, 3071)
_THUMBNAIL_PX: Final = 160
_PLANES: Final[tuple[Plane, ...]] = ("axial", "coronal")


def _viewing_grid(grid: Grid) -> Grid:
    """The grid of the viewing copy: the same box in the patient, in at most `_MOST_VOXELS`."""
    shape = tuple(min(n, most) for n, most in zip(grid.shape, _MOST_VOXELS, strict=True))
    step = tuple(n / new for n, new in zip(grid.shape, shape, strict=True))
    start = tuple((each - 1.0) / 2.0 for each in step)
    return grid.moved(start, step, shape)  # type: ignore[arg-type]


def _write_viewing_copy(analysis: ScanAnalysis, folder: Path) -> Path:
    """Write scan, lungs and heat-map as NIfTI, a thumbnail, and `facts.json` about them.

    An older folder of this name is replaced.

    Raises:
        WriteError: It cannot be written.
    """
    return write_folder_with(folder, lambda aside: _write_parts(analysis, aside))


def _write_whole_scan(analysis: ScanAnalysis, folder: Path) -> Path:
    """Write the scan alone with all its voxels, on the axes of the body.

    Raises:
        WriteError: It cannot be written.
    """
    volume = on_body(analysis.volume)

    def write(aside: Path) -> None:
        """All voxels, as one file."""
        write_nifti(aside / "scan.nii", _as_shown(volume.voxels, volume.unit), volume.grid)

    return write_folder_with(folder, write)


def _write_parts(analysis: ScanAnalysis, folder: Path) -> None:
    volume = on_body(analysis.volume)
    grid = _viewing_grid(volume.grid)
    values = _shrunk(volume.voxels.__getitem__, volume.grid.shape, grid.shape)
    write_nifti(folder / PARTS["scan"], _as_shown(values, volume.unit), grid)
    write_nifti(folder / PARTS["layer"], _layer_of(analysis, grid), grid)
    (folder / THUMBNAIL_FILE).write_bytes(_thumbnail(analysis))
    (folder / FACTS_FILE).write_text(json.dumps(_facts(analysis, volume, grid)), encoding="utf-8")


def _facts(analysis: ScanAnalysis, volume: Volume, grid: Grid) -> dict[str, object]:
    """What the page needs beside the voxels; areas and slices counted from the feet."""
    area: Float64[np.ndarray, " slices"] = analysis.prepared.lung_area
    return {
        "shape": list(grid.shape),
        "scan_shape": list(volume.grid.shape),
        "spacing_mm": [round(each, 4) for each in grid.spacing_mm],
        "unit": volume.unit,
        "range": [float(volume.voxels.min()), float(volume.voxels.max())],
        "lung_area": [round(share, 5) for share in area.tolist()],
        "has_heat": analysis.explanation is not None,
        "is_disease": analysis.explanation is None or analysis.explanation.speaks_for_disease,
    }


def _thumbnail(analysis: ScanAnalysis) -> bytes:
    """The axial and the coronal slice with most lung, side by side."""
    scene = Scene.of_scan(analysis)
    pictures = [
        draw_slice(scene, plane, fullest_slice(scene.lungs, plane), _THUMBNAIL_PX)
        for plane in _PLANES
    ]
    height = min(picture.shape[0] for picture in pictures)
    tops = [(picture.shape[0] - height) // 2 for picture in pictures]
    shown = [picture[top : top + height] for picture, top in zip(pictures, tops, strict=True)]
    return to_png(np.concatenate(shown, axis=1))


def _heat_plane(heat: HeatMap, index: int) -> HeatPlane:
    """A slice of a map, zero where nothing was analysed."""
    plane: HeatPlane = np.nan_to_num(heat.cut(0, index), nan=0.0)
    return plane


def _shrunk(
    plane_of: Callable[[int], np.ndarray], old_shape: Shape, shape: Shape
) -> Float32[np.ndarray, "new_depth new_height new_width"]:
    """The mean of what lies in each voxel of a coarser grid over the same box, from its slices."""
    import cv2

    depth, height, width = shape
    shrunk = np.empty(shape, dtype=np.float32)
    for made, shares in zip(shrunk, _shares(old_shape[0], depth), strict=True):
        mean = np.zeros(old_shape[1:], dtype=np.float32)
        for old in np.flatnonzero(shares).tolist():
            mean += shares[old] * plane_of(old)
        made[...] = cv2.resize(mean, (width, height), interpolation=cv2.INTER_AREA)
    return shrunk


def _shares(old: int, new: int) -> Float32[np.ndarray, "new old"]:
    """Share of each old slice in each of fewer ones of equal height; rows add up to one."""
    edges = np.linspace(0.0, old, new + 1)
    starts, ends = np.maximum(edges[:-1, None], np.arange(old)), edges[1:, None]
    overlap = np.minimum(ends, np.arange(1, old + 1)) - starts
    return (overlap.clip(0.0) * (new / old)).astype(np.float32)


def _as_shown(values: np.ndarray, unit: str) -> Int16[np.ndarray, "depth height width"]:
    """Values in 16 bits; Hounsfield units as far as scanners give them."""
    low, high = _SHOWN_HU if unit == "HU" else (-32768, 32767)
    stored = np.empty(values.shape, dtype=np.int16)
    for made, plane in zip(stored, values, strict=True):
        made[...] = np.rint(plane).clip(low, high)
    return stored


def _layer_of(analysis: ScanAnalysis, grid: Grid) -> UInt8[np.ndarray, "depth height width"]:
    """Heat in steps, told apart inside and outside the lungs, and the outline of the lungs."""
    mask = on_body(analysis.prepared.scan_lungs).voxels
    lungs = _shrunk(mask.__getitem__, mask.shape, grid.shape) >= 0.5
    layer = np.zeros(grid.shape, dtype=np.uint8)
    if analysis.explanation is not None:
        heat = map_on_body(analysis.explanation.heat)
        shrunk = _shrunk(partial(_heat_plane, heat), heat.grid.shape, grid.shape)
        layer += np.rint(shrunk.clip(0.0, 1.0) * HEAT_STEPS).astype(np.uint8)
    layer[lungs] += INSIDE
    # Within slices: where the diaphragm lies flat, an outline across them would hide the heat.
    layer[lungs & ~ndimage.binary_erosion(lungs, _WITHIN_SLICE)] = RIM
    return layer


_State = Literal["waiting", "running", "done", "failed", "undecided", "cancelled"]

_MOST_WAITING: Final = 200
_MOST_KEPT: Final = 300
_PATIENCE_S: Final = 5.0
_QUIET_S: Final = 15.0
_ENDED: Final = (
    "The process that classifies ended on its own, as happens when the system is out of memory. "
    "The server goes on: free memory, or try a smaller scan."
)


@dataclass(frozen=True)
class Setup:
    """How scans are classified, for a process that has yet to load anything.

    Attributes:
        classifier: Folder of the classifier; None takes the shipped one.
        engine: Name in `ENGINES`, or "auto".
        precision: As `make_engine` takes it.
        device: As `make_engine` takes it.
        writing: Which outputs are written, and how.
    """

    classifier: Path | None
    engine: str
    precision: str | None
    device: str | None
    writing: WriteOptions


@dataclass(frozen=True)
class Order:
    """One piece of work.

    Attributes:
        scan: Path of the scan.
        results: Folder that gets the scan's folder of results; None where only a viewing copy is
            wanted.
        viewing: Folder of viewing copies.
        copy: Name of the copy in it; "" names it as `copy_name` does.
        is_whole: Whether the scan with all its voxels is wanted, and nothing else.
        pixel_sha256: Hash that the voxels must have, where results of a scan are to be shown.
        series: The series that is meant where the readers' own rule decides for none.
    """

    scan: Path
    results: Path | None
    viewing: Path
    copy: str = ""
    is_whole: bool = False
    pixel_sha256: str = ""
    series: str | None = None


@dataclass(frozen=True)
class Event:
    """What a worker says of the order it works on.

    Attributes:
        kind: "stage", "answered", "viewable", "done", "failed" or "undecided".
        words: The stage, the name of the folder of results, or what went wrong.
        step: Steps done and steps in all, where they are known.
        document: The answer as `result.json` has it.
        series: What names each series that could be meant, to what tells it apart.
    """

    kind: str
    words: str = ""
    step: tuple[int, int] | None = None
    document: str = ""
    series: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One scan on its way.

    Attributes:
        number: Its identifier, that says nothing of the scan.
        name: What the scan is called.
        order: What is to be done.
        state: How far it is.
        stage: What is being done, in words; what went wrong, when it failed.
        step: Steps done and in all of this stage, where they are known.
        folder: Name of the folder of its results, as soon as it has an answer.
        document: The answer as `result.json` has it, from the answer on.
        is_viewable: Whether its viewing copy is there.
        series: The series among which somebody has to choose, as an `Event` tells them.
        since: When this state began, in seconds of `time.monotonic`.
    """

    number: str
    name: str
    order: Order
    state: _State = "waiting"
    stage: str = "waiting"
    step: tuple[int, int] | None = None
    folder: str = ""
    document: str = ""
    is_viewable: bool = False
    series: Mapping[str, str] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("done", "failed", "cancelled")


def copy_name(pixel_sha256: str) -> str:
    """What the viewing copy of a scan is called."""
    return pixel_sha256[:32]


class Jobs:
    """The queue. All of it runs in one event loop.

    Args:
        work: What the worker's process runs: takes orders from a connection and answers each with
            events, the last of them "done" or "failed".
    """

    def __init__(self, work: Callable[[Connection], None]) -> None:
        self._work = work
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[str] = deque()
        self._version = 0
        self._changed = asyncio.Condition()
        self._worker: tuple[Any, Connection] | None = None
        self._current = ""
        self.when_over: Callable[[Job], None] = lambda job: None
        """Called with each job that is over."""

    def all(self) -> list[Job]:
        """Every job that is remembered, oldest first."""
        return list(self._jobs.values())

    def find(self, number: str) -> Job | None:
        """The job of this identifier, if there is one."""
        return self._jobs.get(number)

    async def add(self, name: str, order: Order) -> Job:
        """Put a scan at the end of the queue.

        Raises:
            ChestCTError: Too many are waiting.
        """
        self._require_room()
        job = Job(secrets.token_hex(8), name, order)
        self._waiting.append(job.number)
        await self._set(job)
        return job

    def _require_room(self) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            msg = f"{_MOST_WAITING} scans are waiting already. Wait until some are done."
            raise ChestCTError(msg)

    async def choose(self, number: str, series: str) -> None:
        """Put a scan at the end of the queue again, as one of the series that it could be.

        Raises:
            ChestCTError: Nothing is to be chosen there, or not this; or too many are waiting.
        """
        async with self._changed:
            job = self._jobs.get(number)
            if job is None or job.state != "undecided" or series not in job.series:
                msg = "There is no such series to choose here any more. Load the page again."
                raise ChestCTError(msg)
            self._require_room()
            del self._jobs[number]
            order = replace(job.order, series=series)
            self._jobs[number] = Job(number, job.name, order)
            self._waiting.append(number)
            self._version += 1
            self._changed.notify_all()

    async def cancel(self, number: str) -> None:
        """Take a job out of the queue, or end it amid its work; one that is over is forgotten."""
        job = self._jobs.get(number)
        if job is None:
            return
        if job.is_over:
            await self._forget(job)
            return
        is_waiting = number in self._waiting
        if is_waiting:
            self._waiting.remove(number)
        await self._set(replace(job, state="cancelled", stage="cancelled", document=""))
        if is_waiting or job.state == "undecided":
            self._tidy(self._jobs[number])
        elif number == self._current:
            await asyncio.to_thread(self._end_worker)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            await asyncio.to_thread(self._start_worker)
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: bool(self._waiting))
                self._current = self._waiting.popleft()
                await self._do(self._jobs[self._current])
                self._current = ""
        finally:
            self._end_worker()

    async def versions(self) -> AsyncIterator[int]:
        """A number at once, and another one each time that anything has changed."""
        seen = -1
        while True:
            seen = await self._version_after(seen)
            yield seen

    async def _version_after(self, seen: int) -> int:
        """The next version; the same after a while, so that it shows when nobody listens."""
        async with self._changed:
            with suppress(TimeoutError):
                is_new = self._changed.wait_for(lambda: self._version != seen)
                await asyncio.wait_for(is_new, timeout=_QUIET_S)
            return self._version

    async def _set(self, job: Job) -> None:
        async with self._changed:
            known = self._jobs.get(job.number)
            is_new_state = known is None or known.stage != job.stage or known.state != job.state
            since = time.monotonic() if is_new_state else job.since
            self._jobs[job.number] = replace(job, since=since)
            over = [each.number for each in self._jobs.values() if each.is_over]
            for number in over[: max(0, len(over) - _MOST_KEPT)]:
                del self._jobs[number]
            self._version += 1
            self._changed.notify_all()

    async def _forget(self, job: Job) -> None:
        async with self._changed:
            # The worker of a job that was just cancelled may still be ending.
            if job.number != self._current:
                self._jobs.pop(job.number, None)
            self._version += 1
            self._changed.notify_all()

    async def _do(self, job: Job) -> None:
        """Have one order done, and follow it to its end."""
        try:
            _, pipe = await asyncio.to_thread(self._start_worker)
            if self._jobs[job.number].is_over:
                raise EOFError
            await self._set(replace(job, state="running", stage="reading"))
            await asyncio.to_thread(pipe.send, job.order)
            while self._jobs[job.number].state == "running":
                event = await asyncio.to_thread(pipe.recv)
                if not self._jobs[job.number].is_over:
                    await self._set(_after(self._jobs[job.number], event))
        except (EOFError, OSError):
            # The worker is gone: it was ended for this job's sake, or fell.
            self._end_worker()
            if not self._jobs[job.number].is_over:
                await self._set(replace(self._jobs[job.number], state="failed", stage=_ENDED))
        # One that is undecided keeps its scan.
        if self._jobs[job.number].is_over:
            self._tidy(self._jobs[job.number])

    def _tidy(self, job: Job) -> None:
        _remove_leftovers(job)
        self.when_over(job)

    def _start_worker(self) -> tuple[Any, Connection]:
        """The worker and the connection to it; a new one where there is none."""
        if self._worker is None or not self._worker[0].is_alive():
            context = multiprocessing.get_context("spawn")
            ours, its = context.Pipe()
            process = context.Process(target=_run_worker, args=(self._work, its), daemon=True)
            process.start()
            its.close()
            self._worker = (process, ours)
        return self._worker

    def _end_worker(self) -> None:
        """End the worker, which tidies up; one that does not is killed."""
        if self._worker is None:
            return
        process, pipe = self._worker
        self._worker = None
        process.terminate()
        process.join(_PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()
        pipe.close()


def _after(job: Job, event: Event) -> Job:
    """A job after its worker said something."""
    if event.kind == "answered":
        return replace(job, folder=event.words, document=event.document, stage="drawing", step=None)
    if event.kind == "viewable":
        return replace(job, is_viewable=True, stage="writing")
    if event.kind == "done":
        return replace(job, state="done", stage="done", step=None, document="")
    if event.kind == "undecided":
        return replace(job, state="undecided", stage=event.words, step=None, series=event.series)
    if event.kind == "failed":
        return replace(job, state="failed", stage=event.words, step=None, document="")
    return replace(job, stage=event.words, step=event.step)


def _remove_leftovers(job: Job) -> None:
    """Remove the folder of results that a killed worker left without an answer in it."""
    results = job.order.results
    if job.state == "done" or results is None or not job.folder:
        return
    folder = results / job.folder
    with suppress(OSError):
        if not (folder / "result.json").exists():
            for part in folder.glob(".chestct-part-*"):
                shutil.rmtree(part, ignore_errors=True)
            folder.rmdir()


class _Ended(BaseException):
    """SIGTERM came; no error, so that nothing on the way takes it for one."""


def _run_worker(work: Callable[[Connection], None], pipe: Connection) -> None:
    """What the worker's process runs. It says nothing itself: libraries' words can hold names."""

    def _end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise _Ended

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    # A server that is gone has closed its end.
    with suppress(_Ended, EOFError, OSError):
        work(pipe)


def do_orders(setup: Setup, pipe: Connection) -> None:
    """Load the classifier, then do one order after another until the connection closes."""
    desk = _Desk(setup, pipe)
    while True:
        order: Order = pipe.recv()
        with _told(pipe, order):
            desk.do(order)
            pipe.send(Event("done"))
        _give_back_memory()


@contextmanager
def _told(pipe: Connection, order: Order) -> Iterator[None]:
    """Tell what went wrong, without the folder in which an upload lies."""
    try:
        yield
    except _Ended:
        raise
    except Exception as error:
        words = _words_of(error).replace(f"{order.scan.parent}{os.sep}", "")
        is_choice = order.results is not None and order.series is None
        if is_choice and isinstance(error, SeveralSeriesError):
            # The lines below the first list the series, and say how a terminal names one.
            pipe.send(Event("undecided", words.splitlines()[0], series=error.series))
        else:
            pipe.send(Event("failed", words))


def _words_of(error: Exception) -> str:
    if isinstance(error, ChestCTError):
        return str(error)
    if isinstance(error, MemoryError):
        return "There was not enough memory. Free some, or take a machine with more."
    return f"Internal error ({kind_of(error)}). Report it, if it happens again."


class _Desk:
    """Where orders are done: holds what is loaded once."""

    def __init__(self, setup: Setup, pipe: Connection) -> None:
        self._setup, self._pipe = setup, pipe
        self._loaded: tuple[Classifier, Engine] | None = None
        # What is wrong with a classifier is told with the first scan.
        with suppress(ChestCTError):
            self._load()

    def do(self, order: Order) -> None:
        """Classify a scan and write what is asked for."""
        from chestct.writers.folders import write_outputs
        from chestct.writers.json_report import result_document

        try:
            analysis = self._analyse(order)
        except SeveralSeriesError:
            if order.series is None:
                raise
            analysis = self._analyse(order, order.series)
        found = analysis.result.provenance.pixel_sha256
        if order.pixel_sha256 not in ("", found):
            msg = f"{order.scan.name} is not the scan that these results are of: its voxels differ."
            raise ChestCTError(f"{msg} Drop the right one onto the page.")
        copy = order.viewing / (order.copy or copy_name(found))
        if order.is_whole:
            _write_whole_scan(analysis, copy)
            return
        folder = None if order.results is None else _free_folder(order.results, analysis)
        document = result_document(analysis).model_dump_json()
        name = "" if folder is None else folder.name
        self._pipe.send(Event("answered", name, document=document))
        _write_viewing_copy(analysis, copy)
        self._pipe.send(Event("viewable"))
        if folder is not None:
            write_outputs(analysis, folder, self._setup.writing)

    def _analyse(self, order: Order, series: str | None = None) -> ScanAnalysis:
        from chestct.explain import AUTO
        from chestct.pipeline import analyse_scan
        from chestct.readers import ReadOptions

        classifier, engine = self._load()
        return analyse_scan(
            order.scan,
            classifier,
            engine=engine,
            reading=ReadOptions(series),
            explain=None if order.is_whole else AUTO,
            watcher=_Telling(self._pipe),
        )

    def _load(self) -> tuple[Classifier, Engine]:
        from chestct.classifier import load_classifier
        from chestct.engines import make_engine

        if self._loaded is None:
            classifier = load_classifier(self._setup.classifier)
            engine = make_engine(
                classifier,
                self._setup.engine,
                precision=self._setup.precision,
                device=self._setup.device,
            )
            self._loaded = classifier, engine
        return self._loaded


class _Telling:
    """A `Watcher` that passes on how far the work is."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def was_read(self, volume: Volume, path: Path) -> None:
        """Say that the scan was read."""
        self._pipe.send(Event("stage", "classifying"))

    def explaining(self, done: int, num: int) -> None:
        """Say how far the explanation is."""
        self._pipe.send(Event("stage", "explaining", (done, num)))


def _free_folder(results: Path, analysis: ScanAnalysis) -> Path:
    """The folder of results for a scan: one of its name that is free, or is its own.

    As `chestct classify --out` names it, numbered where it holds another scan's results.
    """
    from chestct.serve.results import hash_in
    from chestct.writers.folders import folder_names

    (name,) = folder_names([analysis.result.scan])
    number, folder = 1, results / name
    while os.path.lexists(folder):
        if hash_in(folder) == analysis.result.provenance.pixel_sha256:
            break
        number += 1
        folder = results / f"{name}-{number}"
    return folder


def _give_back_memory() -> None:
    """Give the system what is free in this process, which glibc would keep between what is in use.

    Cycles go first: where much lives long (a network was converted in this process), Python looks
    for them so seldom that each scan would leave some MB. Another C library keeps what is free.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
