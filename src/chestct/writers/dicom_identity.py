"""Who and what a written DICOM object is about: identifiers, headers and dates.

Patient, study and frame of reference are those of the source series; series and instance are new.
Identifiers are never made silently: an object that claims to belong to a study which nobody has
is worse than none.

A SOPInstanceUID stands for one content (PS3.5 section 9): archives keep the first of two objects
that share one, or the last. So new identifiers depend on all that is written, and a field added to
the answer counts unless it is named here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import numpy as np

from chestct import __version__
from chestct.analysis import ScanAnalysis, source_of
from chestct.errors import WriteError, printable
from chestct.explain.explanation import HeatMap, ScanExplanation
from chestct.extras import import_extra
from chestct.readers.dicom_source import SourceImage, SourceSeries
from chestct.simulate.dicom_export import make_uid
from chestct.volume import Volume
from chestct.writers import NothingToWriteError, WriteOptions

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


MANUFACTURER: Final = "chestct"
SERIES_NUMBERS: Final[dict[str, int]] = {
    "dicom_seg": 9001,
    "dicom_parametric_map": 9002,
    "dicom_sr": 9003,
    "dicom_sc": 9004,
}
"""Series numbers of what is written; high, so that a list sorts them after the scanner's own."""

CT_IMAGE_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
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


def subject_of(analysis: ScanAnalysis, options: WriteOptions) -> Subject:
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
    return Subject(header, images, series, seed, written)


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


def left_out_words(series: SourceSeries) -> str:
    """A sentence on what the series says and its objects cannot; empty where there is nothing."""
    names = " and ".join(series.left_out)
    return names and (
        f"The DICOM objects do not repeat the series' {names}: too long or malformed for the DICOM"
        " standard. Where an archive files by it, correct the series and write them again."
    )


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
            sop_class=image.sop_class or CT_IMAGE_STORAGE,
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
    """What all new identifiers of an analysis are derived from.

    Args:
        analysis: The scan and its answer.
        header: Patient, study and frame of reference, as they will be written.
        images: The source images.
    """
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
