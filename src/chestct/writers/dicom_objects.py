"""What every DICOM object has: who and what it is about, codes, places of frames, dates, a file.

Patient, study and frame of reference are those of the source series; series and instance are new.
Identifiers are never made silently: an object that claims to belong to a study which nobody has
is worse than none. A SOPInstanceUID stands for one content (PS3.5 section 9): archives keep the
first of two objects that share one, or the last. So new identifiers depend on all that is written,
and a field added to the answer counts unless it is named here.

Concepts are of SNOMED CT, DICOM and UCUM where there is a code. What has no code anywhere is named
in a coding scheme of this project's own, which DICOM keeps the prefix 99 for (PS3.16 section 8.2);
the meaning beside a code is what viewers show.

An object whose frames are the volume's slices names for each frame the image it was made from.
Where the reader interpolated (slices missing or unevenly spaced, a leaning stack), the frames
have positions of their own in the same frame of reference, and name the series as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import numpy as np

from chestct import __version__
from chestct.analysis import ScanAnalysis, source_of
from chestct.errors import WriteError, printable
from chestct.explain.explanation import HeatMap, ScanExplanation
from chestct.extras import import_extra
from chestct.readers.dicom_source import SourceImage, SourceSeries
from chestct.simulate.dicom_export import make_uid
from chestct.storage import write_whole_with
from chestct.volume import Grid, Volume
from chestct.writers import NothingToWriteError, WriteOptions

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset


MANUFACTURER: Final = "chestct"
_SERIES_NUMBERS: Final[dict[str, int]] = {
    "dicom_seg": 9001,
    "dicom_parametric_map": 9002,
    "dicom_sr": 9003,
    "dicom_sc": 9004,
}
"""Series numbers of what is written; high, so that a list sorts them after the scanner's own."""

_CT_IMAGE_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
"""SOP class of a source image whose file does not say it."""

_LEVELS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_MUST_BE_THERE: Final = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
"""May be empty but not absent (type 2, PS3.3 C.7.1.1, C.7.2.1, C.7.4.1)."""
_NO_DATE: Final = datetime(1970, 1, 1)
_MAX_LONG_STRING: Final = 64


@dataclass(frozen=True, eq=False)
class Subject:
    """What an object is about, with every identifier it needs.

    Attributes:
        header: Patient, study and frame of reference, complete and valid.
        images: The source images, sorted along the slice normal, with valid identifiers.
        series: The source series as read.
        seed: What all new identifiers of this analysis are derived from.
        written: Date and time that stand in the object.
    """

    header: Dataset
    images: tuple[SourceImage, ...]
    series: SourceSeries
    seed: str
    written: datetime

    @classmethod
    def of(cls, analysis: ScanAnalysis, options: WriteOptions) -> Subject:
        """Find out what objects about this scan have to say and to refer to.

        Raises:
            NothingToWriteError: The scan was not read from DICOM.
            WriteError: The series lacks identifiers, and none may be made.
            MissingExtraError: highdicom is not installed.
            ReadError: The series is no longer there.
        """
        series = require_source(analysis.volume, analysis.path, makes_uids=options.makes_uids)
        pixels, missing = analysis.result.provenance.pixel_sha256, _missing(series)
        header = _complete(series.header, pixels, missing)
        images = _identified(series.images, pixels, is_made="SOPInstanceUID" in missing)
        seed = _seed_of(analysis, header, images)
        written = _date_of(header) if options.is_deterministic else _now(header)
        return cls(header, images, series, seed, written)

    def series_uid(self, name: str) -> str:
        """SeriesInstanceUID of what the writer of this name writes."""
        return make_uid(self.seed, name, "series")

    def instance_uid(self, name: str, number: int = 1) -> str:
        """SOPInstanceUID of the object with this number that the writer of this name writes."""
        return make_uid(self.seed, name, "instance", number)

    def pointing_at(self, names: Iterable[str]) -> Subject:
        """The subject of an object that refers to what these writers write.

        What it refers to stands in the object, so its own identifiers depend on that too.
        """
        return replace(self, seed="/".join((self.seed, *names)))

    def other_uid(self, *parts: object) -> str:
        """Any other identifier, of a segment or an organisation of dimensions."""
        return make_uid(self.seed, *parts)

    def planes(self, grid: Grid, indices: Sequence[int]) -> dict[str, Any]:
        """Source images of frames at slices of the volume and their place, as highdicom takes it.

        Args:
            grid: The volume's grid; it stacks slices along their normal, as the DICOM reader does.
            indices: Which of its slices become frames, ascending.
        """
        if self.series.is_exact:
            # Frame by frame its source image: highdicom need not look which belong together.
            return {"source_images": self.headers(grid, indices)}
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
            "source_images": self.headers(grid),
            "plane_positions": [
                PlanePositionSequence(patient, position)
                for position in grid.to_patient(places).tolist()
            ],
            "plane_orientation": PlaneOrientationSequence(patient, _cosines(grid)),
            "pixel_measures": PixelMeasuresSequence((height_mm, width_mm), depth_mm, depth_mm),
        }

    def headers(self, grid: Grid, indices: Sequence[int] | None = None) -> list[Dataset]:
        """What highdicom asks of the source images: the first has the patient's and study's header.

        Every slice stands there as a CT image of its own, whatever its file is: highdicom knows
        neither private classes nor series of single frames in files of their own. `_name_sources`
        then says what each is in truth.

        Args:
            grid: The volume's grid.
            indices: Which of the images; None for all.
        """
        chosen = self.images if indices is None else [self.images[index] for index in indices]
        headers = [_header(self, image, grid) for image in chosen]
        headers[0].update(self.header)
        return headers

    def image_at(self, grid: Grid, index: int) -> SourceImage:
        """The source image of a slice of the volume; the nearest where slices were interpolated."""
        place = grid.to_patient(np.array([float(index), 0.0, 0.0]))
        along = np.array([image.position_mm for image in self.images]) - place
        return self.images[int(np.abs(along @ np.asarray(grid.direction[0])).argmin())]

    def header_at(self, grid: Grid, index: int) -> Dataset:
        """As `headers`, of the one image that `image_at` gives."""
        return _header(self, self.image_at(grid, index), grid)

    def origin(self, analysis: ScanAnalysis, name: str, number: int = 1) -> dict[str, Any]:
        """What every object says of its series, itself and what made it, as highdicom takes it.

        Args:
            analysis: What it is made of.
            name: Name of its writer.
            number: Number of the object in its series.
        """
        provenance = analysis.result.provenance
        return {
            "series_instance_uid": self.series_uid(name),
            "series_number": _SERIES_NUMBERS[name],
            "sop_instance_uid": self.instance_uid(name, number),
            "instance_number": number,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": long_string(provenance.classifier),
            "software_versions": __version__,
            "device_serial_number": provenance.weights_sha256[:16],
        }

    def finish(self, made: Dataset, name: str) -> None:
        """Name the sources, and set the dates and what highdicom draws by chance, in place.

        Args:
            made: The object.
            name: Name of its writer.
        """
        _name_sources(made, self)
        _date(made, self)
        if "TimezoneOffsetFromUTC" in self.header:
            made.TimezoneOffsetFromUTC = self.header.TimezoneOffsetFromUTC
        if made.Modality != "SR":
            # An unpaired part of the body needs no laterality (PS3.3 C.7.3.1).
            made.BodyPartExamined = "CHEST"
            if "RequestAttributesSequence" in self.header:
                made.RequestAttributesSequence = self.header.RequestAttributesSequence
        if "ContentLabel" in made:
            # Type 2 (PS3.3 table 10-12): nobody, but said.
            made.ContentCreatorName = ""
        organisation = self.other_uid(name, "dimensions")
        for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
            for item in made.get(sequence, ()):
                item.DimensionOrganizationUID = organisation


def require_source(volume: Volume, path: Path | None, *, makes_uids: bool) -> SourceSeries:
    """The series behind a volume, if DICOM objects can be written about it.

    Raises:
        NothingToWriteError: The scan was not read from DICOM.
        WriteError: The series lacks identifiers, and none may be made.
        MissingExtraError: highdicom is not installed.
        ReadError: The series is no longer there.
    """
    import_extra("highdicom", extra="dicom")
    series = source_of(volume, path)
    if series is None:
        msg = (
            f"A DICOM object repeats who the patient is and names its source images; a scan read"
            f" from {volume.source.format} does not say it."
        )
        raise NothingToWriteError(msg)
    missing = _missing(series)
    if missing and not makes_uids:
        raise WriteError(_refusal(missing))
    return series


def long_string(text: str, *, ending: str = "") -> str:
    """A text that fits a long string (LO, PS3.5 6.2): 64 printable characters and no backslash.

    Args:
        text: What is cut if need be.
        ending: What comes after it and is never cut.
    """
    plain, room = printable(text).replace("\\", "/"), _MAX_LONG_STRING - len(ending)
    cut = plain if len(plain) <= room else f"{plain[: room - 3]}..."
    return cut + ending


def _missing(series: SourceSeries) -> tuple[str, ...]:
    """Which identifiers are absent or no identifiers at all."""
    missing = [name for name in _LEVELS if not _is_uid(str(series.header.get(name, "")))]
    files = {(image.uid, image.file) for image in series.images}
    are_valid = all(_is_uid(uid) for uid, _ in files)
    if not are_valid or len({uid for uid, _ in files}) < len(files):
        missing.append("SOPInstanceUID")
    return tuple(missing)


def _is_uid(text: str) -> bool:
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    return UID(text, validation_mode=IGNORE).is_valid


def _refusal(missing: tuple[str, ...]) -> str:
    names = " and ".join(missing)
    return (
        f"The series has no valid {names}, by which a DICOM object says what it belongs to."
        " --make-uids makes a consistent set (makes_uids=True in Python); an archive will then"
        " keep the objects together, but not beside the original series."
    )


def _complete(kept: Dataset, pixels: str, missing: tuple[str, ...]) -> Dataset:
    """The header with what must be there, identifiers made where they are missing."""
    from pydicom.dataset import Dataset

    header = Dataset()
    header.update(kept)
    for name in _MUST_BE_THERE:
        if name not in header:
            setattr(header, name, "")
    for name in _LEVELS:
        if name in missing:
            setattr(header, name, make_uid(pixels, name))
    # Whatever alphabet the names are in, this one has it.
    header.SpecificCharacterSet = "ISO_IR 192"
    return header


def _identified(
    images: tuple[SourceImage, ...], pixels: str, *, is_made: bool
) -> tuple[SourceImage, ...]:
    """The images with a class, and with identifiers that are made, one for each file."""
    return tuple(
        replace(
            image,
            sop_class=image.sop_class or _CT_IMAGE_STORAGE,
            uid=make_uid(pixels, "SOPInstanceUID", image.file) if is_made else image.uid,
        )
        for image in images
    )


def _now(header: Dataset) -> datetime:
    """The time of writing, in the time zone that the header says its times are in."""
    offset = str(header.get("TimezoneOffsetFromUTC") or "")
    zone = datetime.strptime(offset, "%z").tzinfo if offset else None
    return datetime.now(zone)


def _date_of(header: Dataset) -> datetime:
    """When the series was made, as far as its header says."""
    for date_name, time_name in (
        ("SeriesDate", "SeriesTime"),
        ("AcquisitionDate", "AcquisitionTime"),
        ("StudyDate", "StudyTime"),
    ):
        date, time = str(header.get(date_name) or ""), str(header.get(time_name) or "")
        clock = time[:6] if len(time) >= 6 else "000000"
        try:
            return datetime.strptime(date + clock, "%Y%m%d%H%M%S")
        except ValueError:
            continue
    return _NO_DATE


_NOT_WRITTEN: Final = ("scan", "scan_facts", "timings_s")
"""Fields of a result that stand in no object: they differ where a folder or a clock does."""

_PROGRAMS: Final = ("highdicom", "pydicom", "pillow")
"""What encodes and draws: each may do it differently in another version."""

_DIGESTS: Final[WeakKeyDictionary[Volume | HeatMap, str]] = WeakKeyDictionary()
"""Of voxels that were hashed before: four writers ask for those of one heat-map in turn."""


def _seed_of(analysis: ScanAnalysis, header: Dataset, images: tuple[SourceImage, ...]) -> str:
    """What all new identifiers of an analysis are derived from, by the header to be written."""
    digest = hashlib.sha256(_encoded(header))
    for part in (images, *_contents(analysis)):
        digest.update(f"/{part!r}".encode())
    return digest.hexdigest()


def _contents(analysis: ScanAnalysis) -> Iterator[object]:
    """Everything else that reaches an object, as values whose text is all there is to them."""
    yield __version__, [version(name) for name in _PROGRAMS]
    yield [item for item in vars(analysis.result).items() if item[0] not in _NOT_WRITTEN]
    yield analysis.volume.grid, analysis.analysed_slices
    yield analysis.prepared.recipe.lungs, _digest_of(analysis.prepared.scan_lungs)
    if analysis.explanation is not None:
        yield from _explained(analysis.explanation)


def _explained(explained: ScanExplanation) -> Iterator[object]:
    explanation, summary = explained.explanation, explained.summary
    yield explanation.method, explanation.layer, explanation.label
    yield summary.threshold, summary.shares, summary.involved_ml, summary.peaks
    yield _digest_of(explained.heat)


def _digest_of(volume: Volume | HeatMap) -> str:
    """SHA-256 of a volume's voxels, however they are stored."""
    if volume not in _DIGESTS:
        digest = hashlib.sha256()
        for index, plane in enumerate(volume if isinstance(volume, HeatMap) else volume.voxels):
            if index == 0:
                digest.update(plane.dtype.str.encode())
            digest.update(np.ascontiguousarray(plane).data)
        _DIGESTS[volume] = digest.hexdigest()
    return _DIGESTS[volume]


def _encoded(header: Dataset) -> bytes:
    """A header as it stands in a file, Explicit VR Little Endian."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, header)
    return stream.getvalue()


Concept = tuple[str, str, str]
"""Value, scheme and meaning."""

LUNG: Final[Concept] = ("39607008", "SCT", "Lung")
ARTIFICIAL_INTELLIGENCE: Final[Concept] = ("123110", "DCM", "Artificial Intelligence")
NO_UNITS: Final[Concept] = ("1", "UCUM", "no units")

_CLASS_ACTIVATION: Final[Concept] = ("130403", "DCM", "Gradient-weighted class activation")
_VISUAL_EXPLANATION: Final[Concept] = ("130401", "DCM", "Visual explanation")
_QUANTITIES: Final[dict[str, Concept]] = {
    "gradcam": _CLASS_ACTIVATION,
    "gradcam++": _CLASS_ACTIVATION,
    "layercam": _CLASS_ACTIVATION,
    "occlusion": ("130404", "DCM", "Saliency"),
}
"""Explanation to what its values are; every other method is a "Visual explanation"."""


def coded(concept: Concept) -> CodedConcept:
    """A concept as highdicom takes it."""
    from highdicom.sr import CodedConcept

    value, scheme, meaning = concept
    return CodedConcept(value, scheme, meaning)


def quantity_of(method: str) -> Concept:
    """What the values of a heat-map of this method are."""
    return _QUANTITIES.get(method, _VISUAL_EXPLANATION)


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


def _cosines(grid: Grid) -> list[float]:
    """Directions of rows and columns; a zero has no sign."""
    return [value + 0.0 for value in (*grid.direction[2], *grid.direction[1])]


def _header(subject: Subject, image: SourceImage, grid: Grid) -> Dataset:
    """The stand-in for one source image."""
    from pydicom.dataset import Dataset

    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = _CT_IMAGE_STORAGE, _stand_in_uid(image)
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
