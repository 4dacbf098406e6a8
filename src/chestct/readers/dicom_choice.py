"""Tell what each DICOM file is, which slices belong together, and choose the one chest CT series.

A series identifier promises one patient, one study, one frame of reference and one pass of the
scanner, and archives break every part of the promise. Slices of other patients, studies or frames
of reference never lie in one stack. Passes (acquisitions, temporal positions, phases, kernels) are
taken apart where they overlap in space; where they follow one another, as in a scan made in
steps, they are one stack.

The rule of the choice: Hounsfield units go before maps of something else, original series before
derived ones and axial ones before others. Among those with at least nine tenths of the most
slices, one made with a lung kernel is preferred, then the one with the most slices. A tie, or
scans of several patients, is an error that lists the series.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np

from chestct.errors import ReadError
from chestct.readers.dicom_geometry import SAME_PLACE_MM
from chestct.readers.dicom_headers import DicomHeader, Fields
from chestct.readers.dicom_stack import Slice

_REFORMAT_WORDS = frozenset(
    {"MPR", "MIP", "MINIP", "REFORMATTED", "PROJECTION IMAGE", "CPR", "VRT"}
)
_MAP_WORDS: Final = (
    *("IODINE", "PERFUSION", "PERF_", "MAP", "MIP", "MINIP", "CBF", "CBV", "MTT", "TTP", "TMAX"),
    *("PBV", "PBF", "BV_", "BF_", "Z_EFF", "ZEFF", "EFF_Z", "EFFECTIVE", "ELECTRON", "RHO"),
    *("WATER", "CALCIUM", "URIC", "FAT_FRACTION", "SUBTRACT", "OVERLAY", "FUSION", "VENTILATION"),
)
"""What stands in the image type or the description of images computed from a CT."""
_ASKED: Final = (
    *("patient_id", "patient_name", "study_uid", "frame_of_reference", "image_type", "frame_type"),
    *("series_description", "rescale_type", "frame_acquisition", "acquisition", "temporal_index"),
    *("temporal_position", "temporal_offset", "trigger_time", "trigger_delay", "cardiac_phase"),
    *("stack", "kvp", "kernel"),
)
"""The elements that set groups apart; where all slices agree in them, nothing else is asked."""
_BINARY: Final = {
    "frame_acquisition": "H",
    "temporal_index": "I",
    "temporal_offset": "d",
    "trigger_delay": "d",
    "cardiac_phase": "d",
}
"""Numbers that are not written out (VR US, UL and FD), as `struct` calls them."""
_PERCENTAGE: Final = re.compile(r"(?<![\d.])(\d{1,3}(?:\.\d{1,2})?) ?%")
_HU_TYPES = ("", "HU", "US")
_ONE_NORMAL = 0.9999
_LONGEST_MARK: Final = 16
_MIN_PASS = 3
_MAX_PASSES = 4


@dataclass(frozen=True, eq=False)
class _Group:
    """Slices that belong together.

    Attributes:
        slices: In no particular order.
        told_by: What sets them apart from others of the series, in words.
    """

    slices: tuple[Slice, ...]
    told_by: tuple[str, ...] = ()


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


def _patient(fields: Fields) -> str:
    """Digest of the patient ID, or where there is none of the name, which is spelt in many ways."""
    has_id = fields.raw.get("patient_id", b"").strip(b" \0")
    return fields.hashed("patient_id" if has_id else "patient_name")


def _phase(fields: Fields) -> str:
    """The percentage in a description, as in "Thorax 40%": no other part, which may be a name."""
    found = _PERCENTAGE.search(fields.text("series_description"))
    return f"{found[1]}%" if found else ""


_NEVER_MIXED: Final[dict[str, Callable[[Fields], Hashable]]] = {
    "patient": _patient,
    "study": _combined("study_uid"),
    "frame of reference": _combined("frame_of_reference"),
    "kind of image": lambda fields: is_map(fields) or is_derived(fields),
}
"""What slices of one stack have in common; where each has its own, a de-identifier made it up."""

_NOT_OVERLAPPING: Final[dict[str, Callable[[Fields], Hashable]]] = {
    "acquisition": _combined("frame_acquisition", "acquisition"),
    "temporal position": _combined("temporal_index", "temporal_position", "temporal_offset"),
    "trigger time": _combined("trigger_time", "trigger_delay"),
    "cardiac phase": _combined("cardiac_phase"),
    "phase": _phase,
    "stack": _combined("stack"),
    "tube voltage": _combined("kvp"),
    "kernel": _combined("kernel"),
    "image type": lambda fields: (fields.words("image_type"), fields.words("frame_type")),
}
"""What may change along a stack, but not between slices that lie among each other."""

_TIMES: Final = {
    name: _NOT_OVERLAPPING[name]
    for name in ("acquisition", "temporal position", "trigger time", "cardiac phase", "phase")
}
"""What tells series of their own apart that show the same at several times."""


def is_derived(fields: Fields) -> bool:
    """Whether an image is a reformat or another computation on a series, not just compressed."""
    words = fields.words("image_type")
    is_secondary = words[0] == "DERIVED" and words[1:2] == ("SECONDARY",)
    return is_secondary or bool(_REFORMAT_WORDS.intersection(words))


def is_original(fields: Fields) -> bool:
    """Whether the image type says so, or says nothing."""
    return fields.words("image_type")[0] in ("ORIGINAL", "")


def is_map(fields: Fields) -> bool:
    """Whether values stand for something else than attenuation, such as iodine or perfusion."""
    if fields.text("rescale_type").upper() not in _HU_TYPES:
        return True
    told = (*fields.words("image_type")[2:], *fields.words("frame_type")[2:])
    told = (*told, *fields.words("series_description"))
    words = {part for text in told for part in (text, *re.split("[ _-]+", text))}
    return any(word.startswith(known) for word in words for known in _MAP_WORDS)


def _split_groups(slices: Iterable[Slice]) -> list[_Group]:
    """Take the slices of a series apart, as far as headers and positions tell.

    Returns:
        One group where all is as it should be. The order does not depend on that of the slices.
    """
    groups = [_Group(tuple(slices))]
    said = {tuple(map(one.fields.raw.get, _ASKED)) for one in groups[0].slices}
    if len(said) == 1:
        return list(_by_spacing(groups[0]))
    for name, value in _NEVER_MIXED.items():
        groups = [part for group in groups for part in _by_value(group, name, value)]
    for name, value in _NOT_OVERLAPPING.items():
        groups = [part for group in groups for part in _by_pass(group, name, value)]
    return [part for group in groups for part in _by_spacing(group)]


def _by_value(group: _Group, name: str, value: Callable[[Fields], Hashable]) -> Iterator[_Group]:
    """Groups of equal values; the group itself where every slice has a value of its own."""
    found = _valued(group, value)
    if len(found) == 1 or len(found) == len(group.slices) > 2:
        yield group
        return
    for number, slices in enumerate(found.values(), start=1):
        yield _Group(tuple(slices), (*group.told_by, f"{name} {number}"))


def _by_pass(group: _Group, name: str, value: Callable[[Fields], Hashable]) -> Iterator[_Group]:
    """Groups of equal values, where slices of different ones lie among each other."""
    found = _valued(group, value)
    if len(found) == 1 or not _overlap(group, value, len(found)):
        yield group
        return
    for number, (key, slices) in enumerate(found.items(), start=1):
        is_short = isinstance(key, str) and 0 < len(key) <= _LONGEST_MARK
        said = key if is_short else f"number {number}"
        yield _Group(tuple(slices), (*group.told_by, f"{name} {said}"))


def _valued(group: _Group, value: Callable[[Fields], Hashable]) -> dict[Hashable, list[Slice]]:
    """Slices by the value that they have, in the order of the values."""
    found: dict[Hashable, list[Slice]] = {}
    for one in group.slices:
        found.setdefault(value(one.fields), []).append(one)
    return dict(sorted(found.items(), key=lambda item: _in_order(repr(item[0]))))


def _in_order(text: str) -> tuple[list[float], str]:
    """What sorts texts by the numbers in them: 2 before 10."""
    return [float(number) for number in re.findall(r"\d+\.?\d*", text)], text


def _overlap(group: _Group, value: Callable[[Fields], Hashable], num_values: int) -> bool:
    """Whether values come back along the stack, or two slices of different ones share a place."""
    values = (repr(value(one.fields)) for one in group.slices)
    placed = sorted(zip(_along(group.slices).tolist(), values, strict=True))
    runs = 1 + sum(a[1] != b[1] for a, b in pairwise(placed))
    return runs > num_values


def _along(slices: tuple[Slice, ...]) -> np.ndarray:
    """Positions along the mean of normals that only jitter, else each along its own."""
    normals = np.array([one.plane.normal for one in slices])
    mean = normals.mean(axis=0)
    if np.linalg.norm(mean) < _ONE_NORMAL:
        return np.array([one.plane.along_mm for one in slices])
    places = np.array([one.plane.position_mm for one in slices])
    return np.asarray(places @ (mean / np.linalg.norm(mean)))


def _by_spacing(group: _Group) -> Iterator[_Group]:
    """Groups that are each evenly spaced, where the series as a whole is not."""
    along = _along(group.slices)
    order = np.argsort(along, kind="stable")
    places = _passes(along[order])
    if places is None:
        yield group
        return
    for number in range(int(places.max()) + 1):
        slices = tuple(group.slices[i] for i in order[places == number])
        yield _Group(slices, (*group.told_by, f"pass {number + 1}"))


def _passes(along: np.ndarray) -> np.ndarray | None:
    """Which of several evenly spaced stacks each position is of; None where there is only one."""
    steps = np.diff(along)
    if len(along) < 2 * _MIN_PASS or np.ptp(steps) <= 0.1 * np.median(steps):
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


def aligned(slices: Iterable[Slice]) -> list[Slice]:
    """Slices of one kind with one orientation, the mean of theirs.

    Orientations that jitter in the fourth decimal put slices at wrong places along their normals.
    """
    slices = list(slices)
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


_NEARLY_AS_MANY = 0.9
"""Share of the most slices from which a series competes by its kernel."""
_AXIAL_COSINE = 0.7
"""Cosine between the slice normal and the patient's long axis from which a series is axial."""

LUNG_KERNEL = re.compile(
    r"LUNG|^(B|BR|I)[5-9]\d|^BL\d|^FC(5|8)\d|^(L|YA|YB|YC|YD)$|SHARP|BONE", re.IGNORECASE
)
"""Sharp kernels, as used for lungs, of Siemens, GE, Canon, Philips and United Imaging."""

UNPLACED = "CT slice without a position"
"""Kind of a slice that does not say where it lies: no other kind, so that a scan may lack it."""

_LOCALIZER_WORDS = ("LOCALIZER", "SCOUT", "SURVIEW", "TOPO")
_DOSE_WORDS = ("DOSE",)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_REPORT = "1.2.840.10008.5.1.4.1.1.88."
_DIRECTORY = "1.2.840.10008.1.3.10"


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
    def kernel(self) -> str:
        """Reconstruction kernel, empty when unknown."""
        return self.slices[0].fields.text("kernel")

    @property
    def is_lung_kernel(self) -> bool:
        """Whether it was made to show lungs."""
        return bool(LUNG_KERNEL.search(self.kernel))

    @property
    def is_axial(self) -> bool:
        """Whether its slices lie across the patient's long axis."""
        return abs(float(self.slices[0].plane.normal[2])) >= _AXIAL_COSINE

    @property
    def is_derived(self) -> bool:
        """Whether it was computed from another series."""
        return is_derived(self.slices[0].fields)

    @property
    def is_map(self) -> bool:
        """Whether its values stand for something else than attenuation."""
        return is_map(self.slices[0].fields)

    @property
    def is_original(self) -> bool:
        """Whether its image type does not say that it was computed or compressed."""
        return is_original(self.slices[0].fields)

    @property
    def patient(self) -> str:
        """Digest that tells patients apart."""
        return _patient(self.slices[0].header.fields)

    def line(self) -> str:
        """One line for a list of series: no description, which may hold names."""
        thickness = self.slices[0].plane.thickness_mm
        num = len(self.slices)
        parts = [f"{num} slice{'' if num == 1 else 's'}"]
        parts += [f"{thickness:g} mm"] if thickness else []
        parts += [f'kernel "{self.kernel}"'] if self.kernel else []
        parts += [] if self.is_axial else ["not axial"]
        parts += ["derived"] if self.is_derived or not self.is_original else []
        parts += ["not in Hounsfield units"] if self.is_map else []
        return f"  {self.name or '(no UID)'}  {', '.join((*parts, *self.told_by))}"


def why_left_out(header: DicomHeader) -> str | None:
    """What a file is, if not a CT slice; None for a CT slice.

    Returns:
        A kind for counting, such as "localizer" or "MR image".
    """
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
    if any(word in kinds for word in _DOSE_WORDS):
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
        return UNPLACED
    return None


def group_series(slices: list[Slice]) -> list[Series]:
    """Slices by series and its parts, in an order that does not depend on the files' names."""
    by_uid: dict[str, list[Slice]] = {}
    for one in slices:
        by_uid.setdefault(one.header.series_uid, []).append(one)
    found: list[Series] = []
    for uid in sorted(by_uid):
        groups = _split_groups(by_uid[uid])
        for part, group in enumerate(groups, start=1):
            found.append(Series(uid, group.slices, part if len(groups) > 1 else 0, group.told_by))
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


def choose_series(candidates: list[Series], wanted: str | None, place: str) -> Series:
    """The series to read.

    Args:
        candidates: All CT series found, at least one.
        wanted: What the user asked for, a SeriesInstanceUID or one with its part as in "1.2.3#2";
            None to go by the rule.
        place: What the user named, for messages.

    Raises:
        ReadError: No such series, or the rule does not decide. The series are listed.
    """
    if wanted is not None:
        named = [series for series in candidates if wanted in (series.name, series.uid)]
        if not named:
            msg = f"{place} holds no CT series {wanted}. It holds:\n{_listing(candidates)}"
            raise ReadError(msg)
        if len(named) == 1:
            return named[0]
        candidates = named
    best = _best(candidates)
    strangers = [s for s in candidates if s.patient != best[0].patient and len(s.slices) > 1]
    if strangers:
        num_patients = len({series.patient for series in (best[0], *strangers)})
        msg = f"{place} holds scans of {num_patients} patients and one was expected."
        raise ReadError(f"{msg}\n{_listing(candidates)}\n{_remedy(best[0])}")
    if len(best) > 1:
        msg = f"{place} holds {len(best)} CT series that fit equally well and one was expected."
        raise ReadError(f"{msg}\n{_listing(best)}\n{_remedy(best[0])}")
    return best[0]


def no_ct_message(place: str, left_out: Mapping[str, int]) -> str:
    """Say that nothing here is a chest CT, and what was found instead."""
    found = counted(left_out) or "no files"
    remedy = "Name the folder or file of one scan."
    if "DICOM directory" in left_out:
        remedy = "A DICOM directory (DICOMDIR) only lists files: name the folder of one scan."
    return (
        f"{place} holds no CT slices: found {found}. A chest CT series was expected (DICOM slices"
        " or enhanced multi-frame CT; a NIfTI file; a folder of 16-bit TIFF slices)."
        f" {remedy}"
    )


def counted(kinds: Mapping[str, int]) -> str:
    """Kinds and their numbers, as in "3 localizers" or "1 MR image"."""
    return ", ".join(
        f"{number} {kind}" if number == 1 else f"{number} {_plural(kind)}"
        for kind, number in sorted(kinds.items())
    )


def _plural(kind: str) -> str:
    """Plural of a kind, whose noun is its first word or its last."""
    head, joint, rest = kind.partition(" without ")
    ending = "es" if head.endswith("s") else "s"
    return f"{head}{ending}{joint}{rest}" if head != "DICOM directory" else "DICOM directories"


def _best(candidates: list[Series]) -> list[Series]:
    """The series that the rule leaves: one, or several that tie."""
    for is_preferred in (
        lambda s: not s.is_map,
        lambda s: not s.is_derived,
        lambda s: s.is_axial,
        lambda s: s.is_original,
    ):
        candidates = [series for series in candidates if is_preferred(series)] or candidates
    most = max(len(series.slices) for series in candidates)
    close = [s for s in candidates if len(s.slices) >= _NEARLY_AS_MANY * most]
    close = [series for series in close if series.is_lung_kernel] or close
    most = max(len(series.slices) for series in close)
    return [series for series in close if len(series.slices) == most]


def _listing(candidates: list[Series]) -> str:
    """One line per series, those with the most slices first."""
    ordered = sorted(candidates, key=lambda s: (-len(s.slices), s.uid, s.part))
    return "\n".join(series.line() for series in ordered)


def _remedy(series: Series) -> str:
    """How to pick one."""
    return f"  Pick one: --series {series.name} (series= in Python)"


def other_series(candidates: list[Series], chosen: Series) -> str | None:
    """A warning that lists the series not read; None when there are none."""
    others = [series for series in candidates if series is not chosen]
    if not others:
        return None
    num_slices = sum(len(series.slices) for series in others)
    num_strange = sum(series.patient != chosen.patient for series in others)
    whose = f", {num_strange} of them of another patient" if num_strange else ""
    return (
        f"{len(others)} other CT series with {num_slices} slice(s) were not read{whose}:\n"
        f"{_listing(others)}"
    )
