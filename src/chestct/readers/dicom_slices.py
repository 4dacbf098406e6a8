"""The slices in one DICOM file: where each lies and how its values become Hounsfield units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chestct.readers.dicom_fields import Fields
from chestct.readers.dicom_geometry import Plane
from chestct.readers.dicom_headers import DicomHeader
from chestct.readers.dicom_pixels import check_layout, frame_rescale
from chestct.readers.files import UnreadableFileError
from chestct.readers.hounsfield import Rescale

SPACING_RANGE_MM = (0.05, 20.0)
"""Pixel spacings believed."""
MAX_POSITION_MM = 1e5
"""Farthest slice position believed."""

_UNIT_VECTOR_TOLERANCE = 0.01


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


def slices_of(header: DicomHeader) -> list[Slice]:
    """The slices in a file.

    Raises:
        UnreadableFileError: An impossible layout or geometry, or frames without a position.
    """
    layout = header.layout
    if layout is None:
        return []
    check_layout(layout)
    if len(header.frames) < layout.num_frames:
        msg = f"holds {layout.num_frames} frames and positions for {len(header.frames)}"
        raise UnreadableFileError(msg)
    shape = (layout.rows, layout.columns)
    uid = header.fields.text("slice_uid")
    number = header.fields.text("instance_number") if layout.num_frames == 1 else ""
    frames = header.frames[: layout.num_frames]
    return [
        Slice(header, index, _plane(frame, shape), frame_rescale(header, frame), uid, number)
        for index, frame in enumerate(frames)
    ]


def _plane(frame: Fields, shape: tuple[int, int]) -> Plane:
    """Where a frame lies."""
    position, spacing = frame.numbers("position", 3), frame.numbers("pixel_spacing", 2)
    cosines = frame.numbers("orientation", 6)
    if position is None or spacing is None or cosines is None:
        raise UnreadableFileError("has a slice without position, orientation or pixel spacing")
    low, high = SPACING_RANGE_MM
    if max(map(abs, position)) > MAX_POSITION_MM or not low <= min(spacing) <= max(spacing) <= high:
        raise UnreadableFileError("has an impossible slice position or pixel spacing")
    across, down = np.array(cosines[:3]), np.array(cosines[3:])
    sizes = np.array([across @ across, down @ down, 1 + across @ down])
    if np.abs(sizes - 1).max() > _UNIT_VECTOR_TOLERANCE:
        raise UnreadableFileError("has an orientation that is not two perpendicular unit vectors")
    across = across / np.linalg.norm(across)
    down = down - across * (across @ down)
    down = down / np.linalg.norm(down)
    thickness = frame.numbers("slice_thickness_mm", 1) or (0.0,)
    return Plane(
        position_mm=(position[0], position[1], position[2]),
        across=(float(across[0]), float(across[1]), float(across[2])),
        down=(float(down[0]), float(down[1]), float(down[2])),
        spacing_mm=(spacing[0], spacing[1]),
        shape=shape,
        thickness_mm=max(thickness[0], 0.0),
    )
