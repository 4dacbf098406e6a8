"""Read a chest CT from DICOM: find its slices, put them in order, decode them into a `Volume`.

One pass over the headers, then one over the pixels of the chosen series. Every departure from a
clean scan is either mended and said in `Volume.warnings`, or refused with the name of the option
that permits it.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Num

from chestct.arrays import Voxels
from chestct.errors import ReadError
from chestct.memory import require_memory
from chestct.readers.dicom_geometry import SAME_PLACE_MM, StackPlan, plan_stack
from chestct.readers.dicom_pixels import LocatedFile, load_hounsfield, located
from chestct.readers.dicom_slices import (
    Found,
    Series,
    Slice,
    choose_series,
    find_slices,
    is_original,
    one_kind,
    warnings_of_choice,
)
from chestct.readers.files import (
    MAX_RATIO,
    UNDOUBTED_BYTES,
    UnreadableFileError,
    opened_files,
)
from chestct.readers.glances import (
    Glance,
    Picture,
    glance,
    said_of_changes,
    small_picture,
)
from chestct.readers.hounsfield import (
    HU_NAMES,
    LUNG_BELOW_HU,
    MAX_METAL_SHARE,
    METAL_ABOVE_HU,
    Slab,
    check_windowed,
    padding_to_air,
    why_no_body,
    why_not_hounsfield,
)
from chestct.readers.misfits import (
    BLANK_END,
    Misfits,
    are_alike,
    find_misfits,
    in_words,
    permission,
    said_of_blank_ends,
)
from chestct.volume import AIR_HU, ScanSource, Unit, Volume

_UNSPECIFIED = "RescaleType is 'US'"
_CAUSES = (
    "Is it a map of something else than attenuation, or is its RescaleIntercept missing or wrong?"
)

_MAX_THREADS = 8
"""Most decoding threads; two for each core, as some wait for the disk while others decode."""

_BAD_SLICE = "slice that does not fit"
"""How interpolated slices are counted."""
_RESCALE_NAMES = {"intercept": "RescaleIntercept", "slope": "RescaleSlope"}
_RESCALE_DIFFERENCE_HU = 5.0
_WHITE_IS_LOW = "MONOCHROME1"
_GAP = 1.5
"""Distance in the usual one from which neighbours may differ as a whole."""

_WiderSlab = Num[np.ndarray, "wider_rows wider_columns"]
_Pictures = Float32[np.ndarray, "slices low_rows low_columns"]


@dataclass(frozen=True, eq=False)
class _Stack:
    """Slices in order, decoded, and what was mended on the way.

    Attributes:
        slices: Those that make up the volume, along their normal.
        plan: How they do.
        voxels: Hounsfield units.
        pictures: A small picture of each slice.
        glances: What else is kept of each.
        left_out: Slices that were not used, counted by kind.
        warnings: What was mended.
        unused: Numbers of the slices that were not used, along the normal.
    """

    slices: list[Slice]
    plan: StackPlan
    voxels: Voxels
    pictures: _Pictures
    glances: list[Glance]
    left_out: Counter[str]
    warnings: list[str]
    unused: tuple[int, ...]


def read_dicom(path: Path, *, series: str | None = None, allow: Collection[str] = ()) -> Volume:
    """Read one chest CT series from a folder (nested ones included), a zip or a file.

    A single file gives what is in it: the whole scan if it is an enhanced multi-frame CT, one
    slice (with a warning) if it is one of the many files of a scan. Name the folder for those.

    Args:
        path: Folder, zip or file.
        series: SeriesInstanceUID to read, with its part where it stands for several ("1.2.3#2");
            None chooses by the rule of `dicom_slices`.
        allow: What is mended although it is large: "gap" (more than one slice missing in a row;
            a scan that jumps is read as it lies), "tilt" (a stack that leans over 1 degree),
            "mixed-orientations" (several sizes or orientations in the series; the largest group is
            read), "bad-slices" (slices that do not fit their neighbours are interpolated),
            "unplaced" (slices without a position are left out).

    Returns:
        The scan on its own axes, depth along the slice normal. Unit "windowed" when the file says
        that its values are not Hounsfield units, and they are an 8-bit export's.

    Raises:
        ReadError: Nothing to read, damaged files, an undecidable choice, values that are neither
            Hounsfield units nor an 8-bit export's, or a departure that was not allowed.
        GridError: The scan has too many voxels.
    """
    with opened_files(path) as files:
        found = find_slices(files, path.name)
        chosen, others = choose_series(found.slices, series, path.name)
        warnings = warnings_of_choice(found, chosen, others, allow)
        kept, mixed_warnings = one_kind(chosen, allow)
        stack = _read_stack(kept, allow)
    unit, unit_warnings = _unit(stack, path.name)
    said = (*warnings, *mixed_warnings, *stack.warnings, *unit_warnings)
    if unit == "HU":
        said += _changes(stack)
    return Volume(stack.plan.grid, stack.voxels, unit, _source(found, chosen, stack), said)


@contextmanager
def opened_series(path: Path, source: ScanSource) -> Iterator[list[Slice]]:
    """The headers of the slices that `read_dicom` used, once more, with their files open.

    For what a volume does not keep, such as what a written object has to copy. Pixels are not
    decoded, except to tell duplicates apart where there are any.

    Args:
        path: What was read.
        source: Of the volume.

    Raises:
        ReadError: The series is no longer there, or no longer whole.
    """
    name = f"{source.series_uid or ''}{source.facts.get('series_part', '')}"
    with opened_files(path) as files:
        found = find_slices(files, path.name)
        chosen, _ = choose_series(found.slices, name, path.name)
        kept, _ = one_kind(chosen, ("mixed-orientations",))
        ordered, _ = _without_duplicates(kept)
        yield [one for number, one in enumerate(ordered) if number not in source.unused]


def _source(found: Found, chosen: Series, stack: _Stack) -> ScanSource:
    """Where the volume came from; an interpolated slice goes by the nearer of the two."""
    nearest = [stack.slices[round(low + share)] for low, _, share in stack.plan.taps]
    facts = stack.slices[0].header.facts()
    if chosen.part:
        facts["series_part"] = f"#{chosen.part}"
    return ScanSource(
        format="dicom",
        series_uid=chosen.uid,
        slice_uids=tuple(one.uid for one in nearest),
        instance_numbers=tuple(one.number for one in nearest),
        facts=facts,
        left_out=dict(sorted((found.left_out + stack.left_out).items())),
        unused=stack.unused,
    )


def _read_stack(slices: list[Slice], allow: Collection[str]) -> _Stack:
    """Put slices in order, decode them, and do it again without those that do not belong.

    Raises:
        ReadError: Slices do not fit their neighbours and that was not allowed.
    """
    ordered, warnings = _without_duplicates(slices)
    placed = {id(one): number for number, one in enumerate(ordered)}
    left_out: Counter[str] = Counter()
    bad, blank_ends, doubts = _unlike_the_rest(ordered), tuple[int, ...](), list[str]()
    while True:
        if bad or blank_ends:
            warnings += _said_of_misfits(list(bad.values()), len(blank_ends), doubts, allow)
            left_out += Counter({_BAD_SLICE: len(bad), BLANK_END: len(blank_ends)})
            dropped = {*bad, *blank_ends}
            ordered = [one for index, one in enumerate(ordered) if index not in dropped]
        plan = plan_stack([one.plane for one in ordered], allow)
        voxels, decoder, said = _load_stack(ordered, plan)
        pictures = np.stack([decoder.pictures[id(one)] for one in ordered])
        misfits = _judged(ordered, pictures)
        bad, blank_ends = misfits.inside, misfits.blank_ends
        doubts = misfits.doubts([_placed(one) for one in ordered].__getitem__)
        if not (bad or blank_ends):
            break
    misfits.check_jumps(doubts, allow)
    warnings += [*plan.warnings, *said, *padding_to_air(voxels), *doubts]
    if num := sum(_has_padding_of_tissue(one) for one in ordered):
        warnings.append(f"PixelPaddingValue is that of tissue in {num} slice(s): it was ignored.")
    if shown := list(_otherwise_shown(ordered).values()):
        warnings.append(f"{len(shown)} slice(s) differ in a header alone: {in_words(shown)}.")
    unused = tuple(sorted(set(placed.values()) - {placed[id(one)] for one in ordered}))
    glances = [decoder.glances[id(one)] for one in ordered]
    return _Stack(ordered, plan, voxels, pictures, glances, left_out, warnings, unused)


def _has_padding_of_tissue(one: Slice) -> bool:
    """Whether a slice names a padding that was not believed."""
    return bool(one.header.fields.raw.get("padding_value")) and one.rescale.padding is None


def _without_duplicates(slices: list[Slice]) -> tuple[list[Slice], list[str]]:
    """Slices sorted along their normal, one of those that are identical; and what to say of them.

    Raises:
        ReadError: Two different slices lie at the same position.
    """
    ordered = sorted(slices, key=lambda one: (one.plane.along_mm, one.uid, one.index))
    kept: list[Slice] = []
    places: list[float] = []
    for one in ordered:
        along = one.plane.along_mm
        if kept and along - kept[-1].plane.along_mm < SAME_PLACE_MM:
            if not _are_identical(kept[-1], one):
                raise ReadError(_duplicate_message(along, len(slices)))
            places.append(along)
            continue
        kept.append(one)
    if not places:
        return kept, []
    said = (
        f"{len(places)} duplicated slice(s), identical to others at the same position, were"
        f" dropped: from {places[0]:.1f} to {places[-1]:.1f} mm along the slice normal."
    )
    return kept, [said]


def _duplicate_message(along: float, num_slices: int) -> str:
    """Say that two slices compete for a place."""
    return (
        f"The series holds two different slices at the same position, {along:.1f} mm along the"
        f" slice normal ({num_slices} slices in all); one was expected. It may hold several"
        " reconstructions or time points in one series: export one of them on its own."
    )


def _are_identical(first: Slice, second: Slice) -> bool:
    """Whether two slices lie at the same place and show the same."""
    if not np.allclose(first.plane.position_mm, second.plane.position_mm, atol=SAME_PLACE_MM):
        return False
    decoder = _Decoder([first, second], np.dtype(np.float32))
    return bool(np.array_equal(decoder.loaded(first)[0], decoder.loaded(second)[0]))


def _unit(stack: _Stack, place: str) -> tuple[Unit, list[str]]:
    """Whether values are Hounsfield units, by headers and by the values, and what to say of it."""
    stated = min((doubt for one in stack.slices if (doubt := _why_not_stated(one))), default=None)
    seen = _why_not_seen(stack)
    if stated is None and seen is None:
        return "HU", []
    if seen is not None or stated != _UNSPECIFIED:
        lowest, highest = float(stack.voxels.min()), float(stack.voxels.max())
        check_windowed(lowest, highest, stated or seen or "", place, _CAUSES)
    return "windowed", [f"The values are not Hounsfield units: {stated or seen}."]


def _changes(stack: _Stack) -> tuple[str, ...]:
    """What the pictures show of changes made to them."""
    is_lossy = "lossy_compression" in stack.slices[0].header.facts()
    places = [_placed(one) for one in stack.slices]
    return said_of_changes(stack.voxels, stack.glances, places.__getitem__, is_lossy=is_lossy)


def _why_not_seen(stack: _Stack) -> str | None:
    """Why values cannot be Hounsfield units; the small pictures of the slices mostly show it."""
    is_bone = stack.pictures > METAL_ABOVE_HU / 2
    has_metal = np.mean(is_bone) >= MAX_METAL_SHARE / 2
    if stack.pictures.min() < LUNG_BELOW_HU and not has_metal and not why_no_body(stack.pictures):
        return None
    return why_not_hounsfield(stack.voxels, float(stack.voxels.min()))


def _why_not_stated(one: Slice) -> str | None:
    """Why a header does not promise Hounsfield units (PS3.3 C.8.2.1); None where it does."""
    fields, layout = one.fields, one.header.layout
    is_table = one.rescale.table is not None
    kind = fields.text("lut_type" if is_table else "rescale_type").upper()
    # "US" is "unspecified"; scanners write it on plain CT, post-processing on maps of other things.
    if kind not in HU_NAMES and not (kind == "US" and is_original(fields) and not is_table):
        return f"{'ModalityLUTType' if is_table else 'RescaleType'} is '{kind}'"
    is_signed = layout is not None and layout.is_signed and layout.bits_stored > 8
    if is_table or fields.raw.get("intercept") or is_signed:
        return None
    return "there is no rescale intercept and no value is below zero"


def _clipped(num_clipped: int) -> list[str]:
    """Say how many values were beyond 16 bits."""
    ends = np.iinfo(np.int16)
    said = f"{num_clipped} voxel(s) beyond {ends.min} to {ends.max} HU were set to the nearest end."
    return [said] if num_clipped else []


def _load_stack(slices: list[Slice], plan: StackPlan) -> tuple[Voxels, _Decoder, list[str]]:
    """Decode slices into an array, int16 where all rescales are whole; say what was cut off.

    A few threads do it (the decoders let go of the interpreter's lock), straight into the volume.
    Where the plan interpolates, slices pass by in order and only a few are held. What did it is
    given too, with what it keeps of each slice.
    """
    dtype = np.dtype(np.int16 if all(s.rescale.is_whole for s in slices) else np.float32)
    num_bytes = plan.grid.num_voxels * dtype.itemsize
    _check_ratio(slices, num_bytes)
    require_memory(num_bytes, f"Reading {' x '.join(map(str, plan.grid.shape))} voxels")
    decoder = _Decoder(slices, dtype)
    voxels: Voxels = np.empty(plan.grid.shape, dtype=dtype)
    with ThreadPoolExecutor(min(_MAX_THREADS, 2 * (os.cpu_count() or 1))) as pool:
        if plan.is_exact:
            futures = [
                pool.submit(decoder.load, slices[low], voxels[i])
                for i, (low, _, _) in enumerate(plan.taps)
            ]
            num_clipped = _sum_or_stop(futures)
        else:
            num_clipped = _interpolated(decoder, plan, voxels, pool)
    return voxels, decoder, _clipped(num_clipped)


class _Decoder:
    """Decodes slices of one series; knows where the frames of its multi-frame files lie."""

    def __init__(self, slices: list[Slice], dtype: np.dtype) -> None:
        self.slices = slices
        self.dtype = dtype
        self.pictures: dict[int, Picture] = {}
        self.glances: dict[int, Glance] = {}
        _check_ratio(slices, sum(s.plane.shape[0] * s.plane.shape[1] for s in slices) * 2)
        self._located: dict[int, LocatedFile] = {}
        for one in slices:
            if id(one.header) not in self._located:
                with _named(one):
                    self._located[id(one.header)] = located(one.header)

    def load(self, one: Slice, out: Slab) -> int:
        """Decode a slice into `out`; the number of clipped values."""
        with _named(one):
            file = self._located[id(one.header)]
            num_clipped = load_hounsfield(file, one.index, one.rescale, out)
            self.pictures[id(one)] = small_picture(out)
            self.glances[id(one)] = glance(out)
            return num_clipped

    def loaded(self, one: Slice) -> tuple[Slab, int]:
        """A slice in an array of its own, and the number of clipped values."""
        slab: Slab = np.empty(one.plane.shape, dtype=self.dtype)
        return slab, self.load(one, slab)


@contextmanager
def _named(one: Slice) -> Iterator[None]:
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


def _said_of_misfits(
    bad: list[str], num_blank: int, doubts: list[str], allow: Collection[str]
) -> list[str]:
    """What to say of slices left out; bad ones, in words, are refused unless that is allowed."""
    if bad and "bad-slices" not in allow:
        msg = (
            f"{len(bad)} slice(s) of the series do not belong to the scan: {in_words(bad)}. All"
            " were expected to. Fetch them again; or they are left out, and interpolated where they"
            " lie inside."
        )
        raise ReadError(" ".join([*doubts, msg]) + permission("bad-slices"))
    said = [said_of_blank_ends(num_blank)] if num_blank else []
    return [*said, f"{len(bad)} slice(s) were left out: {in_words(bad)}."] if bad else said


def _unlike_the_rest(slices: list[Slice]) -> dict[int, str]:
    """What is wrong with slices that alone have or lack a rescale, where it makes a difference."""
    said = [tuple(bool(one.fields.raw.get(name)) for name in _RESCALE_NAMES) for one in slices]
    usual, _ = Counter(said).most_common(1)[0]
    like = next(one for one, names in zip(slices, said, strict=True) if names == usual)
    return {
        index: _unlike(one, like)
        for index, (one, names) in enumerate(zip(slices, said, strict=True))
        if names != usual and not _same_rescale(one, like)
    }


def _judged(slices: list[Slice], pictures: _Pictures) -> Misfits:
    """Slices that do not fit their neighbours, by what they show, and jumps."""
    shown = _otherwise_shown(slices)
    borders = (i for i in range(len(slices) - 1) if (i in shown) != (i + 1 in shown))
    if not all(are_alike(pictures[i], pictures[i + 1]) for i in borders):
        return Misfits(shown, (), {}, {})
    steps = np.diff([one.plane.along_mm for one in slices])
    gaps = np.flatnonzero(steps > _GAP * np.median(steps)).tolist() if len(steps) else []
    misfits = find_misfits(pictures, "HU", gaps)
    bad = _wrongly_rescaled(slices, pictures)
    for index, what in misfits.inside.items():
        bad.setdefault(index, f"{_placed(slices[index])} {what}")
    return misfits._replace(inside=bad)


def _otherwise_shown(slices: list[Slice]) -> dict[int, str]:
    """What headers say of the fewer slices whose white is low where others' is high, or not."""
    said = [one.header.layout.photometric if one.header.layout else "" for one in slices]
    is_low = [kind.upper() == _WHITE_IS_LOW for kind in said]
    rare = 2 * sum(is_low) <= len(slices)
    others = dict(zip(is_low, said, strict=True))
    return {
        index: f"{_placed(one)} has PhotometricInterpretation {said[index] or 'missing'} where"
        f" others have {others[not rare] or 'none'}"
        for index, one in enumerate(slices)
        if is_low[index] == rare and len(others) > 1
    }


def _wrongly_rescaled(slices: list[Slice], pictures: _Pictures) -> dict[int, str]:
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
    decoder: _Decoder, plan: StackPlan, voxels: Voxels, pool: ThreadPoolExecutor
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


def _in_order(decoder: _Decoder, pool: ThreadPoolExecutor) -> Iterator[tuple[Slab, int]]:
    """Decoded slices in their order, a few ahead of what is asked for."""
    waiting: deque[Future[tuple[Slab, int]]] = deque()
    try:
        for one in decoder.slices:
            waiting.append(pool.submit(decoder.loaded, one))
            if len(waiting) > _MAX_THREADS:
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
    return lambda slab, index: _shifted(slab, shifts[index], shape)


def _between(low: Slab, high: Slab, share: float) -> Slab:
    """Linear interpolation between two slices."""
    mixed = low.astype(np.float32)
    mixed += np.float32(share) * (high.astype(np.float32) - mixed)
    return _as_type(mixed, low.dtype)


def _shifted(slab: Slab, shift: tuple[float, float], shape: tuple[int, int]) -> _WiderSlab:
    """Move a slice by fractions of pixels within a larger plane of air, linearly."""
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
