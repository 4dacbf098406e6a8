"""The slices of a series: where each lies, and all of them decoded into one array by a plan.

Slices are decoded by a few threads (the decoders let go of the interpreter's lock), straight into
the volume. Where the plan interpolates, they pass by in order and only a few are held. Slices that
do not belong to the scan, by their rescale or by what they show, are told afterwards.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Num

from chestct.arrays import Voxels
from chestct.errors import ReadError
from chestct.memory import require_memory
from chestct.readers.dicom_elements import UNDEFINED
from chestct.readers.dicom_geometry import Plane, StackPlan
from chestct.readers.dicom_headers import DicomHeader, Fields, PixelLayout
from chestct.readers.dicom_pixels import (
    FrameRanges,
    Slab,
    check_layout,
    frame_rescale,
    load_frame,
    locate_frames,
    to_hounsfield,
)
from chestct.readers.files import (
    BROKEN_STREAM,
    MAX_RATIO,
    UNDOUBTED_BYTES,
    MemoryFile,
    UnreadableFileError,
)
from chestct.readers.hounsfield import (
    ALTERNATING_SCANS,
    Picture,
    Rescale,
    find_misfits,
    in_words,
    permission,
    small_picture,
)
from chestct.volume import AIR_HU

_SPACING_RANGE_MM = (0.05, 20.0)
"""Pixel spacings believed."""
_MAX_POSITION_MM = 1e5
"""Farthest slice position believed."""

_UNIT_VECTOR_TOLERANCE = 0.01


@dataclass(frozen=True, eq=False)
class Slice:
    """One image of a series.

    Attributes:
        header: The file it is in.
        index: Which frame of the file.
        plane: Where it lies.
        rescale: How its values become Hounsfield units.
        uid: SOPInstanceUID of its file.
        number: InstanceNumber of its file as written; empty where that holds several images.
    """

    header: DicomHeader
    index: int
    plane: Plane
    rescale: Rescale
    uid: str
    number: str = ""

    @property
    def fields(self) -> Fields:
        """What the file says of this image."""
        return self.header.frames[self.index]


def slices_of(header: DicomHeader) -> list[Slice]:
    """The slices in a file.

    Raises:
        UnreadableFileError: An impossible layout or geometry, or frames without a position.
    """
    layout = header.layout
    if layout is None:
        return []
    check_layout(layout)
    if len(header.frames) < layout.num_frames:
        msg = f"holds {layout.num_frames} frames and positions for {len(header.frames)}"
        raise UnreadableFileError(msg)
    shape = (layout.rows, layout.columns)
    uid = header.fields.text("slice_uid")
    number = header.fields.text("instance_number") if layout.num_frames == 1 else ""
    frames = header.frames[: layout.num_frames]
    return [
        Slice(header, index, _plane(frame, shape), frame_rescale(header, frame), uid, number)
        for index, frame in enumerate(frames)
    ]


def _plane(frame: Fields, shape: tuple[int, int]) -> Plane:
    """Where a frame lies."""
    position, spacing = frame.numbers("position", 3), frame.numbers("pixel_spacing", 2)
    cosines = frame.numbers("orientation", 6)
    if position is None or spacing is None or cosines is None:
        raise UnreadableFileError("has a slice without position, orientation or pixel spacing")
    low, high = _SPACING_RANGE_MM
    if (
        max(map(abs, position)) > _MAX_POSITION_MM
        or not low <= min(spacing) <= max(spacing) <= high
    ):
        raise UnreadableFileError("has an impossible slice position or pixel spacing")
    across, down = _axes(cosines)
    thickness = frame.numbers("slice_thickness_mm", 1) or (0.0,)
    return Plane(
        position_mm=(position[0], position[1], position[2]),
        across=across,
        down=down,
        spacing_mm=(spacing[0], spacing[1]),
        shape=shape,
        thickness_mm=max(thickness[0], 0.0),
    )


@lru_cache(maxsize=64)
def _axes(
    cosines: tuple[float, ...],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Unit vectors along a row and a column, exactly perpendicular; slices mostly share them.

    Raises:
        UnreadableFileError: They are far from that.
    """
    across, down = np.array(cosines[:3]), np.array(cosines[3:])
    sizes = np.array([across @ across, down @ down, 1 + across @ down])
    if np.abs(sizes - 1).max() > _UNIT_VECTOR_TOLERANCE:
        raise UnreadableFileError("has an orientation that is not two perpendicular unit vectors")
    across = across / np.linalg.norm(across)
    down = down - across * (across @ down)
    down = down / np.linalg.norm(down)
    return (
        (float(across[0]), float(across[1]), float(across[2])),
        (float(down[0]), float(down[1]), float(down[2])),
    )


MAX_THREADS = 8
"""Most decoding threads; two for each core, as some wait for the disk while others decode."""


_BAD_SLICE = "slice that does not fit"
"""How interpolated slices are counted."""

_BLANK_END = "blank slice at an end"
_RESCALE_NAMES = {"intercept": "RescaleIntercept", "slope": "RescaleSlope"}
_RESCALE_DIFFERENCE_HU = 5.0

_WiderSlab = Num[np.ndarray, "wider_rows wider_columns"]


Pictures = Float32[np.ndarray, "slices low_rows low_columns"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A volume's voxels, and what was seen of its slices.

    Attributes:
        voxels: Hounsfield units.
        num_clipped: How many were beyond what int16 holds.
        pictures: A small picture of each slice that was read.
    """

    voxels: Voxels
    num_clipped: int
    pictures: Pictures


def load_stack(slices: list[Slice], plan: StackPlan) -> Loaded:
    """Decode slices into a new array, int16 where all rescales are whole, else float32.

    Args:
        slices: Sorted as the plan has them.
        plan: Which slices make which slice of the volume.

    Raises:
        ReadError: A file is damaged; the message names it. Or the volume would be far larger
            than the files could hold.
    """
    dtype = np.dtype(np.int16 if all(s.rescale.is_whole for s in slices) else np.float32)
    num_bytes = plan.grid.num_voxels * dtype.itemsize
    _check_ratio(slices, num_bytes)
    require_memory(num_bytes, f"Reading {' x '.join(map(str, plan.grid.shape))} voxels")
    decoder = SliceDecoder(slices, dtype)
    voxels: Voxels = np.empty(plan.grid.shape, dtype=dtype)
    with ThreadPoolExecutor(min(MAX_THREADS, 2 * (os.cpu_count() or 1))) as pool:
        if plan.is_exact:
            futures = [
                pool.submit(decoder.load, slices[low], voxels[i])
                for i, (low, _, _) in enumerate(plan.taps)
            ]
            num_clipped = _sum_or_stop(futures)
        else:
            num_clipped = _interpolated(decoder, plan, voxels, pool)
    return Loaded(voxels, num_clipped, np.stack([decoder.pictures[id(one)] for one in slices]))


class SliceDecoder:
    """Decodes slices of one series; knows where the frames of its multi-frame files lie."""

    def __init__(self, slices: list[Slice], dtype: np.dtype) -> None:
        self.slices = slices
        self.dtype = dtype
        self.pictures: dict[int, Picture] = {}
        _check_ratio(slices, sum(s.plane.shape[0] * s.plane.shape[1] for s in slices) * 2)
        self._ranges: dict[int, tuple[DicomHeader, list[FrameRanges] | None]] = {}
        for one in slices:
            if id(one.header) not in self._ranges:
                with named(one):
                    self._ranges[id(one.header)] = _prepared(one.header)

    def load(self, one: Slice, out: Slab) -> int:
        """Decode a slice into `out`; the number of clipped values."""
        with named(one):
            header, ranges = self._ranges[id(one.header)]
            space = out.view(np.uint16) if out.dtype == np.int16 else None
            pixels = load_frame(header, one.index, ranges, space)
            if header.layout is None:
                raise ValueError("A slice has pixels.")
            num_clipped = to_hounsfield(pixels, header.layout, one.rescale, out)
            self.pictures[id(one)] = small_picture(out)
            return num_clipped

    def loaded(self, one: Slice) -> tuple[Slab, int]:
        """A slice in an array of its own, and the number of clipped values."""
        slab: Slab = np.empty(one.plane.shape, dtype=self.dtype)
        return slab, self.load(one, slab)


@contextmanager
def named(one: Slice) -> Iterator[None]:
    """Say which file it was when one cannot be read.

    Names are relative to what the user named. They are shown in this error only, which goes to
    that user; warnings and results never hold them, because some archives name files by patient.
    """
    try:
        yield
    except UnreadableFileError as error:
        msg = (
            f"A slice of the scan {error}: {one.header.source.name}. A whole scan was expected,"
            " because a missing slice can hide a finding. Fetch the file again, or remove it to"
            " have the gap reported."
        )
        raise ReadError(msg) from error


@dataclass(frozen=True, eq=False)
class _Misfit:
    """Slices that are not used.

    Attributes:
        bad: What is wrong with each that does not belong, by its number, in words.
        blank_ends: Numbers of blank slices before the first or after the last that shows something.
    """

    bad: dict[int, str]
    blank_ends: tuple[int, ...] = ()

    @property
    def dropped(self) -> set[int]:
        """Numbers of all of them."""
        return {*self.bad, *self.blank_ends}

    @property
    def left_out(self) -> Counter[str]:
        """How many of which kind."""
        counts = {_BAD_SLICE: len(self.bad), _BLANK_END: len(self.blank_ends)}
        return Counter({kind: number for kind, number in counts.items() if number})

    @property
    def warnings(self) -> list[str]:
        """What to say when they are left out."""
        said = []
        if self.blank_ends:
            number = len(self.blank_ends)
            said.append(f"{number} blank slice(s) at the ends of the scan were left out.")
        if self.bad:
            said.append(f"{len(self.bad)} slice(s) were left out: {in_words(self._lines())}.")
        return said

    def check(self, allow: Collection[str]) -> None:
        """Refuse bad slices, unless they may be interpolated.

        Raises:
            ReadError: They may not; the message names the first.
        """
        if self.bad and "bad-slices" not in allow:
            msg = (
                f"{len(self.bad)} slice(s) of the series do not belong to the scan:"
                f" {in_words(self._lines())}. All were expected to. Fetch them again; or they are"
                " left out, and interpolated where they lie inside."
            )
            raise ReadError(msg + permission("bad-slices"))

    def _lines(self) -> list[str]:
        return list(self.bad.values())


def unlike_the_rest(slices: list[Slice]) -> _Misfit | None:
    """Slices that lack a rescale that the others have, or have one that the others lack.

    Args:
        slices: In their order.

    Returns:
        None where all have it or none has, or where it makes no difference.
    """
    said = [tuple(bool(one.fields.raw.get(name)) for name in _RESCALE_NAMES) for one in slices]
    usual, count = Counter(said).most_common(1)[0]
    if count == len(slices):
        return None
    like = next(one for one, names in zip(slices, said, strict=True) if names == usual)
    bad = {
        index: _unlike(one, like)
        for index, (one, names) in enumerate(zip(slices, said, strict=True))
        if names != usual and not _same_rescale(one, like)
    }
    return _Misfit(bad) if bad else None


def judge_slices(slices: list[Slice], pictures: Pictures) -> _Misfit | None:
    """Slices that do not fit their neighbours, by what they show.

    Args:
        slices: In their order.
        pictures: A small picture of each.

    Raises:
        ReadError: Two scans alternate, slice by slice.
    """
    found = find_misfits(pictures, "HU")
    if found.alternates:
        raise ReadError(ALTERNATING_SCANS)
    bad = _wrongly_rescaled(slices, pictures)
    for index, what in found.inside.items():
        bad.setdefault(index, f"{_placed(slices[index])} {what}")
    return _Misfit(bad, found.blank_ends) if bad or found.blank_ends else None


def _wrongly_rescaled(slices: list[Slice], pictures: Pictures) -> dict[int, str]:
    """Slices whose own rescale fits their neighbours' values less than the neighbours' does."""
    usual = Counter((one.rescale.slope, one.rescale.intercept) for one in slices)
    bad: dict[int, str] = {}
    for index, (one, other) in enumerate(pairwise(slices)):
        if _same_rescale(one, other):
            continue
        low, high = pictures[index], pictures[index + 1]
        stored = (high - other.rescale.intercept) / other.rescale.slope
        as_one = stored * one.rescale.slope + one.rescale.intercept
        own, shared = (abs(float(np.median(low - picture))) for picture in (high, as_one))
        if own > shared + _RESCALE_DIFFERENCE_HU:
            rare = min(
                (index, index + 1),
                key=lambda i: usual[slices[i].rescale.slope, slices[i].rescale.intercept],
            )
            bad[rare] = _unlike(slices[rare], other if rare == index else one)
    return bad


def _same_rescale(one: Slice, other: Slice) -> bool:
    """Whether two slices become Hounsfield units in the same way."""
    first, second = one.rescale, other.rescale
    return (first.slope, first.intercept) == (second.slope, second.intercept)


def _unlike(one: Slice, other: Slice) -> str:
    """Say how a slice's rescale differs from another's, both with their values."""
    told = [
        f"{keyword} {one.fields.text(name) or 'missing'} where others have"
        f" {other.fields.text(name) or 'none'}"
        for name, keyword in _RESCALE_NAMES.items()
        if one.fields.text(name) != other.fields.text(name)
    ]
    return f"{_placed(one)} has {' and '.join(told)}"


def _placed(one: Slice) -> str:
    """A slice by its place and its file, for messages to the user who named the folder."""
    return f"the slice at {one.plane.along_mm:.1f} mm"


def _prepared(header: DicomHeader) -> tuple[DicomHeader, list[FrameRanges] | None]:
    """A multi-frame file with its frames located, unpacked once if it cannot be sought in."""
    layout = header.layout
    if layout is None or layout.num_frames == 1:
        return header, None
    source = header.source
    try:
        if not source.is_seekable:
            with source.open() as stream:
                content = stream.read(_bytes_needed(layout))
            source = MemoryFile(content, source.name, source.stored_bytes)
            header = DicomHeader(source, header.fields, header.frames, layout)
        with source.open() as stream:
            return header, locate_frames(stream, layout)
    except BROKEN_STREAM as error:
        raise UnreadableFileError(f"cannot be read ({type(error).__name__})") from error


def _bytes_needed(layout: PixelLayout) -> int:
    """How much of a multi-frame file can hold its frames, larger for being compressed or not."""
    slack = 0 if layout.length != UNDEFINED else layout.frame_bytes * layout.num_frames
    return layout.native_end + slack


def _check_ratio(slices: list[Slice], num_bytes: int) -> None:
    """Refuse a volume that is far larger than files of this size hold."""
    files = {id(one.header): one.header.source.stored_bytes for one in slices}
    stored = sum(files.values())
    if num_bytes > max(UNDOUBTED_BYTES, MAX_RATIO * stored):
        msg = (
            f"The files declare a scan of {num_bytes / 1e6:.0f} MB and hold {stored / 1e6:.1f} MB;"
            f" no CT scan is compressed more than {MAX_RATIO} times. It was taken for a bomb."
        )
        raise ReadError(msg)


def _sum_or_stop(futures: list[Future[int]]) -> int:
    """Results added up; at the first error the slices not begun are given up."""
    try:
        return sum(future.result() for future in futures)
    finally:
        for future in futures:
            future.cancel()


def _interpolated(
    decoder: SliceDecoder, plan: StackPlan, voxels: Voxels, pool: ThreadPoolExecutor
) -> int:
    """Fill a volume whose slices lie between those of the series, or are shifted."""
    place = _placing(plan, voxels)
    passing = _in_order(decoder, pool)
    held: dict[int, Slab] = {}
    num_clipped, next_index = 0, 0
    for i, (low, high, share) in enumerate(plan.taps):
        while next_index <= high:
            slab, clipped = next(passing)
            held[next_index] = place(slab, next_index)
            if plan.shifts is not None:
                # A slice whose position is wrong fits its neighbours before it is put there.
                one = decoder.slices[next_index]
                decoder.pictures[id(one)] = small_picture(held[next_index])
            num_clipped, next_index = num_clipped + clipped, next_index + 1
        held = {index: slab for index, slab in held.items() if index >= low}
        voxels[i] = held[low] if low == high else _between(held[low], held[high], share)
    return num_clipped


def _in_order(decoder: SliceDecoder, pool: ThreadPoolExecutor) -> Iterator[tuple[Slab, int]]:
    """Decoded slices in their order, a few ahead of what is asked for."""
    waiting: deque[Future[tuple[Slab, int]]] = deque()
    try:
        for one in decoder.slices:
            waiting.append(pool.submit(decoder.loaded, one))
            if len(waiting) > MAX_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _placing(plan: StackPlan, voxels: Voxels) -> Callable[[Slab, int], Slab]:
    """How a slice is put into the volume's planes."""
    shifts = plan.shifts
    if shifts is None:
        return lambda slab, _: slab
    shape = (voxels.shape[1], voxels.shape[2])
    return lambda slab, index: shifted(slab, shifts[index], shape)


def _between(low: Slab, high: Slab, share: float) -> Slab:
    """Linear interpolation between two slices."""
    mixed = low.astype(np.float32)
    mixed += np.float32(share) * (high.astype(np.float32) - mixed)
    return _as_type(mixed, low.dtype)


def shifted(slab: Slab, shift: tuple[float, float], shape: tuple[int, int]) -> _WiderSlab:
    """Move a slice by fractions of pixels within a larger plane of air, linearly.

    Args:
        slab: Hounsfield units, (rows, columns).
        shift: Rows and columns by which it moves, not negative.
        shape: Rows and columns of the plane.
    """
    plane = np.full(shape, AIR_HU, dtype=np.float32)
    (row, row_share), (column, column_share) = (divmod(s, 1.0) for s in shift)
    rows, columns = slab.shape
    plane[int(row) : int(row) + rows, int(column) : int(column) + columns] = slab
    # Moving on by a fraction mixes each pixel with its predecessor.
    for axis, share in ((0, row_share), (1, column_share)):
        if share:
            plane = (1 - share) * plane + share * np.roll(plane, 1, axis=axis)
    return _as_type(plane.astype(np.float32, copy=False), slab.dtype)


def _as_type(values: Slab, dtype: np.dtype) -> Slab:
    """Back to the type of the volume, rounded if that is a whole number."""
    return np.rint(values).astype(dtype) if dtype.kind == "i" else values.astype(dtype)
