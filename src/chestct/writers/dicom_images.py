"""The DICOM objects that are images: segmentation, heat-map and overlays.

`segmentation.dcm` has two binary segments (PS3.3 A.51), as every viewer draws those: the lungs, and
the heat-map from half of its largest value on, in the lungs and beyond them. That shows what the
network looked at and is no outline of a disease, so it is coded as a visual explanation and not as
a lesion.

`heat-map.dcm` is a Parametric Map. Floats of 32 bits, heat 0 to 1, and -1 where the network saw
nothing: the form that 3D Slicer's reader (dcmqi) takes, and that viewers show rightly which ignore
mappings. -1 is padding and lies in the mapped range all the same, as highdicom refuses frames with
values outside. A frame for every slice of the scan, also for those not analysed: OHIF puts frames
into an array with a place for each image of the series.

`overlays/` is a Secondary Capture series of slices with the heat-map drawn over them, for archives
and viewers that show nothing but plain pictures. It is written when it is asked for by name only:
its pixels are copies of the scan's, and some scanners burn names into those.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from chestct import __version__
from chestct.analysis import ScanAnalysis
from chestct.arrays import Mask
from chestct.explain.explanation import HeatMap, ScanExplanation
from chestct.labels import NOT_FOR_CLINICAL_USE
from chestct.pictures import (
    ANALYSED_COLOR,
    LUNG_COLOR,
    RGB,
    Color,
    Scene,
    draw_heat,
    draw_slice,
)
from chestct.preprocess.oblique import slices_follow_body
from chestct.storage import write_folder_with, write_whole_with
from chestct.volume import canonical_axes
from chestct.writers import NothingToWriteError, WriteOptions
from chestct.writers.dicom_objects import (
    ARTIFICIAL_INTELLIGENCE,
    LUNG,
    NO_UNITS,
    Concept,
    Subject,
    coded,
    long_string,
    quantity_of,
    save,
)
from chestct.writers.evidence import heat_words
from chestct.writers.nifti import NOT_ANALYSED

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from highdicom.sc import SCImage
    from highdicom.seg import SegmentDescription
    from pydicom.dataset import Dataset

SEGMENTATION: Final = "dicom_seg"
HEAT_MAP: Final = "dicom_parametric_map"
_OVERLAYS: Final = "dicom_sc"
"""Names of the writers."""

_ANATOMY: Final[Concept] = ("91723000", "SCT", "Anatomical Structure")
_SPATIAL_CONCEPT: Final[Concept] = ("309825002", "SCT", "Spatial and Relational Concept")
_CHEST: Final[Concept] = ("816094009", "SCT", "Chest")

_FLOAT_PIXEL_DATA: Final = (0x7FE0, 0x0008)
_MOST_BYTES: Final = 2**32 - 2
"""Longest value of a known length (PS3.5 section 7.1.1): even, and 2^32 - 1 means undefined."""

_NOTICE: Final = "NOT FOR CLINICAL USE"
_WIDTH_PX: Final = 512
_INK: Final = (255, 214, 140)
_EDGE_PX: Final = 10


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
            category=_ANATOMY,
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
                category=_SPATIAL_CONCEPT,
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
    subject = Subject.of(analysis, options)
    segments = segments_of(analysis)
    if not segments:
        raise NothingToWriteError("No lungs were found, so there is nothing to outline.")
    from highdicom.seg import Segmentation, SegmentationTypeValues

    filled = np.flatnonzero(_any_by_slice(segments))
    planes = subject.planes(analysis.volume.grid, filled.tolist())
    made = Segmentation(
        **planes,
        pixel_array=_stacked(segments, filled),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(subject, number, segment) for number, segment in enumerate(segments, 1)
        ],
        **subject.origin(analysis, SEGMENTATION),
        content_description=long_string(NOT_FOR_CLINICAL_USE),
        content_label="LUNGS_EVIDENCE" if len(segments) > 1 else "LUNGS",
        series_description="chestct lungs and evidence, not for clinical use",
    )
    subject.finish(made, SEGMENTATION)
    return save(made, folder / "segmentation.dcm")


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


def write_parametric_map(analysis: ScanAnalysis, folder: Path, options: WriteOptions) -> Path:
    """Write `heat-map.dcm`.

    Raises:
        NothingToWriteError: The scan was not read from DICOM, or there is no heat-map.
        WriteError: It cannot be written, or the series lacks identifiers.
        MissingExtraError: highdicom is not installed.
    """
    explained = _heat_of(analysis)
    subject = Subject.of(analysis, options)
    made, grid = _map_of_single_pixels(analysis, subject, explained), analysis.volume.grid
    if grid.num_voxels * np.dtype(np.float32).itemsize > _MOST_BYTES:
        msg = f"A Parametric Map holds at most {_MOST_BYTES} bytes, and the scan's would hold more"
        raise NothingToWriteError(f"{msg}. Write the heat-map as NIfTI.")
    _, made.Rows, made.Columns = grid.shape
    del made.FloatPixelData
    subject.finish(made, HEAT_MAP)
    return write_whole_with(
        folder / "heat-map.dcm", lambda aside: _save_with(explained.heat, made, aside)
    )


def _map_of_single_pixels(
    analysis: ScanAnalysis, subject: Subject, explained: ScanExplanation
) -> ParametricMap:
    """All of the object but its frames, of which each has one pixel: they take no memory."""
    from highdicom import VOILUTTransformation
    from highdicom.pm import DerivedPixelContrastValues, ParametricMap

    grid = analysis.volume.grid
    planes = subject.planes(grid, range(grid.shape[0]))
    for header in planes["source_images"]:
        header.Rows = header.Columns = 1
    method = explained.explanation.method
    made = ParametricMap(
        **planes,
        pixel_array=np.zeros((grid.shape[0], 1, 1), dtype=np.float32),
        **subject.origin(analysis, HEAT_MAP),
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
    return made


def _heat_of(analysis: ScanAnalysis) -> ScanExplanation:
    """The explanation of an analysis.

    Raises:
        NothingToWriteError: There is none.
    """
    if analysis.explanation is not None:
        return analysis.explanation
    if not analysis.result.is_suitable:
        raise NothingToWriteError("The scan was not classified, so there is no heat-map.")
    msg = "There is no heat-map, as no explanation was asked for: --explain (explain= in Python)."
    raise NothingToWriteError(msg)


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
    anatomy.AnatomicRegionSequence = [coded(_CHEST)]
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]


def _turn_places(made: ParametricMap) -> None:
    """Give the first frame the last one's place and so on, in place.

    highdicom stores frames from the far end of the slice normal, and 3D Slicer's reader goes by
    their order in the file. Turning the places leaves the frames in the order of the slices.
    """
    made.PerFrameFunctionalGroupsSequence = list(made.PerFrameFunctionalGroupsSequence)[::-1]
    for number, group in enumerate(made.PerFrameFunctionalGroupsSequence, 1):
        group.FrameContentSequence[0].DimensionIndexValues = [number]


def write_overlays(analysis: ScanAnalysis, folder: Path, options: WriteOptions) -> Path:
    """Write `overlays/0001.dcm` and so on, one for each analysed slice, from the feet up.

    Raises:
        NothingToWriteError: The scan was not read from DICOM, or there is no heat-map.
        WriteError: They cannot be written, or the series lacks identifiers.
        MissingExtraError: highdicom is not installed.
    """
    explained = _heat_of(analysis)
    subject = Subject.of(analysis, options)
    scene = _whole(Scene.of_scan(analysis))
    first, last = scene.analysed
    reference = subject.headers(analysis.volume.grid)[0]

    def write(aside: Path) -> None:
        """Write the series into a folder that is not in its place yet."""
        for number, index in enumerate(range(first, last + 1), 1):
            picture = _picture(scene, index, explained)
            origin = subject.origin(analysis, _OVERLAYS, number)
            # Of the objects about a scan only these pictures do not say it.
            del origin["device_serial_number"]
            made = _captured(reference, origin, picture)
            _refer(made, analysis, subject, index)
            subject.finish(made, _OVERLAYS)
            save(made, aside / f"{number:04d}.dcm")

    return write_folder_with(folder / "overlays", write)


def _whole(scene: Scene) -> Scene:
    """The scene without the crop to the chest: the picture has the slice's own field of view."""
    depth, height, width = scene.volume.grid.shape
    return replace(scene, box=((0, depth), (0, height), (0, width)))


def _picture(scene: Scene, index: int, explained: ScanExplanation) -> RGB:
    """One slice, its heat, and in words what must not be lost when it is seen alone."""
    drawn = draw_slice(scene, "axial", index, _WIDTH_PX)
    threshold = explained.summary.threshold
    drawn = draw_heat(scene, "axial", index, _WIDTH_PX, threshold).over(drawn)
    canvas = Image.fromarray(drawn)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    draw.text((_EDGE_PX, _EDGE_PX), heat_words(explained), fill=_INK, font=font)
    place = (_EDGE_PX, drawn.shape[0] - _EDGE_PX)
    draw.text(place, f"chestct   {_NOTICE}", fill=_INK, font=font, anchor="ls")
    return np.asarray(canvas, dtype=np.uint8)


def _captured(reference: Dataset, origin: dict[str, Any], picture: RGB) -> SCImage:
    from highdicom import CoordinateSystemNames, PhotometricInterpretationValues
    from highdicom.sc import SCImage
    from pydicom.uid import ExplicitVRLittleEndian

    return SCImage.from_ref_dataset(
        ref_dataset=reference,
        pixel_array=picture,
        photometric_interpretation=PhotometricInterpretationValues.RGB,
        bits_allocated=8,
        coordinate_system=CoordinateSystemNames.PATIENT,
        **origin,
        patient_orientation=("L", "P"),
        series_description="chestct overlays, not for clinical use",
        specific_character_set=reference.SpecificCharacterSet,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )


def _refer(made: SCImage, analysis: ScanAnalysis, subject: Subject, index: int) -> None:
    """Say what it was drawn from, in place: the slice, where slices follow the body."""
    from pydicom.dataset import Dataset

    made.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    made.DerivationDescription = "Slice in a lung window with a heat-map drawn over it"
    # Its words do not identify anybody; what a scanner burned in is not known unless it says so.
    made.BurnedInAnnotation = subject.header.get("BurnedInAnnotation", "YES")
    grid = analysis.volume.grid
    if not slices_follow_body(grid):
        return
    _, reverse = canonical_axes(grid)
    image = subject.image_at(grid, grid.shape[0] - 1 - index if reverse[0] else index)
    source = Dataset()
    source.ReferencedSOPClassUID = image.sop_class
    source.ReferencedSOPInstanceUID = image.uid
    if image.frame:
        source.ReferencedFrameNumber = image.frame
    made.SourceImageSequence = [source]
