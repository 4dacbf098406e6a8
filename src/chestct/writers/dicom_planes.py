"""Where the frames of a written object lie, and which source images they were made from.

An object whose frames are the volume's slices names for each frame the image it was made from.
Where the reader interpolated (slices missing or unevenly spaced, a leaning stack), the frames
have positions of their own in the same frame of reference, and name the series as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from chestct.readers.dicom_source import SourceImage
from chestct.simulate.dicom_export import make_uid
from chestct.volume import Grid
from chestct.writers.dicom_identity import CT_IMAGE_STORAGE, Subject

if TYPE_CHECKING:
    from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
    from pydicom.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Planes:
    """The place of an object's frames, as highdicom takes it.

    Attributes:
        source_images: Headers that stand in for the source images, see `headers_of`.
        positions: Position of each frame; None where they are those of the source images.
        orientation: Orientation of all; None likewise.
        measures: Spacing and thickness of all; None likewise.
    """

    source_images: list[Dataset]
    positions: list[PlanePositionSequence] | None = None
    orientation: PlaneOrientationSequence | None = None
    measures: PixelMeasuresSequence | None = None

    def as_arguments(self) -> dict[str, Any]:
        """All of it under highdicom's names."""
        return {
            "source_images": self.source_images,
            "plane_positions": self.positions,
            "plane_orientation": self.orientation,
            "pixel_measures": self.measures,
        }


def planes_of(subject: Subject, grid: Grid, indices: Sequence[int]) -> Planes:
    """Place frames at slices of the volume.

    Args:
        subject: What the object is about.
        grid: The volume's grid; it stacks slices along their normal, as the DICOM reader does.
        indices: Which of its slices become frames, ascending.
    """
    if subject.series.is_exact:
        # Frame by frame its source image: highdicom need not look which belong together.
        return Planes(headers_of(subject, grid, indices))
    from highdicom import (
        CoordinateSystemNames,
        PixelMeasuresSequence,
        PlaneOrientationSequence,
        PlanePositionSequence,
    )

    patient = CoordinateSystemNames.PATIENT
    depth_mm, height_mm, width_mm = grid.spacing_mm
    places = np.array([[float(index), 0.0, 0.0] for index in indices])
    return Planes(
        source_images=headers_of(subject, grid),
        positions=[
            PlanePositionSequence(patient, position)
            for position in grid.to_patient(places).tolist()
        ],
        orientation=PlaneOrientationSequence(patient, _cosines(grid)),
        measures=PixelMeasuresSequence((height_mm, width_mm), depth_mm, depth_mm),
    )


def headers_of(subject: Subject, grid: Grid, indices: Sequence[int] | None = None) -> list[Dataset]:
    """What highdicom asks of the source images: the first has the patient's and study's header.

    Every slice stands there as a CT image of its own, whatever its file is: highdicom knows neither
    private classes nor series of single frames in files of their own. `name_sources` then says
    what each is in truth.

    Args:
        subject: What the object is about.
        grid: The volume's grid.
        indices: Which of the images; None for all.
    """
    chosen = subject.images if indices is None else [subject.images[index] for index in indices]
    headers = [_header(subject, image, grid) for image in chosen]
    headers[0].update(subject.header)
    return headers


def name_sources(made: Dataset, subject: Subject) -> None:
    """Turn references to stand-ins into references to the source images themselves, in place.

    A frame is named where a frame or a finding was made from it; elsewhere its file, once.
    """
    _name_in(made, {_stand_in_uid(image): image for image in subject.images})


def _name_in(item: Dataset, images: dict[str, SourceImage]) -> None:
    names_frames = "ValueType" in item or "DerivationCodeSequence" in item
    for element in item:
        if element.VR != "SQ":
            continue
        inner: list[Dataset] = list(element.value)
        seen: set[str] = set()
        for one in inner:
            _name_in(one, images)
            image = images.get(one.get("ReferencedSOPInstanceUID", ""))
            if image is not None:
                one.ReferencedSOPClassUID = image.sop_class
                one.ReferencedSOPInstanceUID = image.uid
                if names_frames and image.frame:
                    one.ReferencedFrameNumber = image.frame
        if not names_frames:
            kept = [one for one in inner if _is_first(one, seen)]
            if len(kept) < len(inner):
                element.value = kept


def _is_first(item: Dataset, seen: set[str]) -> bool:
    """Whether an item is no reference, or the first one to its file."""
    uid = str(item.get("ReferencedSOPInstanceUID", ""))
    is_first = not uid or uid not in seen
    seen.add(uid)
    return is_first


def _stand_in_uid(image: SourceImage) -> str:
    return make_uid(image.uid, image.frame) if image.frame else image.uid


def header_at(subject: Subject, grid: Grid, index: int) -> Dataset:
    """As `headers_of`, of the one image that `image_at` gives."""
    return _header(subject, image_at(subject, grid, index), grid)


def image_at(subject: Subject, grid: Grid, index: int) -> SourceImage:
    """The source image of a slice of the volume, or the nearest where slices were interpolated."""
    place = grid.to_patient(np.array([float(index), 0.0, 0.0]))
    along = np.array([image.position_mm for image in subject.images]) - place
    return subject.images[int(np.abs(along @ np.asarray(grid.direction[0])).argmin())]


def _cosines(grid: Grid) -> list[float]:
    """Directions of rows and columns; a zero has no sign."""
    return [value + 0.0 for value in (*grid.direction[2], *grid.direction[1])]


def _header(subject: Subject, image: SourceImage, grid: Grid) -> Dataset:
    """The stand-in for one source image."""
    from pydicom.dataset import Dataset

    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = CT_IMAGE_STORAGE, _stand_in_uid(image)
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(header, name, subject.header[name].value)
    header.Modality = "CT"
    header.Rows, header.Columns = subject.series.shape
    header.ImagePositionPatient = _decimals(image.position_mm)
    header.ImageOrientationPatient = _decimals(_cosines(grid))
    header.PixelSpacing = _decimals(grid.spacing_mm[1:])
    header.SliceThickness, header.SpacingBetweenSlices = _decimals([grid.spacing_mm[0]] * 2)
    return header


def _decimals(values: Sequence[float]) -> list[str]:
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]
