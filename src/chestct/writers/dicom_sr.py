"""`report.dcm`: the answer as a DICOM Structured Report.

A Comprehensive 3D SR on template TID 1500 (PS3.16), preliminary and unverified as no radiologist
has seen it: a group per class with its probability, one for the lungs, one for the evidence, one
for each slice in which it peaks. Groups point at the segments and at the heat-map where those are
written too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestct import __version__
from chestct.analysis import ScanAnalysis
from chestct.simulate.dicom_export import make_uid
from chestct.writers.dicom_codes import CT_PROCEDURE, coded, own_schemes
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
    own = subject.pointing_at(companions.objects)
    made = Comprehensive3DSR(
        evidence=[*headers_of(subject, analysis.volume.grid), *_referred(subject, companions)],
        content=_content(analysis, subject, companions)[0],
        **origin_of(analysis, own, NAME),
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="chestct report, not for clinical use",
        coding_schemes=own_schemes(),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    finish(made, own, NAME)
    return save(made, folder / FILE_NAME)


def _content(analysis: ScanAnalysis, subject: Subject, companions: Companions) -> MeasurementReport:
    from highdicom.sr import MeasurementReport

    return MeasurementReport(
        observation_context=_observer(analysis),
        procedure_reported=coded(CT_PROCEDURE),
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
