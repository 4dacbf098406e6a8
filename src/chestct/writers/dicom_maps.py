"""`heat-map.dcm`: the heat-map as a DICOM Parametric Map.

Floats of 32 bits, heat 0 to 1, and -1 where the network saw nothing: the form that 3D Slicer's
reader (dcmqi) takes, and that viewers show rightly which ignore mappings. -1 is padding and lies
in the mapped range all the same, as highdicom refuses frames with values outside. A frame for
every slice of the scan, also for those not analysed: OHIF puts frames into an array with a place
for each image of the series.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from chestct.analysis import ScanAnalysis
from chestct.explain.explanation import HeatMap
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.storage import write_whole_with
from chestct.writers import NothingToWriteError, WriteOptions
from chestct.writers.dicom_identity import (
    long_string,
    subject_of,
)
from chestct.writers.dicom_objects import (
    CHEST,
    NO_UNITS,
    coded,
    finish,
    origin_of,
    planes_of,
    quantity_of,
)
from chestct.writers.evidence import heat_of, heat_words

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap, RealWorldValueMapping


NAME: Final = "dicom_parametric_map"
_FILE_NAME: Final = "heat-map.dcm"
_FLOAT_PIXEL_DATA: Final = (0x7FE0, 0x0008)
_MOST_BYTES: Final = 2**32 - 2
"""Longest value of a known length (PS3.5 section 7.1.1): even, and 2^32 - 1 means undefined."""
NOT_ANALYSED: Final = -1.0
"""Stored where the network saw nothing."""


def write_parametric_map(analysis: ScanAnalysis, folder: Path, options: WriteOptions) -> Path:
    """Write `heat-map.dcm`.

    Raises:
        NothingToWriteError: The scan was not read from DICOM, or there is no heat-map.
        WriteError: It cannot be written, or the series lacks identifiers.
        MissingExtraError: highdicom is not installed.
    """
    explained = heat_of(analysis)
    subject = subject_of(analysis, options)
    from highdicom import VOILUTTransformation
    from highdicom.pm import DerivedPixelContrastValues, ParametricMap

    grid = analysis.volume.grid
    planes = planes_of(subject, grid, range(grid.shape[0]))
    for header in planes["source_images"]:
        # Frames of one pixel take no memory; the true ones are written behind the rest.
        header.Rows = header.Columns = 1
    method = explained.explanation.method
    made = ParametricMap(
        **planes,
        pixel_array=np.zeros((grid.shape[0], 1, 1), dtype=np.float32),
        **origin_of(analysis, subject, NAME),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(method)],
        voi_lut_transformations=[VOILUTTransformation(window_center=0.5, window_width=1.0)],
        derived_pixel_contrast=DerivedPixelContrastValues.QUANTITY,
        content_label="EVIDENCE",
        content_description=long_string(NOT_FOR_CLINICAL_USE),
        series_description=long_string(heat_words(explained), ending=", not for clinical use"),
    )
    made.FloatPixelPaddingValue = made.FloatPixelPaddingRangeLimit = NOT_ANALYSED
    _add_anatomy(made)
    _turn_places(made)
    if grid.num_voxels * np.dtype(np.float32).itemsize > _MOST_BYTES:
        msg = f"A Parametric Map holds at most {_MOST_BYTES} bytes, and the scan's would hold more"
        raise NothingToWriteError(f"{msg}. Write the heat-map as NIfTI.")
    _, made.Rows, made.Columns = grid.shape
    del made.FloatPixelData
    finish(made, subject, NAME)
    return write_whole_with(
        folder / _FILE_NAME, lambda aside: _save_with(explained.heat, made, aside)
    )


def _save_with(heat: HeatMap, made: ParametricMap, path: Path) -> None:
    """Save an object and its frames, each made as it is written.

    FloatPixelData is the last element there can be (PS3.5 7.1: tags ascend), of VR "OF" with a
    length of 32 bits (PS3.5 7.1.2), little-endian.
    """
    made.save_as(path, enforce_file_format=True)
    with path.open("ab") as stream:
        num_bytes = heat.grid.num_voxels * np.dtype(np.float32).itemsize
        stream.write(struct.pack("<HH2sHL", *_FLOAT_PIXEL_DATA, b"OF", 0, num_bytes))
        for plane in heat:
            stored = np.where(np.isnan(plane), np.float32(NOT_ANALYSED), plane)
            stream.write(np.ascontiguousarray(stored, dtype="<f4").data)


def _mapping(method: str) -> RealWorldValueMapping:
    """What stored values stand for: themselves."""
    from highdicom.pm import RealWorldValueMapping

    return RealWorldValueMapping(
        lut_label=long_string(method)[:16],
        lut_explanation=long_string(f"Heat, 0 to 1, by {method}", ending="; -1: not analysed"),
        unit=coded(NO_UNITS),
        value_range=(NOT_ANALYSED, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=coded(quantity_of(method)),
    )


def _add_anatomy(made: ParametricMap) -> None:
    """Say what part of the body it is, in place: optional, but 3D Slicer's reader ends without."""
    from pydicom.dataset import Dataset

    anatomy = Dataset()
    anatomy.FrameLaterality = "U"
    anatomy.AnatomicRegionSequence = [coded(CHEST)]
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]


def _turn_places(made: ParametricMap) -> None:
    """Give the first frame the last one's place and so on, in place.

    highdicom stores frames from the far end of the slice normal, and 3D Slicer's reader goes by
    their order in the file. Turning the places leaves the frames in the order of the slices.
    """
    made.PerFrameFunctionalGroupsSequence = list(made.PerFrameFunctionalGroupsSequence)[::-1]
    for number, group in enumerate(made.PerFrameFunctionalGroupsSequence, 1):
        group.FrameContentSequence[0].DimensionIndexValues = [number]
