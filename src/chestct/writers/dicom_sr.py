"""`report.dcm`: the answer as a DICOM Structured Report.

A Comprehensive 3D SR on template TID 1500 (PS3.16), preliminary and unverified as no radiologist
has seen it. The answer is its one finding, with the probabilities of all classes as measurements;
there are groups for the lungs, the evidence, the parts of the lungs and each slice in which the
evidence peaks. They point at the segments and at the heat-map where those are written too.

A report that says something else than the one it replaces names that as its predecessor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestct import __version__
from chestct.analysis import ScanAnalysis
from chestct.simulate.dicom_export import make_uid
from chestct.writers.dicom_codes import CHEST_CT, coded, own_schemes
from chestct.writers.dicom_files import finish, origin_of, save
from chestct.writers.dicom_identity import (
    MANUFACTURER,
    Subject,
    subject_of,
)
from chestct.writers.dicom_planes import headers_of
from chestct.writers.dicom_sr_groups import Companions, companions_of, groups_of
from chestct.writers.options import WriteOptions

if TYPE_CHECKING:
    from highdicom.sr import MeasurementReport, ObservationContext
    from pydicom.dataset import Dataset

NAME: Final = "dicom_sr"
FILE_NAME: Final = "report.dcm"


def write_structured_report(analysis: ScanAnalysis, folder: Path, options: WriteOptions) -> Path:
    """Write `report.dcm`; of a scan that was not classified it says why.

    Raises:
        NothingToWriteError: The scan was not read from DICOM.
        WriteError: It cannot be written, or the series lacks identifiers.
        MissingExtraError: highdicom is not installed.
    """
    subject = subject_of(analysis, options)
    from highdicom.sr import Comprehensive3DSR
    from pydicom.uid import ExplicitVRLittleEndian

    companions = companions_of(analysis, options)
    own, predecessor = _after(subject.pointing_at(companions.objects), options.earlier)
    made = Comprehensive3DSR(
        evidence=[*headers_of(subject, analysis.volume.grid), *_referred(subject, companions)],
        content=_content(analysis, subject, companions)[0],
        **origin_of(analysis, own, NAME),
        is_complete=True,
        is_final=False,
        is_verified=False,
        requested_procedures=_requests(subject.header) or None,
        previous_versions=[predecessor] if predecessor else None,
        series_description="chestct report, not for clinical use",
        coding_schemes=own_schemes(),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    finish(made, own, NAME)
    return save(made, folder / FILE_NAME)


def _after(subject: Subject, earlier: Path | None) -> tuple[Subject, Dataset | None]:
    """The subject of a report that replaces an earlier one, and what that one's header says.

    A report that says the same again is the same one, with the same predecessor if any.
    """
    header = _header_of(earlier / FILE_NAME) if earlier else None
    if header is None:
        return subject, None
    before = _predecessor_of(header)
    same = subject.pointing_at([before.SOPInstanceUID]) if before else subject
    if same.instance_uid(NAME) == header.SOPInstanceUID:
        return same, before
    return subject.pointing_at([header.SOPInstanceUID]), header


def _header_of(path: Path) -> Dataset | None:
    """What identifies a report of an earlier run; None where there is none that can be read."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    levels = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
    try:
        header = dcmread(path, specific_tags=[*levels, "PredecessorDocumentsSequence"])
    except (OSError, InvalidDicomError, ValueError):
        return None
    return header if all(header.get(name) for name in levels) else None


def _predecessor_of(header: Dataset) -> Dataset | None:
    from pydicom.dataset import Dataset

    for study in header.get("PredecessorDocumentsSequence", ()):
        for series in study.ReferencedSeriesSequence:
            for reference in series.ReferencedSOPSequence:
                found = Dataset()
                found.StudyInstanceUID = study.StudyInstanceUID
                found.SeriesInstanceUID = series.SeriesInstanceUID
                found.SOPClassUID = reference.ReferencedSOPClassUID
                found.SOPInstanceUID = reference.ReferencedSOPInstanceUID
                return found
    return None


def _requests(header: Dataset) -> list[Dataset]:
    """What was asked for with the source series (PS3.3 table C.17-2); all of it may be empty."""
    from pydicom.dataset import Dataset

    requests = []
    for attributes in header.get("RequestAttributesSequence", ()):
        request = Dataset()
        request.StudyInstanceUID = header.StudyInstanceUID
        request.ReferencedStudySequence = []
        request.PlacerOrderNumberImagingServiceRequest = ""
        request.FillerOrderNumberImagingServiceRequest = ""
        request.AccessionNumber = attributes.get("AccessionNumber", header.AccessionNumber)
        request.RequestedProcedureID = attributes.get("RequestedProcedureID", "")
        request.RequestedProcedureDescription = attributes.get("RequestedProcedureDescription", "")
        codes = attributes.get("RequestedProcedureCodeSequence", [])
        request.RequestedProcedureCodeSequence = list(codes)
        requests.append(request)
    return requests


def _content(analysis: ScanAnalysis, subject: Subject, companions: Companions) -> MeasurementReport:
    from highdicom.sr import MeasurementReport

    return MeasurementReport(
        observation_context=_observer(analysis),
        procedure_reported=coded(CHEST_CT),
        imaging_measurements=groups_of(analysis, subject, companions),
    )


def _observer(analysis: ScanAnalysis) -> ObservationContext:
    """A program and a classifier looked at the images, and nobody else."""
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes

    provenance = analysis.result.provenance
    device = DeviceObserverIdentifyingAttributes(
        uid=make_uid(MANUFACTURER, provenance.weights_sha256),
        name=f"chestct {__version__}",
        manufacturer_name=MANUFACTURER,
        model_name=f"{provenance.classifier} {provenance.classifier_version}",
        serial_number=provenance.weights_sha256,
    )
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def _referred(subject: Subject, companions: Companions) -> list[Dataset]:
    """The objects that the report points at, beside the images."""
    from pydicom.dataset import Dataset

    referred = []
    for name, sop_class in companions.objects.items():
        item = Dataset()
        item.SOPClassUID, item.SOPInstanceUID = sop_class, subject.instance_uid(name)
        item.StudyInstanceUID = subject.header.StudyInstanceUID
        item.SeriesInstanceUID = subject.series_uid(name)
        referred.append(item)
    return referred
