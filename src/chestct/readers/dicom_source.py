"""The headers behind a volume that was read from DICOM, for what writes objects beside the series.

A `Volume` keeps technical facts only. An object that goes back into an archive has to repeat who
the patient is and to name the images it was made from, so the headers are read once more, when
such an object is written and not before: nothing that identifies a patient is held until then.
Pixels are not decoded again.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestct.errors import ReadError
from chestct.readers.dicom_geometry import plan_stack
from chestct.readers.dicom_series import opened_series
from chestct.readers.dicom_slices import Slice
from chestct.readers.files import BROKEN_STREAM
from chestct.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

_PATIENT_GROUPS: Final = (0x0010, 0x0012)
"""Groups that hold the patient and clinical trial modules (PS3.3 C.7.1, C.7.2.2, C.7.2.3)."""
_KEPT: Final = frozenset(
    {
        "AccessionNumber",
        "AcquisitionDate",
        "AcquisitionTime",
        "BurnedInAnnotation",
        "FrameOfReferenceUID",
        "IssuerOfAccessionNumberSequence",
        "LossyImageCompression",
        "LossyImageCompressionMethod",
        "LossyImageCompressionRatio",
        "Modality",
        "PositionReferenceIndicator",
        "ProcedureCodeSequence",
        "ReferringPhysicianName",
        "RequestAttributesSequence",
        "SeriesDate",
        "SeriesInstanceUID",
        "SeriesTime",
        "StudyDate",
        "StudyDescription",
        "StudyID",
        "StudyInstanceUID",
        "StudyTime",
        "TimezoneOffsetFromUTC",
    }
)
"""What is kept of other groups: study, frame of reference, and what has to be passed on."""

_WITH_LAYOUT: Final = ("LT", "ST", "UT")
_LAYOUT: Final = "\t\n\f\r"
"""Control characters that texts of these representations may hold."""
_MARKED_DATE: Final = re.compile(r"^(\d{4})[-./](\d\d)[-./](\d\d)$")
_MARKED_TIME: Final = re.compile(r"^(\d\d):(\d\d):(\d\d(?:\.\d{1,6})?)$")
_TIME_ZONE: Final = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")
_SEXES: Final[dict[str, str]] = {
    **{letter: letter for letter in "FMO"},
    **{"FEMALE": "F", "MALE": "M", "OTHER": "O"},
}


@dataclass(frozen=True)
class SourceImage:
    """One image that a volume was made from.

    Attributes:
        sop_class: SOPClassUID of its file.
        uid: SOPInstanceUID of its file, as written.
        file: Number of its file among those of the series, from 0.
        frame: Number of the frame in its file from 1; 0 in a file of a single image.
        position_mm: Patient position (x, y, z) of the centre of its first pixel.
    """

    sop_class: str
    uid: str
    file: int
    frame: int
    position_mm: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The series behind a volume.

    Attributes:
        header: Patient, study and frame of reference of its first image, put right where the
            standard has a form for what an element says.
        left_out: Names of the elements that are not in it, as they break the standard.
        images: Its images, sorted along the slice normal.
        shape: Rows and columns of an image.
        is_exact: Whether slice i of the volume is image i, neither interpolated nor shifted.
    """

    header: Dataset
    left_out: tuple[str, ...]
    images: tuple[SourceImage, ...]
    shape: tuple[int, int]
    is_exact: bool


def read_source(path: Path, volume: Volume) -> SourceSeries:
    """Read the headers behind a volume.

    Args:
        path: What the volume was read from.
        volume: The volume; its source is DICOM.

    Raises:
        ReadError: The files are no longer what was read.
    """
    with opened_series(path, volume.source) as slices:
        plan = plan_stack([one.plane for one in slices], ("gap", "tilt"))
        header, left_out = _header(slices[0])
        return SourceSeries(
            header=header,
            left_out=left_out,
            images=_images(slices),
            shape=slices[0].plane.shape,
            is_exact=plan.is_exact and plan.grid == volume.grid,
        )


def _images(slices: list[Slice]) -> tuple[SourceImage, ...]:
    files: dict[int, int] = {}
    images = []
    for one in slices:
        layout = one.header.layout
        is_single = layout is None or (layout.num_frames == 1 and len(one.header.frames) == 1)
        images.append(
            SourceImage(
                sop_class=one.header.fields.text("sop_class"),
                uid=one.uid,
                file=files.setdefault(id(one.header), len(files)),
                frame=0 if is_single else one.index + 1,
                position_mm=one.plane.position_mm,
            )
        )
    return tuple(images)


def _header(one: Slice) -> tuple[Dataset, tuple[str, ...]]:
    """The kept elements of one file's header, and names of those that break the standard."""
    from pydicom import dcmread

    packed = one.header.source.deflated_in or one.header.source
    try:
        with _tolerant(), packed.open() as stream:
            return _kept(dcmread(stream, stop_before_pixels=True, force=True))
    except (*BROKEN_STREAM, AttributeError, KeyError, TypeError, NotImplementedError) as error:
        msg = (
            f"The header of a slice cannot be read in full ({type(error).__name__}), and a DICOM"
            " object has to copy from it. Leave DICOM out of --write."
        )
        raise ReadError(msg) from error


@contextmanager
def _tolerant() -> Iterator[None]:
    """Read what is there: what is kept of it is checked one by one."""
    from pydicom.config import disable_value_validation

    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _kept(header: Dataset, *, is_inner: bool = False) -> tuple[Dataset, tuple[str, ...]]:
    from pydicom.dataset import Dataset

    kept = Dataset()
    left_out: set[str] = set()
    for tag in header.keys():  # noqa: SIM118  a data set iterates over elements, reading them all
        is_wanted = is_inner or tag.group in _PATIENT_GROUPS or _keyword(tag) in _KEPT
        if tag.is_private or not is_wanted:
            continue
        if not _put_right(header, tag, kept, left_out):
            left_out.add(_keyword(tag) or str(tag))
    return kept, tuple(sorted(left_out))


def _keyword(tag: int) -> str:
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag)


def _put_right(header: Dataset, tag: BaseTag, kept: Dataset, left_out: set[str]) -> bool:
    """Keep an element in the form that its representation asks for (PS3.5 6.2), if it has one.

    Gives whether it was kept; names of elements inside it that cannot be kept go to `left_out`.
    """
    from pydicom.datadict import dictionary_VM
    from pydicom.valuerep import STR_VR

    try:
        element = header[tag]
        if element.VR == "SQ":
            inner = [_kept(item, is_inner=True) for item in element.value]
            left_out.update(name for _, names in inner for name in names)
            # What identifies a patient does so as a whole or not at all.
            items = [item for item, names in inner if not (names and tag.group in _PATIENT_GROUPS)]
            if items:
                kept.add_new(tag, "SQ", items)
        elif element.VR not in STR_VR or element.is_empty:
            kept.add(element)
        elif element.VM > 1 and dictionary_VM(tag) == "1":
            return False
        else:
            kept.add_new(tag, element.VR, _standard_value(element))
    except (ValueError, KeyError, TypeError, OverflowError):
        return False
    return True


def _standard_value(element: DataElement) -> object:
    """The value, or another way to write it that follows the standard.

    Raises:
        ValueError: There is none.
    """
    from pydicom.config import RAISE
    from pydicom.valuerep import validate_value

    values = element.value if element.VM > 1 else [element.value]
    texts = [_rewritten(str(value).strip(), element) for value in values]
    for text in texts:
        validate_value(element.VR, text, RAISE)
    if all(text == str(value) for text, value in zip(texts, values, strict=True)):
        return element.value
    return texts if len(texts) > 1 else texts[0]


def _rewritten(text: str, element: DataElement) -> str:
    """A date or time without the marks between its numbers, and a sex as a letter.

    Raises:
        ValueError: It is no sex or time zone that the standard knows, a range of dates as in a
            query, or holds control characters where the standard allows none (PS3.5 6.2; of
            which pydicom checks nothing).
    """
    allowed = _LAYOUT if element.VR in _WITH_LAYOUT else ""
    if any(unicodedata.category(each) == "Cc" and each not in allowed for each in text):
        raise ValueError("control characters")
    if element.VR in ("DA", "TM"):
        text = _MARKED_TIME.sub(r"\1\2\3", _MARKED_DATE.sub(r"\1\2\3", text))
        if "-" in text:
            raise ValueError("a range")
    if element.keyword == "TimezoneOffsetFromUTC" and not _TIME_ZONE.fullmatch(text):
        raise ValueError("no time zone")
    if element.keyword == "PatientSex":
        return _SEXES[text.upper()]
    return text
