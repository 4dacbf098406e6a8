"""Read a chest CT from DICOM: find its slices, put them in order, decode them into a `Volume`.

One pass over the headers, then one over the pixels of the chosen series. Every departure from a
clean scan is either mended and said in `Volume.warnings`, or refused with the name of the option
that permits it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from chestct.errors import ReadError
from chestct.readers.dicom_choice import (
    Series,
    choose_series,
    counted,
    no_ct_message,
    other_series,
    why_left_out,
)
from chestct.readers.dicom_geometry import (
    SAME_PLACE_MM,
    Plane,
    StackPlan,
    permission,
    plan_stack,
    same_plane_kind,
)
from chestct.readers.dicom_headers import read_header
from chestct.readers.dicom_slices import Slice, slices_of
from chestct.readers.dicom_stack import SliceDecoder, load_stack
from chestct.readers.files import FileSource, UnreadableFileError, opened_files
from chestct.volume import ScanSource, Unit, Volume

MAX_UNREADABLE_NAMED = 3
"""Damaged files named in a message; the rest is counted."""
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
_WRAPPED_ENDINGS = (".gz", ".zst")


@dataclass
class _Found:
    """What the pass over the headers found."""

    slices: list[Slice] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


def read_dicom(path: Path, *, series: str | None = None, allow: Collection[str] = ()) -> Volume:
    """Read one chest CT series from a folder (nested ones included), a zip or a file.

    A single file gives what is in it: the whole scan if it is an enhanced multi-frame CT, one
    slice (with a warning) if it is one of the many files of a scan. Name the folder for those.

    Args:
        path: Folder, zip or file.
        series: SeriesInstanceUID to read; None chooses by the rule of `dicom_choice`.
        allow: What is mended although it is large: "gap" (more than one slice missing in a row),
            "tilt" (a stack that leans over 1 degree), "mixed-orientations" (several sizes or
            orientations in the series; the largest group is read).

    Returns:
        The scan on its own axes, depth along the slice normal. Unit "windowed" when the file says
        that its values are not Hounsfield units.

    Raises:
        ReadError: Nothing to read, damaged files, an undecidable choice, or a departure that was
            not allowed.
        GridError: The scan has too many voxels.
    """
    with opened_files(path) as files:
        found = _find_slices(files)
        _refuse_unreadable(found, path.name)
        if not found.slices:
            raise ReadError(no_ct_message(path.name, found.left_out))
        candidates = _grouped(found.slices)
        chosen = choose_series(candidates, series, path.name)
        warnings = [other_series(candidates, chosen), *_said_about(found, chosen)]
        kept, mixed_warning = _one_kind(chosen, allow)
        ordered, duplicate_warning = _without_duplicates(kept)
        plan = plan_stack([one.plane for one in ordered], allow)
        loaded = load_stack(ordered, plan)
    unit, unit_warning = _unit(ordered)
    warnings += [mixed_warning, duplicate_warning, *plan.warnings, _clipped(loaded.num_clipped)]
    said = tuple(text for text in (*warnings, unit_warning) if text)
    return Volume(plan.grid, loaded.voxels, unit, _source(found, chosen, ordered, plan), said)


@contextmanager
def opened_series(path: Path, series_uid: str) -> Iterator[list[Slice]]:
    """The headers of a series that `read_dicom` read, once more, with its files open.

    For what a volume does not keep, such as what a written object has to copy. Pixels are not
    decoded, except to tell duplicates apart where there are any.

    Args:
        path: What was read.
        series_uid: SeriesInstanceUID as written, empty where the files have none.

    Raises:
        ReadError: The series is no longer there, or no longer whole.
    """
    with opened_files(path) as files:
        found = _find_slices(files)
        _refuse_unreadable(found, path.name)
        chosen = choose_series(_grouped(found.slices), series_uid, path.name)
        kept, _ = _one_kind(chosen, ("mixed-orientations",))
        ordered, _ = _without_duplicates(kept)
        yield ordered


def _source(found: _Found, chosen: Series, ordered: list[Slice], plan: StackPlan) -> ScanSource:
    """Where the volume came from; an interpolated slice goes by the nearer of the two."""
    nearest = [ordered[round(low + share)] for low, _, share in plan.taps]
    return ScanSource(
        format="dicom",
        series_uid=chosen.uid,
        slice_uids=tuple(one.uid for one in nearest),
        instance_numbers=tuple(one.number for one in nearest),
        facts=ordered[0].header.facts(),
        left_out=dict(sorted(found.left_out.items())),
    )


def _find_slices(files: list[FileSource]) -> _Found:
    """Read all headers and sort out what is a CT slice."""
    found = _Found()
    for source in files:
        try:
            header = read_header(source)
            if header is None:
                _count_foreign(source, found)
            elif kind := why_left_out(header):
                found.left_out[kind] += 1
            else:
                found.slices += slices_of(header)
        except UnreadableFileError as error:
            found.unreadable.append(f"{source.name} {error}")
    return found


def _count_foreign(source: FileSource, found: _Found) -> None:
    """Count a file that is not DICOM; one that is named as such is damaged."""
    name = source.name.lower()
    if name.endswith(_WRAPPED_ENDINGS):
        name = name.rpartition(".")[0]
    if name.endswith(_DICOM_ENDINGS):
        found.unreadable.append(f"{source.name} is no DICOM file, in spite of its name")
    else:
        found.left_out["other file"] += 1


def _refuse_unreadable(found: _Found, place: str) -> None:
    """Damaged files may belong to the scan: a scan with holes is not read."""
    if not found.unreadable:
        return
    shown = found.unreadable[:MAX_UNREADABLE_NAMED]
    more = len(found.unreadable) - len(shown)
    lines = [f"  {line}" for line in shown] + ([f"  and {more} more"] if more else [])
    num_good = len(found.slices)
    msg = (
        f"{place}: {len(found.unreadable)} file(s) cannot be read and may belong to the scan;"
        f" {num_good} CT slices are fine and all were expected to be:\n"
    )
    raise ReadError(msg + "\n".join(lines) + "\n  Fetch them again, or remove them.")


def _grouped(slices: list[Slice]) -> list[Series]:
    """Slices by series, in an order that does not depend on the files' names."""
    by_uid: dict[str, list[Slice]] = {}
    for one in slices:
        by_uid.setdefault(one.header.series_uid, []).append(one)
    return [Series(uid, tuple(by_uid[uid])) for uid in sorted(by_uid)]


def _said_about(found: _Found, chosen: Series) -> list[str]:
    """Warnings about what was left out and what was chosen."""
    said = []
    if found.left_out:
        said.append(f"Left out, because they are not CT slices: {counted(found.left_out)}.")
    if chosen.is_derived:
        said.append("ImageType says that the series was derived from another one.")
    if not chosen.is_axial:
        said.append("The slices are not axial; the scan was read as it lies in the patient.")
    return said


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
        return groups[0], None
    groups.sort(key=lambda group: (-len(group), group[0].plane.position_mm))
    sizes = ", ".join(f"{len(group)} of {_kind(group[0].plane)}" for group in groups[:4])
    what = f"The series mixes slices of {len(groups)} sizes or orientations: {sizes}."
    if "mixed-orientations" not in allow:
        msg = f"{what} One was expected; the largest group can be read alone."
        raise ReadError(msg + permission("mixed-orientations"))
    num_left = len(chosen.slices) - len(groups[0])
    return groups[0], f"{what} The largest group was read, {num_left} slice(s) were left out."


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


def _unit(slices: list[Slice]) -> tuple[Unit, str | None]:
    """Whether values are Hounsfield units, by RescaleType (PS3.3 C.8.2.1) and the values' range."""
    header = slices[0].header
    frame, layout = header.frames[slices[0].index], header.layout
    kind = frame.text("rescale_type").upper()
    is_original = header.fields.words("image_type")[0] == "ORIGINAL"
    # "US" is "unspecified"; scanners write it on plain CT, post-processing on maps of other things.
    if kind not in ("", "HU") and not (kind == "US" and is_original):
        return "windowed", f"The values are not Hounsfield units: RescaleType is '{kind}'."
    if frame.raw.get("intercept") or (layout and layout.is_signed and layout.bits_stored > 8):
        return "HU", None
    return "windowed", (
        "The values are not Hounsfield units: there is no rescale intercept and no value is below"
        " zero."
    )


def _clipped(num_clipped: int) -> str | None:
    """Say how many values were beyond 16 bits."""
    if not num_clipped:
        return None
    ends = np.iinfo(np.int16)
    return f"{num_clipped} voxel(s) beyond {ends.min} to {ends.max} HU were set to the nearest end."
