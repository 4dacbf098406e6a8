"""Where the frames of a written object lie, and which source images they were made from.

An object whose frames are the volume's slices names for each frame the image it was made from.
Where the reader interpolated (slices missing or unevenly spaced, a leaning stack), the frames
have positions of their own in the same frame of reference, and name the series as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from chestct.readers.dicom_source import SourceImage
from chestct.volume import Grid
from chestct.writers.dicom_identity import Subject

if TYPE_CHECKING:
    from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
    from pydicom.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Planes:
    """The place of an object's frames, as highdicom takes it.

    Attributes:
        source_images: Headers of the source images: one for each of them, or one multi-frame.
        further_images: Headers of the other files of a series of several multi-frame files.
        positions: Position of each frame; None where they are those of the source images.
        orientation: Orientation of all; None likewise.
        measures: Spacing and thickness of all; None likewise.
    """

    source_images: list[Dataset]
    further_images: list[Dataset] = field(default_factory=list)
    positions: list[PlanePositionSequence] | None = None
    orientation: PlaneOrientationSequence | None = None
    measures: PixelMeasuresSequence | None = None

    def as_arguments(self) -> dict[str, Any]:
        """All of it under highdicom's names."""
        return {
            "source_images": self.source_images,
            "further_source_images": self.further_images or None,
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
    if subject.series.is_exact and not subject.images[0].frame:
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
    headers = headers_of(subject, grid)
    num_main = 1 if subject.images[0].frame else len(headers)
    return Planes(
        source_images=headers[:num_main],
        further_images=headers[num_main:],
        positions=[
            PlanePositionSequence(patient, position)
            for position in _positions(subject, grid, indices)
        ],
        orientation=PlaneOrientationSequence(patient, _cosines(grid)),
        measures=PixelMeasuresSequence((height_mm, width_mm), depth_mm, depth_mm),
    )


def headers_of(subject: Subject, grid: Grid, indices: Sequence[int] | None = None) -> list[Dataset]:
    """What highdicom asks of the source images: the first has the patient's and study's header.

    Args:
        subject: What the object is about.
        grid: The volume's grid.
        indices: Which of the images; None for all.
    """
    by_file: dict[int, list[SourceImage]] = {}
    for index in range(len(subject.images)) if indices is None else indices:
        by_file.setdefault(subject.images[index].file, []).append(subject.images[index])
    headers = [_header(subject, images, grid) for images in by_file.values()]
    headers[0].update(subject.header)
    return headers


def image_at(subject: Subject, grid: Grid, index: int) -> SourceImage:
    """The source image of a slice of the volume, or the nearest where slices were interpolated."""
    place = grid.to_patient(np.array([float(index), 0.0, 0.0]))
    along = np.array([image.position_mm for image in subject.images]) - place
    return subject.images[int(np.abs(along @ np.asarray(grid.direction[0])).argmin())]


def _positions(subject: Subject, grid: Grid, indices: Sequence[int]) -> list[tuple[float, ...]]:
    if subject.series.is_exact:
        return [subject.images[index].position_mm for index in indices]
    places = np.array([[float(index), 0.0, 0.0] for index in indices])
    return [tuple(position) for position in grid.to_patient(places).tolist()]


def _cosines(grid: Grid) -> list[float]:
    """Directions of rows and columns; a zero has no sign."""
    return [value + 0.0 for value in (*grid.direction[2], *grid.direction[1])]


def _header(subject: Subject, images: list[SourceImage], grid: Grid) -> Dataset:
    """The header of one source file."""
    from pydicom.dataset import Dataset

    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = images[0].sop_class, images[0].uid
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(header, name, subject.header[name].value)
    header.Modality = "CT"
    header.Rows, header.Columns = subject.series.shape
    if images[0].frame == 0:
        header.update(_plane_position(images[0]))
        header.update(_plane_orientation(grid))
        header.update(_measures(grid))
        return header
    shared = Dataset()
    shared.PlaneOrientationSequence = [_plane_orientation(grid)]
    shared.PixelMeasuresSequence = [_measures(grid)]
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = _frame_groups(images)
    header.NumberOfFrames = len(header.PerFrameFunctionalGroupsSequence)
    return header


def _frame_groups(images: list[SourceImage]) -> list[Dataset]:
    """A group for each frame of a file; one that is no slice of the scan lies with the first."""
    from pydicom.dataset import Dataset

    known = {image.frame: image for image in images}
    groups = []
    for frame in range(1, max(known) + 1):
        group = Dataset()
        image = known.get(frame, images[0])
        group.PlanePositionSequence = [_plane_position(image)]
        groups.append(group)
    return groups


def _plane_position(image: SourceImage) -> Dataset:
    from pydicom.dataset import Dataset

    part = Dataset()
    part.ImagePositionPatient = _decimals(image.position_mm)
    return part


def _plane_orientation(grid: Grid) -> Dataset:
    from pydicom.dataset import Dataset

    part = Dataset()
    part.ImageOrientationPatient = _decimals(_cosines(grid))
    return part


def _measures(grid: Grid) -> Dataset:
    from pydicom.dataset import Dataset

    part = Dataset()
    part.PixelSpacing = _decimals(grid.spacing_mm[1:])
    part.SliceThickness, part.SpacingBetweenSlices = _decimals([grid.spacing_mm[0]] * 2)
    return part


def _decimals(values: Sequence[float]) -> list[str]:
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]
