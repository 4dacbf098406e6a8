"""`report.dcm`: the answer as a DICOM Structured Report.

A Comprehensive 3D SR on template TID 1500 (PS3.16), preliminary and unverified as no radiologist
has seen it. The answer is its one finding, with the probabilities of all classes as measurements;
of several findings each that is present has a group of its own, and all others one together, with
their probabilities. There are groups for the lungs, the evidence, the parts of the lungs and each
slice in which the evidence peaks. They point at the segments and at the heat-map where those are
written too.

A report that says something else than the one it replaces names that as its predecessor.
Groups follow PS3.16 TID 1501 and TID 1411.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from chestct import __version__
from chestct.analysis import ScanAnalysis
from chestct.errors import printable
from chestct.explain.explanation import PeakSlice, ScanExplanation
from chestct.labels import LabelSet
from chestct.preprocess.oblique import slices_follow_body
from chestct.simulate.dicom_export import make_uid
from chestct.writers import WriteOptions
from chestct.writers.dicom_images import HEAT_MAP, SEGMENTATION, segments_of
from chestct.writers.dicom_objects import (
    ARTIFICIAL_INTELLIGENCE,
    LUNG,
    MANUFACTURER,
    NO_UNITS,
    Concept,
    Subject,
    coded,
    long_string,
    quantity_of,
    save,
)
from chestct.writers.evidence import evidence_peaks, heat_words, label_words

if TYPE_CHECKING:
    from highdicom import sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.dataset import Dataset

    Group = (
        sr.MeasurementsAndQualitativeEvaluations
        | sr.VolumetricROIMeasurementsAndQualitativeEvaluations
    )


_NAME: Final = "dicom_sr"
_FILE_NAME: Final = "report.dcm"
_SEGMENTATION_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.4"
_PARAMETRIC_MAP_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.30"

_OWN_SCHEME: Final = "99CHESTCT"
_CHEST_CT: Final[Concept] = ("24627-2", "LN", "CT Chest")
_PROBABILITY: Final[Concept] = ("122157", "DCM", "Probability")
_VOLUME: Final[Concept] = ("118565006", "SCT", "Volume")
_COMMENT: Final[Concept] = ("121106", "DCM", "Comment")
_QUALITY: Final[Concept] = ("111050", "DCM", "Quality Assessment")
_NOT_CLASSIFIED: Final[Concept] = ("unsuitable", _OWN_SCHEME, "Not suitable for classification")
_INVOLVED_SHARE: Final[Concept] = (
    "involved-share",
    _OWN_SCHEME,
    "Share of lung volume with evidence above threshold",
)
_INVOLVED_VOLUME: Final[Concept] = (
    "involved-volume",
    _OWN_SCHEME,
    "Lung volume with evidence above threshold",
)
_EVIDENCE: Final[Concept] = (
    "slice-evidence",
    _OWN_SCHEME,
    "Evidence in a slice, share of the largest lung section",
)
_PERCENT: Final[Concept] = ("%", "UCUM", "Percent")
_MILLILITER: Final[Concept] = ("mL", "UCUM", "milliliter")

_WHOLE: Final = "lungs"
"""Both lungs, among the regions."""
_LEFT: Final[Concept] = ("7771000", "SCT", "Left")
_RIGHT: Final[Concept] = ("24028007", "SCT", "Right")
_REGIONS: Final[dict[str, tuple[Concept, Concept | None]]] = {
    f"{side}{part}".strip(): (site, laterality)
    for side, laterality in (("", None), ("left ", _LEFT), ("right ", _RIGHT))
    for part, site in (
        ("lungs" if not side else "lung", LUNG),
        ("upper third", ("281392002", "SCT", "Upper zone of lung")),
        ("middle third", ("281393007", "SCT", "Middle zone of lung")),
        ("lower third", ("281394001", "SCT", "Lower zone of lung")),
    )
}
"""Region of an `EvidenceSummary` to anatomic site and side."""

_MAX_CODE: Final = 16


def write_structured_report(analysis: ScanAnalysis, folder: Path, options: WriteOptions) -> Path:
    """Write `report.dcm`; of a scan that was not classified it says why.

    Raises:
        NothingToWriteError: The scan was not read from DICOM.
        WriteError: It cannot be written, or the series lacks identifiers.
        MissingExtraError: highdicom is not installed.
    """
    subject = Subject.of(analysis, options)
    from highdicom import sr
    from pydicom.uid import ExplicitVRLittleEndian

    companions = _companions_of(analysis, options)
    own, predecessor = _after(subject.pointing_at(companions.objects), options.earlier)
    made = sr.Comprehensive3DSR(
        evidence=[*subject.headers(analysis.volume.grid), *_referred(subject, companions)],
        content=_content(analysis, subject, companions)[0],
        **own.origin(analysis, _NAME),
        is_complete=True,
        is_final=False,
        is_verified=False,
        requested_procedures=_requests(subject.header) or None,
        previous_versions=[predecessor] if predecessor else None,
        series_description="chestct report, not for clinical use",
        coding_schemes=_schemes_of(analysis.result.label_set),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    own.finish(made, _NAME)
    return save(made, folder / _FILE_NAME)


def _after(subject: Subject, earlier: Path | None) -> tuple[Subject, Dataset | None]:
    """The subject of a report that replaces an earlier one, and what that one's header says.

    A report that says the same again is the same one, with the same predecessor if any.
    """
    header = _header_of(earlier / _FILE_NAME) if earlier else None
    if header is None:
        return subject, None
    before = _predecessor_of(header)
    same = subject.pointing_at([before.SOPInstanceUID]) if before else subject
    if same.instance_uid(_NAME) == header.SOPInstanceUID:
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


def _content(
    analysis: ScanAnalysis, subject: Subject, companions: _Companions
) -> sr.MeasurementReport:
    from highdicom import sr

    return sr.MeasurementReport(
        observation_context=_observer(analysis),
        procedure_reported=coded(_CHEST_CT),
        imaging_measurements=_groups_of(analysis, subject, companions),
    )


def _observer(analysis: ScanAnalysis) -> sr.ObservationContext:
    """A program and a classifier looked at the images, and nobody else."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    provenance = analysis.result.provenance
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=make_uid(MANUFACTURER, provenance.weights_sha256),
        name=f"chestct {__version__}",
        manufacturer_name=MANUFACTURER,
        model_name=f"{provenance.classifier} {provenance.classifier_version}",
        serial_number=provenance.weights_sha256,
    )
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def _referred(subject: Subject, companions: _Companions) -> list[Dataset]:
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


def _finding_of(label: str, labels: LabelSet) -> Concept:
    """The finding that a class stands for."""
    own = (_code_of(label), _OWN_SCHEME, long_string(labels.words(label)))
    return labels.of(label).code or own


def _probability_of(label: str, labels: LabelSet) -> Concept:
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


def _schemes_of(labels: LabelSet) -> list[CodingSchemeIdentificationItem]:
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
            if scheme.startswith("99") and scheme != _OWN_SCHEME
        ),
    ]


@dataclass(frozen=True)
class _Companions:
    """The other objects written in the same call, as far as there are any.

    Attributes:
        objects: Writer name to SOP class.
        segments: Key of a segment to its number; empty without a segmentation.
    """

    objects: dict[str, str]
    segments: dict[str, int]

    @property
    def has_map(self) -> bool:
        """Whether the heat-map is written too."""
        return HEAT_MAP in self.objects


def _companions_of(analysis: ScanAnalysis, options: WriteOptions) -> _Companions:
    """Which objects the report can point at."""
    objects, segments = {}, {}
    if SEGMENTATION in options.names:
        found = segments_of(analysis)
        segments = {segment.key: number for number, segment in enumerate(found, 1)}
    if segments:
        objects[SEGMENTATION] = _SEGMENTATION_STORAGE
    if HEAT_MAP in options.names and analysis.explanation is not None:
        objects[HEAT_MAP] = _PARAMETRIC_MAP_STORAGE
    return _Companions(objects, segments)


def _groups_of(analysis: ScanAnalysis, subject: Subject, companions: _Companions) -> list[Group]:
    """All groups: the answer, lungs, evidence, regions of the lungs, peaks."""
    writer = _Groups(analysis, subject, companions)
    result, explained = analysis.result, analysis.explanation
    groups: list[Group] = writer.of_answers() if result.is_suitable else [writer.of_unsuitable()]
    groups.append(writer.of_lungs())
    if explained is not None and explained.speaks_for_disease:
        groups.append(writer.of_evidence(explained))
        groups += [writer.of_region(region, explained) for region in writer.regions(explained)]
        named = zip(_peak_names(analysis, explained), explained.summary.peaks, strict=True)
        groups += [writer.of_peak(name, peak, explained) for name, peak in named]
    return groups


@dataclass(frozen=True, eq=False)
class _Groups:
    """Makes groups about one analysis."""

    analysis: ScanAnalysis
    subject: Subject
    companions: _Companions

    def of_answers(self) -> list[Group]:
        """The decision, or the findings that are present and then those that are not."""
        if not self.analysis.result.findings:
            return [self._of_answer()]
        return self._of_findings()

    def _of_findings(self) -> list[Group]:
        result = self.analysis.result
        absent = {n: each for n, each in result.findings.items() if not each.is_present}
        groups = [
            self._of_probabilities(
                f"finding: {name}",
                _finding_of(name, result.label_set),
                {_PROBABILITY: result.findings[name].probability},
                [f"Called present from a probability of {result.findings[name].threshold:.3f} on."],
            )
            for name in result.called
        ]
        measured = {_probability_of(n, result.label_set): e.probability for n, e in absent.items()}
        if absent:
            below = ", ".join(
                f"{result.label_set.words(n)} below {e.threshold:.3f}" for n, e in absent.items()
            )
            said = [f"Not called present: {below}."]
            groups.append(self._of_probabilities("not called present", None, measured, said))
        return [_with_comments(groups[0], self._remarks()), *groups[1:]]

    def _of_answer(self) -> Group:
        """The decision as the one finding; probabilities, of other classes too, as measurements."""
        result = self.analysis.result
        others = {label: p for label, p in result.probabilities.items() if label != result.decision}
        measured = {_PROBABILITY: result.probabilities[result.decision]}
        for label in sorted(others, key=others.__getitem__, reverse=True):
            measured[_probability_of(label, result.label_set)] = others[label]
        finding = _finding_of(result.decision, result.label_set)
        return self._of_probabilities("answer", finding, measured, self._remarks())

    def _of_probabilities(
        self,
        key: str,
        finding: Concept | None,
        measured: Mapping[Concept, float],
        comments: Sequence[str],
    ) -> Group:
        """A group with a finding, or none, and what is as probable as that."""
        measurements = [_measured(name, round(p, 6), NO_UNITS) for name, p in measured.items()]
        group = self._group(key, finding, measurements, algorithm_id=self._algorithm())
        return _with_comments(group, comments)

    def _remarks(self) -> list[str]:
        """What stands beside every answer."""
        result = self.analysis.result
        trained_on = f"Classifier trained on: {result.provenance.trained_on}"
        doubt = [f"The decision is {result.doubt}."] if result.doubt else []
        return [result.notice, *doubt, trained_on, *result.warnings]

    def of_unsuitable(self) -> Group:
        """Why the scan was not classified."""
        from highdicom import sr

        result = self.analysis.result
        said = [sr.QualitativeEvaluation(coded(_QUALITY), coded(_NOT_CLASSIFIED))]
        group = sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking("not classified"),
            algorithm_id=self._algorithm(),
            qualitative_evaluations=said,
        )
        reasons = (result.notice, *result.unsuitable_reasons, *result.warnings)
        return _with_comments(group, reasons)

    def of_lungs(self) -> Group:
        """The lungs and their volume."""
        volume_ml = round(self.analysis.result.lung_volume_l * 1000.0, 1)
        measurements = [_measured(_VOLUME, volume_ml, _MILLILITER)]
        return self._region("lungs", LUNG, measurements)

    def of_evidence(self, explained: ScanExplanation) -> Group:
        """The evidence above the threshold: its volume, that of lung in it, and its share."""
        summary = explained.summary
        images = self._map()
        hot = sum(np.count_nonzero(plane >= summary.threshold) for plane in explained.heat)
        volumes = {
            _VOLUME: float(hot) * explained.heat.grid.voxel_ml,
            _INVOLVED_VOLUME: summary.involved_ml,
        }
        measurements = [
            _measured(name, round(volume_ml, 1), _MILLILITER, images)
            for name, volume_ml in volumes.items()
        ]
        if _WHOLE in summary.shares:
            measurements.append(self._share(_WHOLE, explained))
        group = self._region("evidence", quantity_of(explained.explanation.method), measurements)
        return _with_comments(group, [_heat_sentences(explained)])

    def regions(self, explained: ScanExplanation) -> list[str]:
        """Parts of the lungs that have a code and a share of their own."""
        return [name for name in explained.summary.shares if name in _REGIONS and name != _WHOLE]

    def of_region(self, name: str, explained: ScanExplanation) -> Group:
        """The share of one part of the lungs, in a group of its own.

        Readers (dcmqi among them) take sides and zones from groups and not from measurements.
        """
        kind = quantity_of(explained.explanation.method)
        shares = [self._share(name, explained)]
        return self._group(f"evidence in {name}", kind, shares, site=_REGIONS[name])

    def _share(self, name: str, explained: ScanExplanation) -> sr.Measurement:
        percent = round(100.0 * explained.summary.shares[name], 2)
        return _measured(_INVOLVED_SHARE, percent, _PERCENT, self._map())

    def of_peak(self, name: str, peak: PeakSlice, explained: ScanExplanation) -> Group:
        """One slice in which the evidence peaks, with its image."""
        from highdicom import sr

        header = self.subject.header_at(self.analysis.volume.grid, peak.index)
        image = sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)
        kind = quantity_of(explained.explanation.method)
        measurements = [_measured(_EVIDENCE, round(peak.evidence, 4), NO_UNITS)]
        return self._group(name, kind, measurements, source_images=[image])

    def _region(self, key: str, kind: Concept, measurements: Sequence[sr.Measurement]) -> Group:
        """A group about a segment, or about the same thing without one."""
        from highdicom import sr

        number = self.companions.segments.get(key)
        if number is None:
            return self._group(key, kind, measurements)
        segment = sr.ReferencedSegment(
            sop_class_uid=_SEGMENTATION_STORAGE,
            sop_instance_uid=self.subject.instance_uid(SEGMENTATION),
            segment_number=number,
            source_series=sr.SourceSeriesForSegmentation(self.subject.header.SeriesInstanceUID),
        )
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking(key),
            finding_type=coded(kind),
            finding_sites=[_site(LUNG)],
            measurements=measurements,
            referenced_segment=segment,
        )

    def _group(
        self,
        key: str,
        kind: Concept | None,
        measurements: Sequence[sr.Measurement],
        site: tuple[Concept, Concept | None] = (LUNG, None),
        **more: Any,
    ) -> Group:
        """A group about no segment; `more` is what highdicom takes besides."""
        from highdicom import sr

        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking(key),
            finding_type=None if kind is None else coded(kind),
            finding_sites=[_site(*site)],
            measurements=measurements,
            **more,
        )

    def _map(self) -> list[sr.SourceImageForMeasurement] | None:
        """The heat-map as what a measurement was taken from."""
        from highdicom import sr

        if not self.companions.has_map:
            return None
        uid = self.subject.instance_uid(HEAT_MAP)
        return [sr.SourceImageForMeasurement(_PARAMETRIC_MAP_STORAGE, uid)]

    def _tracking(self, key: str) -> sr.TrackingIdentifier:
        """A segment and the group about it have one identifier (PS3.16 TID 1411)."""
        from highdicom import sr

        return sr.TrackingIdentifier(uid=self.subject.other_uid(key), identifier=key)

    def _algorithm(self) -> sr.AlgorithmIdentification:
        from highdicom import sr

        provenance = self.analysis.result.provenance
        return sr.AlgorithmIdentification(
            name=provenance.classifier,
            version=provenance.classifier_version,
            parameters=[
                f"recipe: {provenance.recipe}",
                f"engine: {provenance.engine}",
                f"weights SHA-256: {provenance.weights_sha256}",
                f"temperature: {provenance.temperature:g}",
            ],
            family=coded(ARTIFICIAL_INTELLIGENCE),
            manufacturer="chestct",
        )


def _heat_sentences(explained: ScanExplanation) -> str:
    """What the measured part of the heat is and is not, for the report."""
    words, threshold = heat_words(explained), explained.summary.threshold
    is_classless = not label_words(explained)
    by = "" if is_classless else f", by {explained.explanation.method}"
    doubt = " It does not say which class it speaks for." if is_classless else ""
    return (
        f"{words}{by}: lung with a heat of {threshold:g} or more. It shows what the classifier"
        f" looked at and is not the outline of a disease.{doubt}"
    )


def _peak_names(analysis: ScanAnalysis, explained: ScanExplanation) -> list[str]:
    """A name for each peak: its slice counted from the feet, where slices follow the body."""
    if not slices_follow_body(analysis.prepared.scan_grid):
        return [f"peak {rank}" for rank in range(1, len(explained.summary.peaks) + 1)]
    peaks = evidence_peaks(explained, analysis.prepared)
    return [f"peak in slice {peak.index + 1}" for peak in peaks]


def _site(location: Concept, laterality: Concept | None = None) -> sr.FindingSite:
    from highdicom import sr

    return sr.FindingSite(coded(location), None if laterality is None else coded(laterality))


def _measured(
    name: Concept,
    value: float,
    unit: Concept,
    images: Sequence[sr.SourceImageForMeasurement] | None = None,
) -> sr.Measurement:
    from highdicom import sr

    return sr.Measurement(
        name=coded(name),
        value=value,
        unit=coded(unit),
        referenced_images=images,
    )


def _with_comments(group: Group, comments: Sequence[str]) -> Group:
    from highdicom import sr

    group[0].ContentSequence.extend(
        sr.TextContentItem(coded(_COMMENT), printable(comment), sr.RelationshipTypeValues.CONTAINS)
        for comment in comments
    )
    return group
