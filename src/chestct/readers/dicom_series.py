"""Read a chest CT from DICOM: find its slices, put them in order, decode them into a `Volume`.

One pass over the headers, then one over the pixels of the chosen series. Every departure from a
clean scan is either mended and said in `Volume.warnings`, or refused with the name of the option
that permits it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from chestct.errors import ReadError
from chestct.readers.dicom_choice import (
    UNPLACED,
    Series,
    aligned,
    choose_series,
    counted,
    group_series,
    is_original,
    no_ct_message,
    other_series,
    why_left_out,
)
from chestct.readers.dicom_geometry import (
    SAME_PLACE_MM,
    Plane,
    StackPlan,
    plan_stack,
    same_plane_kind,
)
from chestct.readers.dicom_headers import read_header
from chestct.readers.dicom_stack import (
    Loaded,
    Slice,
    SliceDecoder,
    judge_slices,
    load_stack,
    slices_of,
    unlike_the_rest,
)
from chestct.readers.files import (
    FileSource,
    Unpacked,
    UnreadableFileError,
    opened_files,
    why_unopened,
)
from chestct.readers.hounsfield import (
    LUNG_BELOW_HU,
    MAX_METAL_SHARE,
    METAL_ABOVE_HU,
    check_windowed,
    permission,
    why_not_hounsfield,
)
from chestct.volume import ScanSource, Unit, Volume

_MAX_UNREADABLE_NAMED = 3
"""Damaged files named in a message; the rest is counted."""
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
_UNSPECIFIED = "RescaleType is 'US'"
_UNOPENED = "file that cannot be opened"
_CAUSES = (
    "Is it a map of something else than attenuation, or is its RescaleIntercept missing or wrong?"
)


@dataclass
class _Found:
    """What the pass over the headers found.

    Attributes:
        slices: CT slices that say where they lie.
        left_out: Other files, counted by kind.
        unreadable: Damaged files, each with its reason.
        unopened: Files that cannot be opened, or hold a pointer in place of their content.
        unplaced: CT slices that do not say where they lie, counted by series.
    """

    slices: list[Slice] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    unopened: list[tuple[str, str]] = field(default_factory=list)
    unplaced: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, eq=False)
class _Stack:
    """Slices in order, decoded, and what was mended on the way.

    Attributes:
        slices: Those that make up the volume, along their normal.
        plan: How they do.
        loaded: Their voxels.
        left_out: Slices that were not used, counted by kind.
        warnings: What was mended.
        unused: Numbers of the slices that were not used, along the normal.
    """

    slices: list[Slice]
    plan: StackPlan
    loaded: Loaded
    left_out: Counter[str]
    warnings: tuple[str, ...]
    unused: tuple[int, ...]


def read_dicom(path: Path, *, series: str | None = None, allow: Collection[str] = ()) -> Volume:
    """Read one chest CT series from a folder (nested ones included), a zip or a file.

    A single file gives what is in it: the whole scan if it is an enhanced multi-frame CT, one
    slice (with a warning) if it is one of the many files of a scan. Name the folder for those.

    Args:
        path: Folder, zip or file.
        series: SeriesInstanceUID to read, with its part where it stands for several ("1.2.3#2");
            None chooses by the rule of `dicom_choice`.
        allow: What is mended although it is large: "gap" (more than one slice missing in a row),
            "tilt" (a stack that leans over 1 degree), "mixed-orientations" (several sizes or
            orientations in the series; the largest group is read), "bad-slices" (slices that do
            not fit their neighbours are interpolated), "unplaced" (slices without a position are
            left out).

    Returns:
        The scan on its own axes, depth along the slice normal. Unit "windowed" when the file says
        that its values are not Hounsfield units, and they are an 8-bit export's.

    Raises:
        ReadError: Nothing to read, damaged files, an undecidable choice, values that are neither
            Hounsfield units nor an 8-bit export's, or a departure that was not allowed.
        GridError: The scan has too many voxels.
    """
    with opened_files(path) as files:
        found = _find_slices(files)
        _refuse_unreadable(found, path.name)
        if not found.slices:
            raise ReadError(no_ct_message(path.name, found.left_out))
        candidates = group_series(found.slices)
        chosen = choose_series(candidates, series, path.name)
        warnings = [other_series(candidates, chosen), *_said_about(found, chosen, allow)]
        kept, mixed_warning = _one_kind(chosen, allow)
        stack = _read_stack(kept, allow)
    unit, unit_warning = _unit(stack, path.name)
    warnings += [mixed_warning, *stack.warnings, _clipped(stack.loaded.num_clipped), unit_warning]
    said = tuple(text for text in warnings if text)
    source = _source(found, chosen, stack)
    return Volume(stack.plan.grid, stack.loaded.voxels, unit, source, said)


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
        found = _find_slices(files)
        _refuse_unreadable(found, path.name)
        chosen = choose_series(group_series(found.slices), name, path.name)
        kept, _ = _one_kind(chosen, ("mixed-orientations",))
        ordered, _ = _without_duplicates(kept)
        yield [one for number, one in enumerate(ordered) if number not in source.unused]


def _source(found: _Found, chosen: Series, stack: _Stack) -> ScanSource:
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


def _find_slices(files: list[FileSource]) -> _Found:
    """Read all headers and sort out what is a CT slice."""
    found, unpacked = _Found(), Unpacked()
    for source in files:
        try:
            if reason := why_unopened(source):
                found.unopened.append((source.name, reason))
                continue
            header = read_header(source, unpacked)
            if header is None:
                _count_foreign(source, found)
            elif kind := why_left_out(header):
                found.left_out[kind] += 1
                found.unplaced[header.series_uid] += kind == UNPLACED
            else:
                found.slices += slices_of(header)
        except UnreadableFileError as error:
            found.unreadable.append(f"{source.name} {error}")
    _sort_unopened(found)
    return found


def _sort_unopened(found: _Found) -> None:
    """Files that could not be opened count as slices where their names are like the slices'."""
    likes = {_likeness(one.header.source.name) for one in found.slices}
    for name, reason in found.unopened:
        if name.lower().removesuffix(".zst").endswith(_DICOM_ENDINGS) or _likeness(name) in likes:
            found.unreadable.append(f"{name} {reason}")
        else:
            found.left_out[_UNOPENED] += 1


def _likeness(name: str) -> tuple[str, str]:
    """What files of one series have in common: the folder and the ending, digits left out."""
    place = PurePosixPath(name)
    return str(place.parent), re.sub(r"[0-9]+", "0", place.suffix.lower())


def _count_foreign(source: FileSource, found: _Found) -> None:
    """Count a file that is not DICOM; one that is named as such is damaged."""
    name = source.name.lower()
    if name.endswith(".zst"):
        found.unopened.append((source.name, "is packed by Zstandard, which is not unpacked here"))
    elif name.removesuffix(".gz").endswith(_DICOM_ENDINGS):
        found.unreadable.append(f"{source.name} is no DICOM file, in spite of its name")
    else:
        found.left_out["other file"] += 1


def _refuse_unreadable(found: _Found, place: str) -> None:
    """Damaged files may belong to the scan: a scan with holes is not read."""
    if not found.unreadable:
        return
    shown = found.unreadable[:_MAX_UNREADABLE_NAMED]
    more = len(found.unreadable) - len(shown)
    lines = [f"  {line}" for line in shown] + ([f"  and {more} more"] if more else [])
    num_good = len(found.slices)
    msg = (
        f"{place}: {len(found.unreadable)} file(s) cannot be read and may belong to the scan;"
        f" {num_good} CT slices are fine and all were expected to be:\n"
    )
    raise ReadError(msg + "\n".join(lines) + "\n  Fetch them again, or remove them.")


def _said_about(found: _Found, chosen: Series, allow: Collection[str]) -> list[str]:
    """Warnings about what was left out and what was chosen.

    Raises:
        ReadError: Slices of the chosen series do not say where they lie.
    """
    num_unplaced = found.unplaced[chosen.uid]
    if num_unplaced and "unplaced" not in allow:
        msg = (
            f"{num_unplaced} CT slice(s) of the series do not say where they lie (they have no"
            f" ImagePositionPatient), beside {len(chosen.slices)} that do. All were expected to: a"
            " scan that lacks slices can hide a finding. They can be left out."
        )
        raise ReadError(msg + permission("unplaced"))
    apart = {kind: n for kind, n in found.left_out.items() if kind in (UNPLACED, _UNOPENED)}
    others = {kind: n for kind, n in found.left_out.items() if kind not in apart}
    said = [f"Left out: {counted(apart)}."] if apart else []
    if others:
        said.append(f"Left out, because they are not CT slices: {counted(others)}.")
    if chosen.is_derived:
        said.append("ImageType says that the series was derived from another one.")
    if not chosen.is_axial:
        said.append("The slices are not axial; the scan was read as it lies in the patient.")
    return said


def _read_stack(slices: list[Slice], allow: Collection[str]) -> _Stack:
    """Put slices in order, decode them, and do it again without those that do not belong.

    Raises:
        ReadError: Slices do not fit their neighbours and that was not allowed.
    """
    ordered, duplicate_warning = _without_duplicates(slices)
    placed = {id(one): number for number, one in enumerate(ordered)}
    warnings = [duplicate_warning]
    left_out: Counter[str] = Counter()
    misfits = unlike_the_rest(ordered)
    while True:
        if misfits is not None:
            misfits.check(allow)
            warnings += misfits.warnings
            left_out += misfits.left_out
            ordered = [one for index, one in enumerate(ordered) if index not in misfits.dropped]
        plan = plan_stack([one.plane for one in ordered], allow)
        loaded = load_stack(ordered, plan)
        misfits = judge_slices(ordered, loaded.pictures)
        if misfits is None:
            break
    said = tuple(text for text in (*warnings, *plan.warnings) if text)
    unused = tuple(sorted(set(placed.values()) - {placed[id(one)] for one in ordered}))
    return _Stack(ordered, plan, loaded, left_out, said, unused)


def _one_kind(chosen: Series, allow: Collection[str]) -> tuple[list[Slice], str | None]:
    """The slices of one size, spacing and orientation."""
    groups: list[list[Slice]] = []
    for one in chosen.slices:
        for group in groups:
            if same_plane_kind(group[0].plane, one.plane):
                group.append(one)
                break
        else:
            groups.append([one])
    if len(groups) == 1:
        return aligned(groups[0]), None
    groups.sort(key=lambda group: (-len(group), group[0].plane.position_mm))
    sizes = ", ".join(f"{len(group)} of {_kind(group[0].plane)}" for group in groups[:4])
    what = f"The series mixes slices of {len(groups)} sizes or orientations: {sizes}."
    if "mixed-orientations" not in allow:
        msg = f"{what} One was expected; the largest group can be read alone."
        raise ReadError(msg + permission("mixed-orientations"))
    num_left = len(chosen.slices) - len(groups[0])
    return aligned(
        groups[0]
    ), f"{what} The largest group was read, {num_left} slice(s) were left out."


def _kind(plane: Plane) -> str:
    """Size, spacing and normal of a slice in words."""
    normal = ", ".join(f"{x:.2f}" for x in plane.normal)
    rows, columns = plane.shape
    return f"{rows} x {columns} at {plane.spacing_mm[0]:.3g} mm, normal ({normal})"


def _without_duplicates(slices: list[Slice]) -> tuple[list[Slice], str | None]:
    """Slices sorted along their normal, only one of those that are identical.

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
        return kept, None
    return kept, (
        f"{len(places)} duplicated slice(s), identical to others at the same position, were"
        f" dropped: from {places[0]:.1f} to {places[-1]:.1f} mm along the slice normal."
    )


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
    decoder = SliceDecoder([first, second], np.dtype(np.float32))
    return bool(np.array_equal(decoder.loaded(first)[0], decoder.loaded(second)[0]))


def _unit(stack: _Stack, place: str) -> tuple[Unit, str | None]:
    """Whether values are Hounsfield units, by what headers say and by the values themselves.

    Raises:
        ReadError: They are not, and no 8-bit export's either.
    """
    stated = min((doubt for one in stack.slices if (doubt := _why_not_stated(one))), default=None)
    seen = _why_not_seen(stack.loaded)
    if stated is None and seen is None:
        return "HU", None
    if seen is not None or stated != _UNSPECIFIED:
        voxels = stack.loaded.voxels
        lowest, highest = float(voxels.min()), float(voxels.max())
        check_windowed(lowest, highest, stated or seen or "", place, _CAUSES)
    return "windowed", f"The values are not Hounsfield units: {stated or seen}."


def _why_not_seen(loaded: Loaded) -> str | None:
    """Why values cannot be Hounsfield units; the small pictures of the slices mostly show it."""
    pictures = loaded.pictures
    is_metal = pictures > METAL_ABOVE_HU / 2
    if pictures.min() < LUNG_BELOW_HU and np.mean(is_metal) < MAX_METAL_SHARE / 2:
        return None
    return why_not_hounsfield(loaded.voxels, float(loaded.voxels.min()))


def _why_not_stated(one: Slice) -> str | None:
    """Why a header does not promise Hounsfield units (PS3.3 C.8.2.1); None where it does."""
    fields, layout = one.fields, one.header.layout
    is_table = one.rescale.table is not None
    kind = fields.text("lut_type" if is_table else "rescale_type").upper()
    # "US" is "unspecified"; scanners write it on plain CT, post-processing on maps of other things.
    if kind not in ("", "HU") and not (kind == "US" and is_original(fields) and not is_table):
        return f"{'ModalityLUTType' if is_table else 'RescaleType'} is '{kind}'"
    is_signed = layout is not None and layout.is_signed and layout.bits_stored > 8
    if is_table or fields.raw.get("intercept") or is_signed:
        return None
    return "there is no rescale intercept and no value is below zero"


def _clipped(num_clipped: int) -> str | None:
    """Say how many values were beyond 16 bits."""
    if not num_clipped:
        return None
    ends = np.iinfo(np.int16)
    return f"{num_clipped} voxel(s) beyond {ends.min} to {ends.max} HU were set to the nearest end."
