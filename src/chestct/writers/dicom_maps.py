"""`heat-map.dcm`: the heat-map as a DICOM Parametric Map.

Floats of 32 bits, heat 0 to 1, and -1 where the network saw nothing: the form that 3D Slicer's
reader (dcmqi) takes, and that viewers show rightly which ignore mappings. -1 is padding and lies
in the mapped range all the same, as highdicom refuses frames with values outside. A frame for
every slice of the scan, also for those not analysed: OHIF puts frames into an array with a place
for each image of the series.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float32

from chestct.analysis import ScanAnalysis
from chestct.arrays import Heat
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.writers import WriteOptions
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
    save,
)
from chestct.writers.evidence import heat_of, heat_words

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap, RealWorldValueMapping


NAME: Final = "dicom_parametric_map"
_FILE_NAME: Final = "heat-map.dcm"
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
    method = explained.explanation.method
    made = ParametricMap(
        **planes,
        pixel_array=_stored(explained.heat.voxels)[::-1],
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
    finish(made, subject, NAME)
    return save(made, folder / _FILE_NAME)


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
    their order in the file. So it was given the slices the other way round than their places, and
    turning the places puts both right without moving hundreds of megabytes.
    """
    made.PerFrameFunctionalGroupsSequence = list(made.PerFrameFunctionalGroupsSequence)[::-1]
    for number, group in enumerate(made.PerFrameFunctionalGroupsSequence, 1):
        group.FrameContentSequence[0].DimensionIndexValues = [number]


def _stored(heat: Heat) -> Float32[np.ndarray, "frames rows columns"]:
    stored = np.array(heat, dtype=np.float32)
    for values in stored:
        np.copyto(values, np.float32(NOT_ANALYSED), where=np.isnan(values))
    return stored
