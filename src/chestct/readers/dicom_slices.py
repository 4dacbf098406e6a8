"""Find the CT slices among files, tell which belong together, and choose the one chest CT series.

A series identifier promises one patient, one study, one frame of reference and one pass of the
scanner, and archives break every part of the promise. Slices of other patients, studies, days,
scanners or frames of reference never lie in one stack. Passes (acquisitions, temporal positions,
phases, kernels) are taken apart where they overlap in space; where they follow one another, as in
a scan made in steps, they are one stack.

Names are spelt in many ways, so that another one is no other patient while the PatientID is the
same. Another birth date or sex is one, and another age on the same day.

The rule of the choice: Hounsfield units go before maps of something else, original series before
derived ones and axial ones before others; expiration goes after all that has half as many slices.
Among those with at least nine tenths of the most slices, one made with a lung kernel is preferred,
then the one with the most slices. A tie, scans of several patients, or a scan whose parts are
series of their own, is an error that lists the series.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import numpy as np

from chestct.errors import ReadError, SeveralSeriesError
from chestct.readers.dicom_geometry import SAME_PLACE_MM, Plane, plane_of
from chestct.readers.dicom_headers import DicomHeader, Fields, read_header
from chestct.readers.dicom_pixels import check_layout, frame_rescale
from chestct.readers.files import (
    ARCHIVE_ENDINGS,
    EMPTY_FOLDER,
    FileSource,
    Unpacked,
    UnreadableFileError,
    why_unopened,
)
from chestct.readers.hounsfield import HU_NAMES, Rescale
from chestct.readers.misfits import permission

_UNPLACED = "CT slice without a position"
"""Kind of a slice that does not say where it lies: no other kind, so that a scan may lack it."""

_MAX_UNREADABLE_NAMED = 3
"""Damaged files named in a message; the rest is counted."""
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
_UNOPENED = "file that cannot be opened"
_ARCHIVE = "archive that may hold more of it"
_PACKED = {".zst": "Zstandard", ".bz2": "bzip2", ".xz": "xz"}
_AS_IT_WAS = re.compile(r"(\.zst|\.bz2|\.xz|\.icloud)$")
"""Endings after those that a slice has."""

_LOCALIZER_WORDS = ("LOCALIZER", "SCOUT", "SURVIEW", "TOPO")
_DOSE_WORD = "DOSE"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_REPORT = "1.2.840.10008.5.1.4.1.1.88."
_DIRECTORY = "1.2.840.10008.1.3.10"


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


def _slices_of(header: DicomHeader) -> list[Slice]:
    """The slices in a file.

    Raises:
        UnreadableFileError: An impossible layout or geometry, or frames without a position.
    """
    layout = header.layout
    if layout is None:
        return []
    check_layout(layout)
    if len(header.frames) != layout.num_frames:
        msg = f"holds {layout.num_frames} frames and positions for {len(header.frames)}"
        raise UnreadableFileError(msg)
    shape = (layout.rows, layout.columns)
    uid = header.fields.text("slice_uid")
    number = header.fields.text("instance_number") if layout.num_frames == 1 else ""
    return [
        Slice(header, index, plane_of(frame, shape), frame_rescale(header, frame), uid, number)
        for index, frame in enumerate(header.frames)
    ]


@dataclass
class Found:
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


def find_slices(files: list[FileSource], place: str) -> Found:
    """Read all headers and sort out what is a CT slice.

    Args:
        files: All that there are.
        place: What the user named, for messages.

    Raises:
        ReadError: There are damaged files: they may belong to the scan, and a scan with holes is
            not read. Or there is no CT slice.
    """
    found, unpacked = Found(), Unpacked()
    for source in files:
        try:
            if reason := why_unopened(source):
                found.unopened.append((source.name, reason))
                continue
            header = read_header(source, unpacked)
            if header is None:
                _count_foreign(source, found)
            elif kind := _why_left_out(header):
                found.left_out[kind] += 1
                found.unplaced[header.series_uid] += kind == _UNPLACED
            else:
                found.slices += _slices_of(header)
        except UnreadableFileError as error:
            found.unreadable.append(f"{source.name} {error}")
    _sort_unopened(found)
    if found.unreadable:
        raise ReadError(_unreadable_message(found, place))
    if not found.slices:
        raise ReadError(_no_ct_message(found, place))
    return found


def _sort_unopened(found: Found) -> None:
    """Files that could not be opened count as slices where their names are like the slices'."""
    names = {one.header.source.name for one in found.slices}
    likes, patterns = ({find(name) for name in names} for find in (_likeness, _pattern))
    for name, reason in found.unopened:
        plain = _AS_IT_WAS.sub("", name.lower())
        is_folder = reason.endswith(EMPTY_FOLDER)
        is_like = _pattern(name) in patterns if is_folder else _likeness(name) in likes
        if plain.endswith(_DICOM_ENDINGS) or is_like:
            found.unreadable.append(f"{name} {reason}")
        elif not is_folder:
            found.left_out[_UNOPENED] += 1


def _likeness(name: str) -> tuple[str, str]:
    """What files of one series have in common: the folder and the ending, digits left out."""
    place = PurePosixPath(name)
    return str(place.parent), re.sub(r"[0-9]+", "0", place.suffix.lower())


def _pattern(name: str) -> str:
    """What the names of slices have in common that differ in numbers only."""
    return re.sub(r"[0-9]+", "0", name)


def _count_foreign(source: FileSource, found: Found) -> None:
    """Count a file that is not DICOM; one that is named as such is damaged."""
    name = source.name.lower()
    if packing := next((word for end, word in _PACKED.items() if name.endswith(end)), ""):
        found.unopened.append((source.name, f"is packed by {packing}, which is not unpacked here"))
    elif name.removesuffix(".gz").endswith(_DICOM_ENDINGS):
        found.unreadable.append(f"{source.name} is no DICOM file, in spite of its name")
    elif name.endswith(ARCHIVE_ENDINGS):
        found.left_out[_ARCHIVE] += 1
    else:
        found.left_out["other file"] += 1


def _no_ct_message(found: Found, place: str) -> str:
    """Say that nothing here is a chest CT, and what was found instead."""
    what = _counted(found.left_out) or "no files"
    remedy = "Name the folder or file of one scan."
    if "DICOM directory" in found.left_out:
        remedy = "A DICOM directory (DICOMDIR) only lists files: name the folder of one scan."
    return (
        f"{place} holds no CT slices: found {what}. A chest CT series was expected (DICOM"
        " slices or enhanced multi-frame CT; a NIfTI file; a folder of 16-bit TIFF slices)."
        f" {remedy}"
    )


def _unreadable_message(found: Found, place: str) -> str:
    """Name the first damaged files."""
    shown = found.unreadable[:_MAX_UNREADABLE_NAMED]
    more = len(found.unreadable) - len(shown)
    lines = [f"  {line}" for line in shown] + ([f"  and {more} more"] if more else [])
    msg = (
        f"{place}: {len(found.unreadable)} file(s) cannot be read and may belong to the scan;"
        f" {len(found.slices)} CT slices are fine and all were expected to be:\n"
    )
    return msg + "\n".join(lines) + "\n  Fetch them again, or remove them."


def _why_left_out(header: DicomHeader) -> str | None:
    """What a file is, for counting, such as "localizer" or "MR image"; None for a CT slice."""
    fields, layout = header.fields, header.layout
    words = (*fields.words("image_type"), *header.frames[0].words("frame_type"))
    uid, modality = fields.text("sop_class"), fields.text("modality").upper()
    # A DICOMDIR names its class in the file meta information alone (PS3.10 7.1, PS3.3 F.3.2.2).
    if uid == _DIRECTORY or "first_record" in fields.raw:
        return "DICOM directory"
    if uid.startswith(_REPORT):
        return "structured report"
    if modality not in ("", "CT"):
        return f"{modality[:8]} image" if layout else f"{modality[:8]} object"
    kinds = "\\".join(words)
    if any(word in kinds for word in _LOCALIZER_WORDS):
        return "localizer"
    if any(word.startswith(_DOSE_WORD) for word in words):
        return "dose report"
    if layout is None:
        return "object without pixels"
    return _why_not_ct_pixels(header, uid)


def _why_not_ct_pixels(header: DicomHeader, uid: str) -> str | None:
    """What an image is if its pixels are not those of a CT slice."""
    layout = header.layout
    if layout is None or layout.samples != 1 or layout.photometric[:4] not in ("", "MONO"):
        return "colour picture"
    if uid.startswith(_SECONDARY_CAPTURE):
        return "secondary capture"
    if header.frames[0].numbers("position", 3) is None:
        return _UNPLACED
    return None


_NEARLY_AS_MANY = 0.9
"""Share of the most slices from which a series competes by its kernel."""
_AXIAL_COSINE = 0.7
"""Cosine between the slice normal and the patient's long axis from which a series is axial."""

_LUNG_KERNEL = re.compile(
    r"LUNG|^(B|BR|I)[5-9]\d|^BL\d|^FC(5|8)\d|^(L|YA|YB|YC|YD)$|SHARP|BONE", re.IGNORECASE
)
"""Sharp kernels, as used for lungs, of Siemens, GE, Canon, Philips and United Imaging."""


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one series.

    Attributes:
        uid: SeriesInstanceUID as written.
        slices: Its slices, in no particular order.
        part: Number from 1 where the identifier stands for several; 0 where it does not.
        told_by: What sets this part apart from the others, in words.
    """

    uid: str
    slices: tuple[Slice, ...]
    part: int = 0
    told_by: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What picks it: the identifier, and which part of it."""
        return f"{self.uid}#{self.part}" if self.part else self.uid

    @property
    def fields(self) -> Fields:
        """What its first slice says."""
        return self.slices[0].fields

    @property
    def along_mm(self) -> tuple[float, float, float]:
        """First and last position along the normal, and the usual distance of its slices."""
        along = np.sort(_along(self.slices))
        step = float(np.median(np.diff(along))) if len(along) > 1 else 0.0
        return float(along[0]), float(along[-1]), step

    @property
    def kernel(self) -> str:
        """Reconstruction kernel, empty when unknown."""
        return self.fields.text("kernel")

    @property
    def is_axial(self) -> bool:
        """Whether its slices lie across the patient's long axis."""
        return abs(float(self.slices[0].plane.normal[2])) >= _AXIAL_COSINE

    @property
    def height_mm(self) -> float:
        """From the lower face of its first slice to the upper one of its last."""
        low, high, step = self.along_mm
        return high - low + step

    def narrowed(self, slices: Iterable[Slice], told_by: str) -> Series:
        """Some of its slices, and what else sets them apart."""
        return replace(self, slices=tuple(slices), told_by=(*self.told_by, told_by))

    def words(self) -> str:
        """What tells it from other series: no description, which may hold names."""
        thickness = self.slices[0].plane.thickness_mm
        num = len(self.slices)
        parts = [f"{num} slice{'' if num == 1 else 's'}"]
        parts += [f"{thickness:g} mm"] if thickness else []
        parts += [f'kernel "{self.kernel}"'] if self.kernel else []
        parts += [] if self.is_axial else ["not axial"]
        parts += ["derived"] if _is_derived(self.fields) or not is_original(self.fields) else []
        parts += ["not in Hounsfield units"] if _is_map(self.fields) else []
        return ", ".join((*parts, *self.told_by))


_REFORMAT_WORDS = frozenset(
    {"MPR", "MIP", "MINIP", "REFORMATTED", "PROJECTION IMAGE", "CPR", "VRT"}
)
_MAP_WORDS: Final = (
    *("IODINE", "PERFUSION", "PERF_", "MAP", "MIP", "MINIP", "CBF", "CBV", "MTT", "TTP", "TMAX"),
    *("PBV", "PBF", "BV_", "BF_", "Z_EFF", "ZEFF", "EFF_Z", "EFFECTIVE", "ELECTRON", "RHO"),
    *("WATER", "CALCIUM", "URIC", "FAT_FRACTION", "SUBTRACT", "OVERLAY", "FUSION", "VENTILATION"),
)
"""What stands in the image type or the description of images computed from a CT."""
_COMPUTED_WORDS: Final = ("VNC", "VUE", "VIRTUAL")
"""What stands there where contrast medium was taken out by computation: no scan of its own."""
_OF_PATIENT: Final = ("patient_id", "patient_name", "birth_date", "sex", "age", "weight")
_ASKED: Final = (
    *_OF_PATIENT,
    *("study_uid", "frame_of_reference", "image_type", "frame_type", "manufacturer", "model"),
    *("series_description", "rescale_type", "frame_acquisition", "acquisition", "temporal_index"),
    *("temporal_position", "temporal_offset", "trigger_time", "trigger_delay", "cardiac_phase"),
    *("stack", "kvp", "kernel", "filter", "patient_position", "slice_thickness_mm"),
)
"""The elements that set groups apart; where all slices agree in them, nothing else is asked."""
_DATES: Final = {
    "study date": ("study_date", "study_time"),
    "acquisition date": ("acquisition_date", "acquisition_time"),
    "acquisition date and time": ("acquired",),
    "frame date": ("frame_acquired",),
    "content date": ("content_date", "content_time"),
}
"""What says when slices were made; those of one scan may lie on both sides of midnight."""
_DATE_LENGTH: Final = 10
_MOMENT: Final = re.compile(r"(\d{4})[-./]?(\d\d)[-./]?(\d\d)(?:(\d\d):?(\d\d))?")
_MAX_DAYS_APART: Final = 0.5
_BINARY: Final = {
    "frame_acquisition": "H",
    "temporal_index": "I",
    "temporal_offset": "d",
    "trigger_delay": "d",
    "cardiac_phase": "d",
}
"""Numbers that are not written out (VR US, UL and FD), as `struct` calls them."""
_WORDS: Final = re.compile(r"[^\W_]+")
_EXPIRATION: Final = re.compile(r"\b(EXP|EXPI|EXPIR\w*|EXSP\w*)(?![A-Z])")
_INSPIRATION: Final = re.compile(r"\b(INSP|INSPI|INSPIR\w*)(?![A-Z])")
_PERCENTAGE: Final = re.compile(r"(?<![\d.])(\d{1,3}(?:\.\d{1,2})?) ?%")
_ONE_NORMAL = 0.9999
_LONGEST_MARK: Final = 16
_AGE: Final = re.compile(r"(\d{1,3}) ?([YMWD]?)")
_DAYS_IN: Final = {"": 365.25, "Y": 365.25, "M": 30.44, "W": 7.0, "D": 1.0}
_SAME_AGE_DAYS: Final = 370.0
"""A birthday may lie between two slices, and ages are whole years."""
_WHOLE_CHEST_MM: Final = 240.0
"""Height from which a series is not taken for a part of a chest; lungs are 200 to 300 mm high."""
_MAX_SHARED: Final = 3
"""Height of a series in what it may share with one that it continues."""
_MAX_APART: Final = 2.5
"""Distance, in slices, of parts that continue each other."""
_SAME_STEP: Final = 0.05
_SAME_THICKNESS: Final = 0.05
_MAX_STEP: Final = 1.5
"""Distance of slices in their thickness that leaves no gap worth a word."""
_EVEN_STEPS: Final = 0.1
"""Range of the distances of slices, in the usual one, up to which a stack is evenly spaced."""
_SAME_SPACING: Final = 1e-3
_SAME_COSINE: Final = 2e-3
"""Pixel spacings in one another, and directions, of slices of one kind."""
_SAME_SIZE: Final = 1.25
"""What headers say of a distance, in what positions or pixel spacings say of it."""
_GOES_ON: Final = "continues the one that is read"
_MIN_PASS = 3
_MAX_PASSES = 4


def _combined(*names: str) -> Callable[[Fields], str]:
    """The values of elements that say the same in different kinds of files."""
    return lambda fields: "/".join(part for name in names if (part := _value(fields, name)))


def _value(fields: Fields, name: str) -> str:
    """A text, or a binary number in digits."""
    raw, form = fields.raw.get(name, b""), fields.order + _BINARY.get(name, "")
    if name in _BINARY and len(raw) == struct.calcsize(form):
        return f"{struct.unpack(form, raw)[0]:.10g}"
    raw = raw.strip(b" \0")
    return raw.decode("ascii") if raw.isascii() and raw.decode("ascii").isprintable() else raw.hex()


class _Person(NamedTuple):
    """What tells patients apart: nothing of it is ever shown.

    Attributes:
        number: PatientID.
        family: Words of the family name, or of the whole where nothing sets that off.
        names: Words of the whole name.
        birth_date: As written.
        sex: As written.
        age_days: By PatientAge; below 0 where that says nothing.
        day: Study and its date: ages of two days are not compared.
    """

    number: bytes
    family: tuple[str, ...]
    names: tuple[str, ...]
    birth_date: str
    sex: str
    age_days: float
    day: tuple[str, str]

    def has_name_of(self, other: _Person) -> bool:
        """Whether the names can be one, however written: in other case, order or in part."""
        one_way = set(self.family) <= set(other.names)
        return one_way or set(other.family) <= set(self.names)

    @property
    def _is_nobody(self) -> bool:
        """Whether nothing says who it is."""
        return not (self.number or self.family)

    def is_other(self, other: _Person) -> bool:
        """Whether this is certainly another patient."""
        if self.number != other.number or self._is_nobody != other._is_nobody:
            return True
        facts = ((self.birth_date, other.birth_date), (self.sex, other.sex))
        if any(one and two and one != two for one, two in facts) or self._has_other_age(other):
            return True
        return not (self.number or self.has_name_of(other))

    def _has_other_age(self, other: _Person) -> bool:
        """Whether ages on one day are not one person's."""
        is_known = self.day == other.day and min(self.age_days, other.age_days) >= 0
        return is_known and abs(self.age_days - other.age_days) > _SAME_AGE_DAYS


def _person(fields: Fields) -> _Person:
    """Whom a slice is of."""
    name = fields.text("patient_name").casefold().partition("=")[0]
    family, names = (tuple(_WORDS.findall(text)) for text in (name.partition("^")[0], name))
    number = fields.raw.get("patient_id", b"").strip(b" \0")
    return _Person(
        number=number,
        family=family,
        names=names,
        birth_date=fields.text("birth_date"),
        sex=fields.text("sex").upper(),
        age_days=_age_days(fields),
        day=(fields.text("study_uid"), fields.text("study_date")),
    )


def _age_days(fields: Fields) -> float:
    """PatientAge (VR AS, as in "045Y") in days; -1 where it says nothing."""
    found = _AGE.fullmatch(fields.text("age").upper())
    return int(found[1]) * _DAYS_IN[found[2]] if found else -1.0


def _patients(found: Iterable[_Person]) -> dict[_Person, int]:
    """Numbers from 1 of the patients that persons are; they do not depend on their order."""
    first: list[_Person] = []
    numbers: dict[_Person, int] = {}
    for person in sorted(set(found)):
        known = next((i for i, one in enumerate(first) if not person.is_other(one)), len(first))
        first += [person] if known == len(first) else []
        numbers[person] = known + 1
    return numbers


def _days(moments: Collection[str]) -> dict[str, int]:
    """Numbers from 1 of the days that moments are of; one without a date may be of the first."""
    spans = {text: span for text in moments if (span := _span(text))}
    numbers, number, last = dict.fromkeys(moments, 1), 0, -math.inf
    for text, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        number += start - last > _MAX_DAYS_APART
        numbers[text], last = number, max(last, end)
    return numbers


def _span(text: str) -> tuple[float, float] | None:
    """First and last moment in days that a date leaves open, with its time or without."""
    found = _MOMENT.match(text)
    if not found:
        return None
    year, month, day, hour, minute = (int(part) if part else None for part in found.groups())
    try:
        first = date(year or 0, month or 0, day or 0).toordinal()
    except ValueError:
        return None
    if hour is None or minute is None:
        return first, first + 1
    moment = first + hour / 24 + minute / 1440
    return moment, moment


def _phase(fields: Fields) -> str:
    """The percentage in a description, as in "Thorax 40%": no other part, which may be a name."""
    found = _PERCENTAGE.search(fields.text("series_description"))
    return f"{found[1]}%" if found else ""


def _breath(fields: Fields) -> str:
    """What a description says of the breath: no other part, which may be a name."""
    text = fields.text("series_description").upper().replace("_", " ")
    said = {"expiration": _EXPIRATION, "inspiration": _INSPIRATION}
    found = [word for word, known in said.items() if known.search(text)]
    return found[0] if len(found) == 1 else ""


_frame = _combined("frame_of_reference")

_NEVER_MIXED: Final[dict[str, Callable[[Fields], Hashable]]] = {
    "study": _combined("study_uid"),
    "scanner": _combined("manufacturer", "model"),
    "frame of reference": _frame,
    "kind of image": lambda fields: _is_map(fields) or _is_derived(fields),
}
"""What slices of one stack have in common; where each has its own, a de-identifier made it up."""

_NOT_OVERLAPPING: Final[dict[str, Callable[[Fields], Hashable]]] = {
    "acquisition": _combined("frame_acquisition", "acquisition"),
    "temporal position": _combined("temporal_index", "temporal_position", "temporal_offset"),
    "trigger time": _combined("trigger_time", "trigger_delay"),
    "cardiac phase": _combined("cardiac_phase"),
    "phase": _phase,
    "breath held in": _breath,
    "patient position": _combined("patient_position"),
    "stack": _combined("stack"),
    "tube voltage": _combined("kvp"),
    "kernel": _combined("kernel"),
    "filter": _combined("filter"),
    "image type": lambda fields: (fields.words("image_type"), fields.words("frame_type")),
}
"""What may change along a stack, but not between slices that lie among each other."""
_SAID_TO_CHANGE: Final = {
    **{
        name: _NOT_OVERLAPPING[name]
        for name in ("phase", "breath held in", "patient position", "tube voltage", "kernel")
    },
    "filter": _combined("filter"),
    "body part": _combined("body_part"),
}
"""What is said where it changes along the stack that is read."""

_TIMES: Final = {
    name: _NOT_OVERLAPPING[name]
    for name in (
        *("acquisition", "temporal position", "trigger time", "cardiac phase", "phase"),
        *("breath held in", "patient position"),
    )
}
"""What tells series of their own apart that show the same at several times."""


def _is_derived(fields: Fields) -> bool:
    """Whether an image is a reformat or another computation on a series, not just compressed."""
    words = fields.words("image_type")
    is_secondary = words[0] == "DERIVED" and words[1:2] == ("SECONDARY",)
    return (
        is_secondary or bool(_REFORMAT_WORDS.intersection(words)) or _has(fields, _COMPUTED_WORDS)
    )


def is_original(fields: Fields) -> bool:
    """Whether the image type says so, or says nothing."""
    return fields.words("image_type")[0] in ("ORIGINAL", "")


def _is_map(fields: Fields) -> bool:
    """Whether values stand for something else than attenuation, such as iodine or perfusion."""
    if fields.text("rescale_type").upper() not in (*HU_NAMES, "US"):
        return True
    return _has(fields, _MAP_WORDS)


def _has(fields: Fields, known: tuple[str, ...]) -> bool:
    """Whether a word of the image type or of the description begins so."""
    told = (*fields.words("image_type")[2:], *fields.words("frame_type")[2:])
    told = (*told, *fields.words("series_description"))
    words = {part for text in told for part in (text, *re.split("[ _-]+", text))}
    return any(word.startswith(known) for word in words)


def _split_groups(series: Series) -> list[Series]:
    """Take the slices of a series apart, whatever their order, as headers and positions tell."""
    said = {(*map(one.fields.raw.get, _ASKED), *_dates(one.fields)) for one in series.slices}
    if len(said) == 1:
        return list(_by_spacing(series))
    patients = _patients(_person(one.fields) for one in series.slices)
    groups = list(_by_value(series, "patient", lambda fields: patients[_person(fields)]))
    for name, names in _DATES.items():
        groups = [part for group in groups for part in _by_date(group, name, names)]
    for name, value in _NEVER_MIXED.items():
        groups = [part for group in groups for part in _by_value(group, name, value)]
    for name, value in _NOT_OVERLAPPING.items():
        groups = [part for group in groups for part in _by_pass(group, name, value)]
    groups = [part for group in groups for part in _by_thickness(group)]
    return [part for group in groups for part in _by_spacing(group)]


def _by_value(group: Series, name: str, value: Callable[[Fields], Hashable]) -> Iterator[Series]:
    """Groups of equal values; the group itself where every slice has a value of its own."""
    found = _valued(group, value)
    if len(found) == 1 or len(found) == len(group.slices) > 2:
        yield group
        return
    for number, slices in enumerate(found.values(), start=1):
        yield group.narrowed(slices, f"{name} {number}")


def _dates(fields: Fields) -> Iterator[bytes]:
    """The dates of a slice, without the times, which are others in each."""
    return (fields.raw.get(name, b"")[:_DATE_LENGTH] for name, *_ in _DATES.values())


def _by_date(group: Series, name: str, names: tuple[str, ...]) -> Iterator[Series]:
    """Groups of slices that were made more than half a day apart."""

    def moment(fields: Fields) -> str:
        """Date and time as one text; none where there is no date."""
        said = [fields.text(each) for each in names]
        return "".join(said) if said[0] else ""

    days = _days({moment(one.fields) for one in group.slices})
    return _by_value(group, name, lambda fields: days[moment(fields)])


def _by_pass(group: Series, name: str, value: Callable[[Fields], Hashable]) -> Iterator[Series]:
    """Groups of equal values, where slices of different ones lie among each other."""
    found = _valued(group, value)
    if len(found) == 1 or not _overlap(group, value, len(found)):
        yield group
        return
    for number, (key, slices) in enumerate(found.items(), start=1):
        is_short = isinstance(key, str) and 0 < len(key) <= _LONGEST_MARK
        said = key if is_short else f"number {number}"
        yield group.narrowed(slices, f"{name} {said}")


def _by_thickness(group: Series) -> Iterator[Series]:
    """Groups of equal thickness, where those are evenly spaced stacks that overlap."""
    found = _valued(group, _thickness).values()
    stacks = [np.diff(np.sort(_along(tuple(slices)))) for slices in found]
    if all(len(steps) >= _MIN_PASS - 1 and _are_even(steps) for steps in stacks):
        return _by_pass(group, "slice thickness", _thickness)
    return iter([group])


def _thickness(fields: Fields) -> str:
    """SliceThickness in words."""
    thickness = fields.numbers("slice_thickness_mm", 1)
    return f"{thickness[0]:.3g} mm" if thickness and thickness[0] > 0 else "unknown"


def _valued(group: Series, value: Callable[[Fields], Hashable]) -> dict[Hashable, list[Slice]]:
    """Slices by the value that they have, in the order of the values."""
    found: dict[Hashable, list[Slice]] = {}
    for one in group.slices:
        found.setdefault(value(one.fields), []).append(one)
    return dict(sorted(found.items(), key=lambda item: _in_order(repr(item[0]))))


def _in_order(text: str) -> tuple[list[float], str]:
    """What sorts texts by the numbers in them: 2 before 10."""
    return [float(number) for number in re.findall(r"\d+\.?\d*", text)], text


def _overlap(group: Series, value: Callable[[Fields], Hashable], num_values: int) -> bool:
    """Whether values come back along the stack, or two slices of different ones share a place."""
    values = (repr(value(one.fields)) for one in group.slices)
    placed = sorted(zip(_along(group.slices).tolist(), values, strict=True))
    runs = 1 + sum(a[1] != b[1] for a, b in pairwise(placed))
    return runs > num_values


def _along(slices: tuple[Slice, ...]) -> np.ndarray:
    """Positions along the mean of normals that only jitter, else each along its own."""
    mean = _mean_normal(slices)
    if np.linalg.norm(mean) < _ONE_NORMAL:
        return np.array([one.plane.along_mm for one in slices])
    places = np.array([one.plane.position_mm for one in slices])
    return np.asarray(places @ (mean / np.linalg.norm(mean)))


def _mean_normal(slices: tuple[Slice, ...]) -> np.ndarray:
    """Mean of the slices' normals, which has a length of 1 where they are one."""
    return np.asarray(np.mean([one.plane.normal for one in slices], axis=0))


def _by_spacing(group: Series) -> Iterator[Series]:
    """Groups that are each evenly spaced, where the series as a whole is not.

    Slices of several orientations are left together: which to read is asked, not chosen by number.
    """
    if np.linalg.norm(_mean_normal(group.slices)) < _ONE_NORMAL:
        yield group
        return
    along = _along(group.slices)
    order = np.argsort(along, kind="stable")
    places = _passes(along[order])
    if places is None:
        yield group
        return
    for number in range(int(places.max()) + 1):
        slices = [group.slices[i] for i in order[places == number]]
        yield group.narrowed(slices, f"pass {number + 1}")


def _passes(along: np.ndarray) -> np.ndarray | None:
    """Which of several evenly spaced stacks each position is of; None where there is only one."""
    steps = np.diff(along)
    if len(along) < 2 * _MIN_PASS or _are_even(steps):
        return None
    # Where passes overlap, a slice's own successor is not the next slice but one soon after it.
    strides = [np.round(along[num:] - along[:-num], 2) for num in range(1, _MAX_PASSES + 1)]
    counts = Counter(np.concatenate(strides).tolist())
    least = max(_MIN_PASS, len(along) // 5)
    for step in sorted(step for step, count in counts.items() if count >= least):
        found = _phases(along, step) if step > SAME_PLACE_MM else None
        if found is not None:
            return found
    return None


def _are_even(steps: np.ndarray) -> bool:
    """Whether slices that lie so far apart are evenly spaced."""
    return bool(np.ptp(steps) <= _EVEN_STEPS * np.median(steps))


def _phases(along: np.ndarray, step: float) -> np.ndarray | None:
    """Positions by their remainder of a step; None unless each is a whole evenly spaced stack."""
    tolerance = max(0.05 * step, SAME_PLACE_MM)
    phases = (along - along[0]) % step
    phases[phases > step - tolerance] -= step
    centres: list[float] = []
    for phase in np.sort(phases):
        if not centres or phase - centres[-1] > 2 * tolerance:
            centres.append(float(phase))
    if not 2 <= len(centres) <= _MAX_PASSES:
        return None
    number: np.ndarray = np.abs(phases[:, None] - np.array(centres)).argmin(axis=1)
    for index in range(len(centres)):
        own = np.diff(along[number == index])
        if len(own) < _MIN_PASS - 1 or np.abs(own - step).max() > 2 * tolerance:
            return None
    return number


def _grouped(slices: list[Slice]) -> list[Series]:
    """Slices by series and its parts, in an order that does not depend on the files' names."""
    by_uid: dict[str, list[Slice]] = {}
    for one in slices:
        by_uid.setdefault(one.header.series_uid, []).append(one)
    found: list[Series] = []
    for uid in sorted(by_uid):
        parts = _split_groups(Series(uid, tuple(by_uid[uid])))
        numbered = (replace(part, part=number) for number, part in enumerate(parts, start=1))
        found += numbered if len(parts) > 1 else parts
    marks = [_marks(series) for series in found]
    common = set.intersection(*map(set, marks)) if marks else set()
    return [
        replace(series, told_by=(*series.told_by, *(m for m in own if m not in common)))
        for series, own in zip(found, marks, strict=True)
    ]


def _marks(series: Series) -> list[str]:
    """What all slices of a series say of when they were made, beyond what tells its part."""
    marks = []
    for name, value in _TIMES.items():
        first, *others = {str(value(one.fields)) for one in series.slices}
        if not others and 0 < len(first) <= _LONGEST_MARK:
            marks.append(f"{name} {first}")
    return [mark for mark in marks if mark not in series.told_by]


def choose_series(
    slices: list[Slice], wanted: str | None, place: str
) -> tuple[Series, list[Series]]:
    """The series to read, and the others.

    Args:
        slices: All CT slices found; at least one.
        wanted: What the user asked for, a SeriesInstanceUID or one with its part as in "1.2.3#2";
            None to go by the rule.
        place: What the user named, for messages.

    Raises:
        ReadError: There is no such series. Those that there are, are listed.
        SeveralSeriesError: The rule does not decide. The series are listed.
    """
    candidates = _grouped(slices)
    chosen = _chosen(candidates, wanted, place)
    return chosen, [series for series in candidates if series is not chosen]


def _chosen(candidates: list[Series], wanted: str | None, place: str) -> Series:
    if wanted is not None:
        named = [series for series in candidates if wanted in (series.name, series.uid)]
        if not named:
            msg = f"{place} holds no CT series {wanted}. It holds:\n{_listing(candidates)}"
            raise ReadError(msg)
        if len(named) == 1:
            return named[0]
        candidates = named
    preferred = _preferred(candidates)
    best = _best(preferred)
    several = [s for s in candidates if len(s.slices) > 1 or s is best[0]]
    num_patients = len(set(_patients(_person(s.fields) for s in several).values()))
    if num_patients > 1:
        msg = f"{place} holds scans of {num_patients} patients and one was expected."
        raise _undecided(f"{msg}\n{_listing(candidates)}\n{_remedy(best[0])}", candidates)
    alike = [series for series in candidates if series in preferred or series.uid == best[0].uid]
    parts = _parts(best[0], alike)
    if len(parts) > 1 and best[0].height_mm < _WHOLE_CHEST_MM:
        raise _parts_error(parts, place)
    if len(best) > 1:
        msg = f"{place} holds {len(best)} CT series that fit equally well and one was expected."
        raise _undecided(f"{msg}\n{_listing(best)}\n{_remedy(best[0])}", best)
    return best[0]


def _counted(kinds: Mapping[str, int]) -> str:
    """Kinds and their numbers, as in "3 localizers" or "1 MR image"."""
    return ", ".join(
        f"{number} {kind}" if number == 1 else f"{number} {_plural(kind)}"
        for kind, number in sorted(kinds.items())
    )


def _plural(kind: str) -> str:
    """Plural of a kind, whose noun is its first word or its last."""
    head, joint, rest = kind.partition(" that " if " that " in kind else " without ")
    ending = "es" if head.endswith("s") else "s"
    return f"{head}{ending}{joint}{rest}" if head != "DICOM directory" else "DICOM directories"


def _preferred(candidates: list[Series]) -> list[Series]:
    """The series of the best kind that there is."""
    for is_preferred in (
        lambda s: not _is_map(s.fields),
        lambda s: not _is_derived(s.fields),
        lambda s: s.is_axial,
        lambda s: is_original(s.fields),
    ):
        candidates = [series for series in candidates if is_preferred(series)] or candidates
    most = max(len(series.slices) for series in candidates)
    others = [series for series in candidates if _breath(series.fields) != "expiration"]
    return others if any(2 * len(s.slices) >= most for s in others) else candidates


def _best(candidates: list[Series]) -> list[Series]:
    """The series that kernels and numbers of slices leave: one, or several that tie."""
    most = max(len(series.slices) for series in candidates)
    close = [s for s in candidates if len(s.slices) >= _NEARLY_AS_MANY * most]
    close = [series for series in close if _LUNG_KERNEL.search(series.kernel)] or close
    most = max(len(series.slices) for series in close)
    return [series for series in close if len(series.slices) == most]


def _parts(first: Series, others: list[Series]) -> list[Series]:
    """A series, and those that continue it or one another."""
    parts = [first]
    for part in parts:
        parts += [s for s in others if s not in parts and _continues(s, part)]
    return parts


def _continues(series: Series, chosen: Series) -> bool:
    """Whether a series lies on beyond the end of another.

    Two halves of a scan do, in two studies or as two acquisitions that overlap a little. What
    covers the same part of the body once more does not, nor what has a frame of reference of its
    own, unless it has the same identifier.
    """
    (low, high, step), (other_low, other_high, other_step) = chosen.along_mm, series.along_mm
    one, other = chosen.slices[0].plane, series.slices[0].plane
    shared = min(high, other_high) - max(low, other_low)
    is_part = shared * _MAX_SHARED < min(high - low, other_high - other_low)
    is_beside = -_MAX_APART * step <= shared
    if min(len(s.slices) for s in (series, chosen)) < _MIN_PASS or not (is_part and is_beside):
        return False
    sideways = np.subtract(other.position_mm, one.position_mm) @ np.array([one.down, one.across]).T
    return (
        abs(other_step - step) <= _SAME_STEP * step
        and _same_plane_kind(one, other)
        and bool(np.all(np.abs(sideways) <= one.spacing_mm))
        and (series.uid == chosen.uid or len({_frame(s.fields) for s in (series, chosen)}) == 1)
    )


def _parts_error(parts: list[Series], place: str) -> SeveralSeriesError:
    """Say that a scan came in parts."""
    placed = []
    for part in parts:
        low, high, _ = part.along_mm
        placed.append(part.narrowed(part.slices, f"from {low:.1f} to {high:.1f} mm"))
    msg = (
        f"{place} holds a scan in {len(parts)} parts that continue each other in space, and one"
        f" whole chest was expected.\n{_listing(placed)}\n  Export them as one series."
        f" Or read one part alone: --series {parts[0].name} (series= in Python)"
    )
    return _undecided(msg, placed)


def _listing(candidates: list[Series]) -> str:
    """One line per series, those with the most slices first."""
    return "\n".join(
        f"  {each.name or '(no UID)'}  {each.words()}" for each in _by_size(candidates)
    )


def _by_size(candidates: Iterable[Series]) -> list[Series]:
    """Those with the most slices first."""
    return sorted(candidates, key=lambda s: (-len(s.slices), s.uid, s.part))


def _undecided(message: str, candidates: list[Series]) -> SeveralSeriesError:
    return SeveralSeriesError(message, {each.name: each.words() for each in _by_size(candidates)})


def _remedy(series: Series) -> str:
    """How to pick one."""
    return f"  Pick one: --series {series.name} (series= in Python)"


def _other_series(others: list[Series], chosen: Series) -> str:
    """A warning that lists the series not read."""
    num_slices = sum(len(series.slices) for series in others)
    person = _person(chosen.fields)
    num_strange = sum(_person(series.fields).is_other(person) for series in others)
    told = [s.narrowed(s.slices, _GOES_ON) if _continues(s, chosen) else s for s in others]
    whose = f", {num_strange} of them of another patient" if num_strange else ""
    return (
        f"{len(others)} other CT series with {num_slices} slice(s) were not read{whose}:\n"
        f"{_listing(told)}"
    )


def warnings_of_choice(
    found: Found, chosen: Series, others: list[Series], allow: Collection[str]
) -> list[str]:
    """Warnings about what was left out and what was chosen.

    Args:
        found: All that there is.
        chosen: What is read of it.
        others: The series that are not.
        allow: "unplaced" leaves slices out that do not say where they lie; "gap" reads a scan of
            which a file is missing.

    Raises:
        ReadError: Slices of the chosen series do not say where they lie, or a file is missing.
    """
    num_unplaced = found.unplaced[chosen.uid]
    if num_unplaced and "unplaced" not in allow:
        msg = (
            f"{num_unplaced} CT slice(s) of the series do not say where they lie (they have no"
            f" ImagePositionPatient), beside {len(chosen.slices)} that do. All were expected to: a"
            " scan that lacks slices can hide a finding. They can be left out."
        )
        raise ReadError(msg + permission("unplaced"))
    kinds = (_UNPLACED, _UNOPENED, _ARCHIVE)
    apart = {kind: n for kind, n in found.left_out.items() if kind in kinds}
    foreign = {kind: n for kind, n in found.left_out.items() if kind not in apart}
    said = [_other_series(others, chosen)] if others else []
    said += [*_one_patients(chosen), *_changes(chosen), *_thicknesses(chosen)]
    said += [*_contradictions(chosen), *_missing_files(chosen, allow)]
    said += [f"Left out: {_counted(apart)}."] if apart else []
    if foreign:
        said.append(f"Left out, because they are not CT slices: {_counted(foreign)}.")
    if _is_derived(chosen.fields):
        said.append("The header says that the series was derived from another one.")
    if not chosen.is_axial:
        said.append("The slices are not axial; the scan was read as it lies in the patient.")
    return said


def _one_patients(chosen: Series) -> list[str]:
    """Say what of the patient changes between slices that are taken for one patient's."""
    said = {tuple(map(one.fields.raw.get, _OF_PATIENT)): one.fields for one in chosen.slices}
    persons = [_person(fields) for fields in said.values()]
    changes = {
        "PatientID": len({one.number for one in persons}) > 1,
        "PatientName": not all(one.has_name_of(persons[0]) for one in persons),
        "PatientBirthDate": len({one.birth_date for one in persons} - {""}) > 1,
        "PatientSex": len({one.sex for one in persons} - {""}) > 1,
        "PatientAge": len({fields.text("age") for fields in said.values()} - {""}) > 1,
        "PatientWeight": len({fields.text("weight") for fields in said.values()} - {""}) > 1,
    }
    return _changing([name for name, does in changes.items() if does], "patient")


def _changes(chosen: Series) -> list[str]:
    """Say what of the acquisition changes along the stack."""
    changes = {
        name: len({value(one.fields) for one in chosen.slices}) > 1
        for name, value in _SAID_TO_CHANGE.items()
    }
    return _changing([name for name, does in changes.items() if does], "scan")


def _changing(names: list[str], whose: str) -> list[str]:
    what = f"Not all slices have the same {' and '.join(names)}; they were taken for one {whose}'s."
    return [what] if names else []


def _thicknesses(chosen: Series) -> list[str]:
    """Say of how many thicknesses the slices are, where that matters, and whether gaps are left."""
    known = [one.plane.thickness_mm for one in chosen.slices if one.plane.thickness_mm]
    if not known:
        return []
    said, usual, step = [], float(np.median(known)), chosen.along_mm[2]
    if step > _MAX_STEP * usual:
        said.append(
            f"The slices are {usual:.3g} mm thick and {step:.3g} mm apart: what lies between them"
            " was not scanned, or is missing."
        )
    if max(known) <= (1 + _SAME_THICKNESS) * min(known):
        return said
    counts = Counter(f"{thickness:.3g} mm" for thickness in known)
    listed = ", ".join(f"{num} of {thickness}" for thickness, num in counts.most_common(4))
    return [
        *said,
        f"The slices are of {len(counts)} thicknesses ({listed}); they were taken for one stack.",
    ]


def _contradictions(chosen: Series) -> list[str]:
    """Say where headers give another size than positions and pixel spacings do."""
    step, plane = chosen.along_mm[2], chosen.slices[0].plane
    placed = np.argsort(_along(chosen.slices), kind="stable")
    locations = np.array([_number(one.fields, "location_mm") for one in chosen.slices])[placed]
    located = float(np.median(np.abs(np.diff(locations)))) if len(locations) > 1 else math.nan
    between = abs(_number(chosen.fields, "slice_step_mm"))
    width = max(num * mm for num, mm in zip(plane.shape, plane.spacing_mm, strict=True))
    apart = f"The slices are {step:.4g} mm apart by their positions"
    wide = f"The pictures are {width:.4g} mm wide by their pixels"
    told = (
        (apart, step, "SliceLocation", located),
        (apart, step, "SpacingBetweenSlices", between),
        (wide, width, "ReconstructionDiameter", _number(chosen.fields, "diameter_mm")),
    )
    return [
        f"{what}, and {said:.4g} mm by {name}: sizes may be wrong. Check them."
        for what, own, name, said in told
        if min(own, said) > SAME_PLACE_MM and max(own, said) > _SAME_SIZE * min(own, said)
    ]


def _number(fields: Fields, name: str) -> float:
    """A decimal string that nothing depends on; not a number where it is none."""
    try:
        return (fields.numbers(name, 1) or (math.nan,))[0]
    except UnreadableFileError:
        return math.nan


def _missing_files(chosen: Series, allow: Collection[str]) -> list[str]:
    """Say which files of a concatenation are missing (PS3.3 C.7.6.16.1.1), if that is allowed.

    Raises:
        ReadError: It is not.
    """
    parts: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for header in {id(one.header): one.header for one in chosen.slices}.values():
        fields, names = header.fields, ("concatenation_part", "concatenation_parts")
        number, total = (
            fields.integer(name) if len(fields.raw.get(name, b"")) == 2 else 0 for name in names
        )
        if (uid := fields.text("concatenation")) and number:
            parts.setdefault(uid, set()).add(number)
            totals[uid] = max(totals.get(uid, 0), number, total)
    missing = {uid: set(range(1, total + 1)) - parts[uid] for uid, total in totals.items()}
    said = [
        f"Of {totals[uid]} files that make up one scan, number"
        f" {', '.join(map(str, sorted(numbers)[:_MAX_UNREADABLE_NAMED]))} is missing."
        for uid, numbers in missing.items()
        if numbers
    ]
    if said and "gap" not in allow:
        msg = f"{' '.join(said)} All were expected: a scan that lacks slices can hide a finding."
        raise ReadError(f"{msg} Fetch it; or what there is can be read.{permission('gap')}")
    return said


def one_kind(chosen: Series, allow: Collection[str]) -> tuple[list[Slice], list[str]]:
    """The slices of one size, spacing, orientation and patient position, and what to say of others.

    A slice that does not say how the patient lay counts as most do.

    Raises:
        ReadError: There are others and `allow` does not name "mixed-orientations".
    """
    known = Counter(filter(None, map(_patient_position, chosen.slices))).most_common(1)
    usual = known[0][0] if known else ""
    groups: list[list[Slice]] = []
    for one in chosen.slices:
        lay = _patient_position(one) or usual
        for group in groups:
            has_lain_so = (_patient_position(group[0]) or usual) == lay
            if has_lain_so and _same_plane_kind(group[0].plane, one.plane):
                group.append(one)
                break
        else:
            groups.append([one])
    if len(groups) == 1:
        return _aligned(groups[0]), []
    groups.sort(key=lambda group: (-len(group), group[0].plane.position_mm))
    sizes = ", ".join(f"{len(group)} of {_kind(group[0])}" for group in groups[:4])
    what = f"The series mixes slices of {len(groups)} sizes or orientations: {sizes}."
    if "mixed-orientations" not in allow:
        msg = f"{what} One was expected; the largest group can be read alone."
        raise ReadError(msg + permission("mixed-orientations"))
    num_left = len(chosen.slices) - len(groups[0])
    said = f"{what} The largest group was read, {num_left} slice(s) were left out."
    return _aligned(groups[0]), [said]


def _same_plane_kind(first: Plane, second: Plane) -> bool:
    """Whether two slices have the same size, pixel spacing and orientation."""
    if first.shape != second.shape:
        return False
    ratios = (a / b for a, b in zip(first.spacing_mm, second.spacing_mm, strict=True))
    cosines = zip((*first.across, *first.down), (*second.across, *second.down), strict=True)
    has_spacing = all(abs(ratio - 1) <= _SAME_SPACING for ratio in ratios)
    return has_spacing and all(abs(a - b) <= _SAME_COSINE for a, b in cosines)


def _patient_position(one: Slice) -> str:
    """How the patient lay: PatientPosition, as in "HFS"."""
    return one.fields.text("patient_position").upper()


def _kind(one: Slice) -> str:
    """Size, spacing, normal and patient position of a slice in words."""
    plane, lay = one.plane, _patient_position(one)
    normal = ", ".join(f"{x:.2f}" for x in plane.normal)
    rows, columns = plane.shape
    said = f"{rows} x {columns} at {plane.spacing_mm[0]:.3g} mm, normal ({normal})"
    return f"{said}, {lay[:_LONGEST_MARK]}" if lay else said


def _aligned(slices: list[Slice]) -> list[Slice]:
    """Slices of one kind with one orientation, the mean of theirs.

    Orientations that jitter in the fourth decimal put slices at wrong places along their normals.
    """
    if len({(one.plane.across, one.plane.down) for one in slices}) == 1:
        return slices
    across = np.mean([one.plane.across for one in slices], axis=0)
    across /= np.linalg.norm(across)
    down = np.mean([one.plane.down for one in slices], axis=0)
    down -= across * (across @ down)
    down /= np.linalg.norm(down)
    rows = (float(across[0]), float(across[1]), float(across[2]))
    columns = (float(down[0]), float(down[1]), float(down[2]))
    return [replace(one, plane=replace(one.plane, across=rows, down=columns)) for one in slices]
