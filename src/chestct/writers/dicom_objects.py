"""What every DICOM object has: coded concepts, places of frames and their sources, dates, a file.

Concepts are of SNOMED CT, DICOM and UCUM where there is a code. What has no code anywhere is named
in a coding scheme of this project's own, which DICOM keeps the prefix 99 for (PS3.16 section 8.2);
the meaning beside a code is what viewers show.

An object whose frames are the volume's slices names for each frame the image it was made from.
Where the reader interpolated (slices missing or unevenly spaced, a leaning stack), the frames
have positions of their own in the same frame of reference, and name the series as a whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from chestct import __version__
from chestct.analysis import ScanAnalysis
from chestct.labels import LabelSet
from chestct.readers.dicom_source import SourceImage
from chestct.simulate.dicom_export import make_uid
from chestct.storage import write_whole_with
from chestct.volume import Grid
from chestct.writers.dicom_identity import (
    CT_IMAGE_STORAGE,
    MANUFACTURER,
    SERIES_NUMBERS,
    Subject,
    long_string,
)

if TYPE_CHECKING:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset


Concept = tuple[str, str, str]
"""Value, scheme and meaning."""

_LOCAL: Final = "99"
_OWN_SCHEME: Final = "99CHESTCT"
_SCT: Final = "SCT"
_DCM: Final = "DCM"
_UCUM: Final = "UCUM"

_QUANTITIES: Final[dict[str, Concept]] = {
    "gradcam": ("130403", _DCM, "Gradient-weighted class activation"),
    "gradcam++": ("130403", _DCM, "Gradient-weighted class activation"),
    "layercam": ("130403", _DCM, "Gradient-weighted class activation"),
    "strongest_channel": ("130401", _DCM, "Visual explanation"),
    "occlusion": ("130404", _DCM, "Saliency"),
    "attention": ("130401", _DCM, "Visual explanation"),
}
"""Explanation to what its values are; another method is a "Visual explanation"."""
_VISUAL_EXPLANATION: Final[Concept] = ("130401", _DCM, "Visual explanation")

CHEST: Final[Concept] = ("816094009", _SCT, "Chest")
LUNG: Final[Concept] = ("39607008", _SCT, "Lung")
_LEFT: Final[Concept] = ("7771000", _SCT, "Left")
_RIGHT: Final[Concept] = ("24028007", _SCT, "Right")
_UPPER_ZONE: Final[Concept] = ("281392002", _SCT, "Upper zone of lung")
_MIDDLE_ZONE: Final[Concept] = ("281393007", _SCT, "Middle zone of lung")
_LOWER_ZONE: Final[Concept] = ("281394001", _SCT, "Lower zone of lung")
WHOLE: Final = "lungs"
"""Both lungs, among the regions."""
REGIONS: Final[dict[str, tuple[Concept, Concept | None]]] = {
    f"{side}{part}".strip(): (site, laterality)
    for side, laterality in (("", None), ("left ", _LEFT), ("right ", _RIGHT))
    for part, site in (
        ("lungs" if not side else "lung", LUNG),
        ("upper third", _UPPER_ZONE),
        ("middle third", _MIDDLE_ZONE),
        ("lower third", _LOWER_ZONE),
    )
}
"""Region of an `EvidenceSummary` to anatomic site and side."""

ANATOMY: Final[Concept] = ("91723000", _SCT, "Anatomical Structure")
SPATIAL_CONCEPT: Final[Concept] = ("309825002", _SCT, "Spatial and Relational Concept")
ARTIFICIAL_INTELLIGENCE: Final[Concept] = ("123110", _DCM, "Artificial Intelligence")
CHEST_CT: Final[Concept] = ("24627-2", "LN", "CT Chest")
PROBABILITY: Final[Concept] = ("122157", _DCM, "Probability")
VOLUME: Final[Concept] = ("118565006", _SCT, "Volume")
COMMENT: Final[Concept] = ("121106", _DCM, "Comment")
QUALITY: Final[Concept] = ("111050", _DCM, "Quality Assessment")
NOT_CLASSIFIED: Final[Concept] = ("unsuitable", _OWN_SCHEME, "Not suitable for classification")
INVOLVED_SHARE: Final[Concept] = (
    "involved-share",
    _OWN_SCHEME,
    "Share of lung volume with evidence above threshold",
)
INVOLVED_VOLUME: Final[Concept] = (
    "involved-volume",
    _OWN_SCHEME,
    "Lung volume with evidence above threshold",
)
EVIDENCE: Final[Concept] = (
    "slice-evidence",
    _OWN_SCHEME,
    "Evidence in a slice, share of the largest lung section",
)
NO_UNITS: Final[Concept] = ("1", _UCUM, "no units")
PERCENT: Final[Concept] = ("%", _UCUM, "Percent")
MILLILITER: Final[Concept] = ("mL", _UCUM, "milliliter")

_MAX_CODE = 16


def coded(concept: Concept) -> CodedConcept:
    """A concept as highdicom takes it."""
    from highdicom.sr import CodedConcept

    value, scheme, meaning = concept
    return CodedConcept(value, scheme, meaning)


def finding_of(label: str, labels: LabelSet) -> Concept:
    """The finding that a class stands for."""
    own = (_code_of(label), _OWN_SCHEME, long_string(labels.words(label)))
    return labels.of(label).code or own


def probability_of(label: str, labels: LabelSet) -> Concept:
    """What is measured where the probability of a class that is not the answer is given."""
    meaning = long_string(f"Probability of {labels.words(label)}")
    return _code_of(label, prefix="p:"), _OWN_SCHEME, meaning


def _code_of(label: str, *, prefix: str = "") -> str:
    """A code of at most 16 characters that no other label has.

    The label itself where a short string (SH, PS3.5 6.2) can hold it, else a digest of it after a
    "#", which no code of the first kind has.
    """
    room = _MAX_CODE - len(prefix)
    if len(label) <= room and re.fullmatch(r"[A-Za-z0-9+.()_-]+( [A-Za-z0-9+.()_-]+)*", label):
        return prefix + label
    digest = hashlib.sha256(label.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{prefix}#{digest}"[:_MAX_CODE]


def quantity_of(method: str) -> Concept:
    """What the values of a heat-map of this method are."""
    return _QUANTITIES.get(method, _VISUAL_EXPLANATION)


def schemes_of(labels: LabelSet) -> list[CodingSchemeIdentificationItem]:
    """Who is responsible for the codes of `_OWN_SCHEME`, and what other local schemes are used."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    given = sorted({one.code.scheme for one in labels.classes if one.code})
    return [
        CodingSchemeIdentificationItem(
            designator=_OWN_SCHEME, name="chestct", responsible_organization="The chestct authors"
        ),
        *(
            CodingSchemeIdentificationItem(designator=scheme, name=scheme)
            for scheme in given
            if scheme.startswith(_LOCAL) and scheme != _OWN_SCHEME
        ),
    ]


def planes_of(subject: Subject, grid: Grid, indices: Sequence[int]) -> dict[str, Any]:
    """Source images of frames at slices of the volume and their place, as highdicom takes it.

    Args:
        subject: What the object is about.
        grid: The volume's grid; it stacks slices along their normal, as the DICOM reader does.
        indices: Which of its slices become frames, ascending.
    """
    if subject.series.is_exact:
        # Frame by frame its source image: highdicom need not look which belong together.
        return {"source_images": headers_of(subject, grid, indices)}
    from highdicom import (
        CoordinateSystemNames,
        PixelMeasuresSequence,
        PlaneOrientationSequence,
        PlanePositionSequence,
    )

    patient = CoordinateSystemNames.PATIENT
    depth_mm, height_mm, width_mm = grid.spacing_mm
    places = np.array([[float(index), 0.0, 0.0] for index in indices])
    return {
        "source_images": headers_of(subject, grid),
        "plane_positions": [
            PlanePositionSequence(patient, position)
            for position in grid.to_patient(places).tolist()
        ],
        "plane_orientation": PlaneOrientationSequence(patient, _cosines(grid)),
        "pixel_measures": PixelMeasuresSequence((height_mm, width_mm), depth_mm, depth_mm),
    }


def headers_of(subject: Subject, grid: Grid, indices: Sequence[int] | None = None) -> list[Dataset]:
    """What highdicom asks of the source images: the first has the patient's and study's header.

    Every slice stands there as a CT image of its own, whatever its file is: highdicom knows neither
    private classes nor series of single frames in files of their own. `_name_sources` then says
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


def _name_sources(made: Dataset, subject: Subject) -> None:
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


def origin_of(analysis: ScanAnalysis, subject: Subject, name: str) -> dict[str, Any]:
    """What every object says of its series, itself and what made it, as highdicom takes it."""
    provenance = analysis.result.provenance
    return {
        "series_instance_uid": subject.series_uid(name),
        "series_number": SERIES_NUMBERS[name],
        "sop_instance_uid": subject.instance_uid(name),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": long_string(provenance.classifier),
        "software_versions": __version__,
        "device_serial_number": provenance.weights_sha256[:16],
    }


def finish(made: Dataset, subject: Subject, name: str) -> None:
    """Name the sources, and set the dates and what highdicom draws by chance, in place.

    Args:
        made: The object.
        subject: What it is about.
        name: Name of its writer.
    """
    _name_sources(made, subject)
    _date(made, subject)
    if "TimezoneOffsetFromUTC" in subject.header:
        made.TimezoneOffsetFromUTC = subject.header.TimezoneOffsetFromUTC
    if made.Modality != "SR":
        # An unpaired part of the body needs no laterality (PS3.3 C.7.3.1).
        made.BodyPartExamined = "CHEST"
        if "RequestAttributesSequence" in subject.header:
            made.RequestAttributesSequence = subject.header.RequestAttributesSequence
    if "ContentLabel" in made:
        # Type 2 (PS3.3 table 10-12): nobody, but said.
        made.ContentCreatorName = ""
    organisation = subject.other_uid(name, "dimensions")
    for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in made.get(sequence, ()):
            item.DimensionOrganizationUID = organisation


def _date(made: Dataset, subject: Subject) -> None:
    day, clock = f"{subject.written:%Y%m%d}", f"{subject.written:%H%M%S}"
    made.InstanceCreationDate, made.InstanceCreationTime = day, clock
    made.SeriesDate, made.SeriesTime = day, clock
    for date_name, time_name in (
        ("ContentDate", "ContentTime"),
        ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
    ):
        if date_name in made:
            setattr(made, date_name, day)
            setattr(made, time_name, clock)
    for equipment in made.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = day + clock


def save(made: Dataset, path: Path) -> Path:
    """Write an object aside, then rename it.

    Raises:
        WriteError: It cannot be written; nothing half-written is left behind.
    """
    return write_whole_with(path, lambda aside: made.save_as(aside, enforce_file_format=True))
