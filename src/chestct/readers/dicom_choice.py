"""Tell what each DICOM file is, and choose the one chest CT series of a folder.

The rule: CT images that can be placed in space, grouped by series and, where one identifier stands
for several patients, studies or passes, by those. Hounsfield units go before maps of something
else, original series before derived ones and axial ones before others. Among those with at least
nine tenths of the most slices, one made with a lung kernel is preferred, then the one with the
most slices. A tie, or scans of several patients, is an error that lists the series.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from chestct.errors import ReadError
from chestct.readers.dicom_groups import is_derived, is_map, is_original, split_groups
from chestct.readers.dicom_headers import DicomHeader
from chestct.readers.dicom_slices import Slice

NEARLY_AS_MANY = 0.9
"""Share of the most slices from which a series competes by its kernel."""
AXIAL_COSINE = 0.7
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
        return abs(float(self.slices[0].plane.normal[2])) >= AXIAL_COSINE

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
        """Digest of the patient ID."""
        return self.slices[0].header.fields.hashed("patient_id")

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
    if uid == _DIRECTORY:
        return "DICOM directory"
    if uid.startswith(_REPORT):
        return "structured report"
    if modality not in ("", "CT"):
        return f"{modality[:8]} image" if layout else f"{modality[:8]} object"
    if any(word in value for value in words for word in _LOCALIZER_WORDS):
        return "localizer"
    if any(word in value for value in words for word in _DOSE_WORDS):
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
        groups = split_groups(by_uid[uid])
        for part, group in enumerate(groups, start=1):
            found.append(Series(uid, group.slices, part if len(groups) > 1 else 0, group.told_by))
    return found


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
    return (
        f"{place} holds no CT slices: found {found}. A chest CT series was expected (DICOM slices"
        " or enhanced multi-frame CT; a NIfTI file; a folder of 16-bit TIFF slices)."
        " Name the folder or file of one scan."
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
    close = [s for s in candidates if len(s.slices) >= NEARLY_AS_MANY * most]
    close = [series for series in close if series.is_lung_kernel] or close
    most = max(len(series.slices) for series in close)
    return [series for series in close if len(series.slices) == most]


def _listing(candidates: list[Series]) -> str:
    """One line per series, those with the most slices first."""
    ordered = sorted(candidates, key=lambda series: (-len(series.slices), series.name))
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
    return (
        f"{len(others)} other CT series with {num_slices} slice(s) were not read:\n"
        f"{_listing(others)}"
    )
