"""`segmentation.dcm`: the lungs, and where the evidence is strong, as a DICOM Segmentation.

Two binary segments (PS3.3 A.51), as every viewer draws those. The second is the heat-map from
half of its largest value on, in the lungs and beyond them: it shows what the network looked at
and is no outline of a disease, so it is coded as a visual explanation and not as a lesion.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import UInt8

from chestct import __version__
from chestct.analysis import ScanAnalysis
from chestct.arrays import Mask
from chestct.explain.explanation import HeatMap
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.pictures import ANALYSED_COLOR, LUNG_COLOR, Color
from chestct.writers import NothingToWriteError, WriteOptions
from chestct.writers.dicom_identity import (
    Subject,
    long_string,
    subject_of,
)
from chestct.writers.dicom_objects import (
    ANATOMY,
    ARTIFICIAL_INTELLIGENCE,
    LUNG,
    SPATIAL_CONCEPT,
    Concept,
    coded,
    finish,
    origin_of,
    planes_of,
    quantity_of,
    save,
)
from chestct.writers.evidence import heat_words

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription

NAME: Final = "dicom_seg"
FILE_NAME: Final = "segmentation.dcm"


@dataclass(frozen=True, eq=False)
class _Segment:
    """One segment.

    Attributes:
        key: Name of it in identifiers: "lungs" or "evidence".
        label: What viewers show.
        mask: Its voxels on the scan's own grid.
        category: Kind of thing.
        kind: What it is.
        algorithm: What made it, and that one's version.
        color: How viewers should draw it.
    """

    key: str
    label: str
    mask: Mask
    category: Concept
    kind: Concept
    algorithm: tuple[str, str]
    color: Color


class _FewSegments(np.ndarray):
    """Masks of a few segments, the last axis; their sum stays in 8 bits.

    highdicom adds them up to see whether they overlap; numpy would do that in 64 bits, which for a
    scan is hundreds of megabytes.
    """

    def sum(self, axis: int | None = None, **_: object) -> np.ndarray:  # type: ignore[override]
        """Sum along an axis."""
        added: np.ndarray = np.add.reduce(self.view(np.ndarray), axis=axis, dtype=np.uint8)
        return added


def segments_of(analysis: ScanAnalysis) -> list[_Segment]:
    """The segments that have voxels, in the order of their numbers from 1."""
    result = analysis.result
    segments = [
        _Segment(
            key="lungs",
            label="Lungs",
            mask=analysis.prepared.scan_lungs.voxels,
            category=ANATOMY,
            kind=LUNG,
            algorithm=(f"chestct lungs: {_origin_of_lungs(analysis)}", __version__),
            color=LUNG_COLOR,
        )
    ]
    explained = analysis.explanation
    if explained is not None and explained.speaks_for_disease:
        threshold = explained.summary.threshold
        provenance = result.provenance
        segments.append(
            _Segment(
                key="evidence",
                label=f"{heat_words(explained)}, from {threshold:.0%} of maximum",
                mask=_hot(explained.heat, threshold),
                category=SPATIAL_CONCEPT,
                kind=quantity_of(explained.explanation.method),
                algorithm=(
                    f"{explained.explanation.method} of {provenance.classifier}",
                    provenance.classifier_version,
                ),
                color=ANALYSED_COLOR,
            )
        )
    return [segment for segment in segments if segment.mask.any()]


def _hot(heat: HeatMap, threshold: float) -> Mask:
    """Where a map is as hot as the threshold: not where it is NaN, which is "not analysed"."""
    mask = np.empty(heat.grid.shape, dtype=np.bool_)
    for hot, plane in zip(mask, heat, strict=True):
        np.greater_equal(plane, threshold, out=hot)
    return mask


def _origin_of_lungs(analysis: ScanAnalysis) -> str:
    prepared = analysis.prepared
    return "a given mask" if prepared.lungs_are_given else prepared.recipe.lungs


def write_segmentation(analysis: ScanAnalysis, folder: Path, options: WriteOptions) -> Path:
    """Write `segmentation.dcm`.

    Raises:
        NothingToWriteError: The scan was not read from DICOM, or no lungs were found in it.
        WriteError: It cannot be written, or the series lacks identifiers.
        MissingExtraError: highdicom is not installed.
    """
    subject = subject_of(analysis, options)
    segments = segments_of(analysis)
    if not segments:
        raise NothingToWriteError("No lungs were found, so there is nothing to outline.")
    from highdicom.seg import Segmentation, SegmentationTypeValues

    filled = np.flatnonzero(_any_by_slice(segments))
    planes = planes_of(subject, analysis.volume.grid, filled.tolist())
    made = Segmentation(
        **planes,
        pixel_array=_stacked(segments, filled),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(subject, number, segment) for number, segment in enumerate(segments, 1)
        ],
        **origin_of(analysis, subject, NAME),
        content_description=long_string(NOT_FOR_CLINICAL_USE),
        content_label="LUNGS_EVIDENCE" if len(segments) > 1 else "LUNGS",
        series_description="chestct lungs and evidence, not for clinical use",
    )
    finish(made, subject, NAME)
    return save(made, folder / FILE_NAME)


def _any_by_slice(segments: list[_Segment]) -> np.ndarray:
    filled: np.ndarray = np.any([one.mask.any(axis=(1, 2)) for one in segments], axis=0)
    return filled


def _stacked(
    segments: list[_Segment], slices: np.ndarray
) -> UInt8[np.ndarray, "frames rows columns segments"]:
    """The segments' masks side by side; each in one piece, as highdicom takes them one by one."""
    shape = (len(segments), len(slices), *segments[0].mask.shape[1:])
    masks = np.empty(shape, dtype=np.bool_)
    for mask, segment in zip(masks, segments, strict=True):
        np.take(segment.mask, slices, axis=0, out=mask, mode="clip")
    return np.moveaxis(masks.view(np.uint8), 0, -1).view(_FewSegments)


def _description(subject: Subject, number: int, segment: _Segment) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription

    name, version = segment.algorithm
    return SegmentDescription(
        segment_number=number,
        segment_label=long_string(segment.label),
        segmented_property_category=coded(segment.category),
        segmented_property_type=coded(segment.kind),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=long_string(name),
            family=coded(ARTIFICIAL_INTELLIGENCE),
            version=long_string(version),
        ),
        tracking_uid=subject.other_uid(segment.key),
        tracking_id=segment.key,
        display_color=CIELabColor.from_rgb(*segment.color),
    )
