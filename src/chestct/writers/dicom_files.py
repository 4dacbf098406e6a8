"""Finish a DICOM object that highdicom made, and put it where the user wants it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestct import __version__
from chestct.analysis import ScanAnalysis
from chestct.storage import write_whole_with
from chestct.writers.dicom_identity import MANUFACTURER, SERIES_NUMBERS, Subject, long_string
from chestct.writers.dicom_planes import name_sources

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


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
    name_sources(made, subject)
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
