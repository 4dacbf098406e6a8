"""The headers behind a volume that was read from DICOM, for what writes objects beside the series.

A `Volume` keeps technical facts only. An object that goes back into an archive has to repeat who
the patient is and to name the images it was made from, so the headers are read once more, when
such an object is written and not before: nothing that identifies a patient is held until then.
Pixels are not decoded again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestct.errors import ReadError
from chestct.readers.dicom_dataset import InflatedFile
from chestct.readers.dicom_geometry import plan_stack
from chestct.readers.dicom_series import opened_series
from chestct.readers.dicom_slices import Slice
from chestct.readers.files import BROKEN_STREAM
from chestct.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

PATIENT_GROUPS: Final = (0x0010, 0x0012)
"""Groups that hold the patient and clinical trial modules (PS3.3 C.7.1, C.7.2.2, C.7.2.3)."""
KEPT: Final = frozenset(
    {
        "AccessionNumber",
        "AcquisitionDate",
        "AcquisitionTime",
        "BurnedInAnnotation",
        "FrameOfReferenceUID",
        "LossyImageCompression",
        "LossyImageCompressionMethod",
        "LossyImageCompressionRatio",
        "Modality",
        "PositionReferenceIndicator",
        "ReferringPhysicianName",
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
        header: Patient, study and frame of reference of its first image; elements that break the
            standard are left out.
        images: Its images, sorted along the slice normal.
        shape: Rows and columns of an image.
        is_exact: Whether slice i of the volume is image i, neither interpolated nor shifted.
    """

    header: Dataset
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
    with opened_series(path, volume.source.series_uid or "") as slices:
        plan = plan_stack([one.plane for one in slices], ("gap", "tilt"))
        return SourceSeries(
            header=_header(slices[0]),
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


def _header(one: Slice) -> Dataset:
    """The kept elements of one file's header that follow the standard."""
    from pydicom import dcmread

    source = one.header.source
    packed = source.packed if isinstance(source, InflatedFile) else source
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


def _kept(header: Dataset) -> Dataset:
    from pydicom.dataset import Dataset

    kept = Dataset()
    for tag in header.keys():  # noqa: SIM118  a data set iterates over elements, reading them all
        if tag.group not in PATIENT_GROUPS and _keyword(tag) not in KEPT:
            continue
        element = header[tag]
        if not element.tag.is_private and _is_standard(element):
            kept.add(element)
    return kept


def _keyword(tag: int) -> str:
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag)


def _is_standard(element: DataElement) -> bool:
    """Whether a value has the form that its representation asks for (PS3.5 6.2)."""
    from pydicom.config import RAISE
    from pydicom.valuerep import STR_VR, validate_value

    if element.VR == "SQ":
        return all(_is_standard(inner) for item in element.value for inner in item)
    if element.VR not in STR_VR or element.is_empty:
        return True
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            validate_value(element.VR, str(value), RAISE)
    except ValueError:
        return False
    return True
