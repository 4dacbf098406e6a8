"""`overlays/`: a Secondary Capture series of slices with the heat-map drawn over them.

For archives and viewers that show nothing but plain pictures. It is written when it is asked for
by name only: its pixels are copies of the scan's, and some scanners burn names into those.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from chestct import __version__
from chestct.analysis import ScanAnalysis
from chestct.explain.explanation import ScanExplanation
from chestct.heat_pictures import draw_heat, lay_over
from chestct.pictures import RGB, Scene, draw_slice, scene_of_scan
from chestct.preprocess.oblique import slices_follow_body
from chestct.storage import write_folder_with
from chestct.volume import canonical_axes
from chestct.writers import WriteOptions
from chestct.writers.dicom_identity import (
    MANUFACTURER,
    SERIES_NUMBERS,
    Subject,
    long_string,
    subject_of,
)
from chestct.writers.dicom_objects import finish, headers_of, image_at, save
from chestct.writers.evidence import heat_of, heat_words

if TYPE_CHECKING:
    from highdicom.sc import SCImage
    from pydicom.dataset import Dataset

_NAME: Final = "dicom_sc"
_FOLDER_NAME: Final = "overlays"
_NOTICE: Final = "NOT FOR CLINICAL USE"

_WIDTH_PX = 512
_INK = (255, 214, 140)
_EDGE_PX = 10


def write_overlays(analysis: ScanAnalysis, folder: Path, options: WriteOptions) -> Path:
    """Write `overlays/0001.dcm` and so on, one for each analysed slice, from the feet up.

    Raises:
        NothingToWriteError: The scan was not read from DICOM, or there is no heat-map.
        WriteError: They cannot be written, or the series lacks identifiers.
        MissingExtraError: highdicom is not installed.
    """
    explained = heat_of(analysis)
    subject = subject_of(analysis, options)
    scene = _whole(scene_of_scan(analysis))
    first, last = scene.analysed
    reference = headers_of(subject, analysis.volume.grid)[0]

    def write(aside: Path) -> None:
        """Write the series into a folder that is not in its place yet."""
        for number, index in enumerate(range(first, last + 1), 1):
            picture = _picture(scene, index, explained)
            made = _captured(reference, subject, picture, number)
            made.ManufacturerModelName = long_string(analysis.result.provenance.classifier)
            _refer(made, analysis, subject, index)
            finish(made, subject, _NAME)
            save(made, aside / f"{number:04d}.dcm")

    return write_folder_with(folder / _FOLDER_NAME, write)


def _whole(scene: Scene) -> Scene:
    """The scene without the crop to the chest: the picture has the slice's own field of view."""
    depth, height, width = scene.volume.grid.shape
    return replace(scene, box=((0, depth), (0, height), (0, width)))


def _picture(scene: Scene, index: int, explained: ScanExplanation) -> RGB:
    """One slice, its heat, and in words what must not be lost when it is seen alone."""
    drawn = draw_slice(scene, "axial", index, _WIDTH_PX)
    threshold = explained.summary.threshold
    drawn = lay_over(drawn, draw_heat(scene, "axial", index, _WIDTH_PX, threshold))
    canvas = Image.fromarray(drawn)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    draw.text((_EDGE_PX, _EDGE_PX), heat_words(explained), fill=_INK, font=font)
    place = (_EDGE_PX, drawn.shape[0] - _EDGE_PX)
    draw.text(place, f"chestct   {_NOTICE}", fill=_INK, font=font, anchor="ls")
    return np.asarray(canvas, dtype=np.uint8)


def _captured(reference: Dataset, subject: Subject, picture: RGB, number: int) -> SCImage:
    from highdicom import CoordinateSystemNames, PhotometricInterpretationValues
    from highdicom.sc import SCImage
    from pydicom.uid import ExplicitVRLittleEndian

    return SCImage.from_ref_dataset(
        ref_dataset=reference,
        pixel_array=picture,
        photometric_interpretation=PhotometricInterpretationValues.RGB,
        bits_allocated=8,
        coordinate_system=CoordinateSystemNames.PATIENT,
        series_instance_uid=subject.series_uid(_NAME),
        series_number=SERIES_NUMBERS[_NAME],
        sop_instance_uid=subject.instance_uid(_NAME, number),
        instance_number=number,
        manufacturer=MANUFACTURER,
        software_versions=__version__,
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
    image = image_at(subject, grid, grid.shape[0] - 1 - index if reverse[0] else index)
    source = Dataset()
    source.ReferencedSOPClassUID = image.sop_class
    source.ReferencedSOPInstanceUID = image.uid
    if image.frame:
        source.ReferencedFrameNumber = image.frame
    made.SourceImageSequence = [source]
