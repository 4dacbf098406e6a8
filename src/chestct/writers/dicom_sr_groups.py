"""The measurement groups of the structured report (PS3.16 TID 1501 and TID 1411)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from chestct.analysis import ScanAnalysis
from chestct.errors import printable
from chestct.explain.explanation import PeakSlice, ScanExplanation
from chestct.preprocess.oblique import slices_follow_body
from chestct.writers import dicom_parametric_map, dicom_seg
from chestct.writers.dicom_codes import (
    ARTIFICIAL_INTELLIGENCE,
    COMMENT,
    EVIDENCE,
    INVOLVED_SHARE,
    INVOLVED_VOLUME,
    LUNG,
    MILLILITER,
    NO_UNITS,
    NOT_CLASSIFIED,
    PERCENT,
    PROBABILITY,
    QUALITY,
    REGIONS,
    VOLUME,
    WHOLE,
    Concept,
    coded,
    finding_of,
    probability_of,
    quantity_of,
)
from chestct.writers.dicom_identity import Subject
from chestct.writers.dicom_planes import header_at
from chestct.writers.dicom_wording import heat_sentences
from chestct.writers.evidence import evidence_peaks
from chestct.writers.options import WriteOptions

if TYPE_CHECKING:
    from highdicom.sr import (
        AlgorithmIdentification,
        FindingSite,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        SourceImageForMeasurement,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    Group = (
        MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations
    )

SEGMENTATION_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.4"
PARAMETRIC_MAP_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.30"


@dataclass(frozen=True)
class Companions:
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
        return dicom_parametric_map.NAME in self.objects


def companions_of(analysis: ScanAnalysis, options: WriteOptions) -> Companions:
    """Which objects the report can point at."""
    objects, segments = {}, {}
    if dicom_seg.NAME in options.names:
        found = dicom_seg.segments_of(analysis)
        segments = {segment.key: number for number, segment in enumerate(found, 1)}
    if segments:
        objects[dicom_seg.NAME] = SEGMENTATION_STORAGE
    if dicom_parametric_map.NAME in options.names and analysis.explanation is not None:
        objects[dicom_parametric_map.NAME] = PARAMETRIC_MAP_STORAGE
    return Companions(objects, segments)


def groups_of(analysis: ScanAnalysis, subject: Subject, companions: Companions) -> list[Group]:
    """All groups: the answer, lungs, evidence, regions of the lungs, peaks."""
    writer = _Groups(analysis, subject, companions)
    result, explained = analysis.result, analysis.explanation
    groups: list[Group] = [writer.of_answer() if result.is_suitable else writer.of_unsuitable()]
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
    companions: Companions

    def of_answer(self) -> Group:
        """The decision as the one finding; probabilities, of other classes too, as measurements."""
        from highdicom.sr import MeasurementsAndQualitativeEvaluations

        result = self.analysis.result
        others = {label: p for label, p in result.probabilities.items() if label != result.decision}
        measured = [(PROBABILITY, result.probabilities[result.decision])]
        measured += [
            (probability_of(label), others[label])
            for label in sorted(others, key=others.__getitem__, reverse=True)
        ]
        group = MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking("answer"),
            finding_type=coded(finding_of(result.decision)),
            algorithm_id=self._algorithm(),
            finding_sites=[_site(LUNG)],
            measurements=[_measured(name, round(p, 6), NO_UNITS) for name, p in measured],
        )
        trained_on = f"Classifier trained on: {result.provenance.trained_on}"
        return _with_comments(group, [result.notice, trained_on, *result.warnings])

    def of_unsuitable(self) -> Group:
        """Why the scan was not classified."""
        from highdicom.sr import MeasurementsAndQualitativeEvaluations, QualitativeEvaluation

        result = self.analysis.result
        group = MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking("not classified"),
            algorithm_id=self._algorithm(),
            qualitative_evaluations=[QualitativeEvaluation(coded(QUALITY), coded(NOT_CLASSIFIED))],
        )
        reasons = (result.notice, *result.unsuitable_reasons, *result.warnings)
        return _with_comments(group, reasons)

    def of_lungs(self) -> Group:
        """The lungs and their volume."""
        volume_ml = round(self.analysis.result.lung_volume_l * 1000.0, 1)
        measurements = [_measured(VOLUME, volume_ml, MILLILITER)]
        return self._region("lungs", LUNG, measurements)

    def of_evidence(self, explained: ScanExplanation) -> Group:
        """The evidence above the threshold: its volume, that of lung in it, and its share."""
        summary = explained.summary
        images = self._map()
        hot = np.count_nonzero(explained.heat.voxels >= summary.threshold)
        volumes = {
            VOLUME: float(hot) * explained.heat.grid.voxel_ml,
            INVOLVED_VOLUME: summary.involved_ml,
        }
        measurements = [
            _measured(name, round(volume_ml, 1), MILLILITER, images)
            for name, volume_ml in volumes.items()
        ]
        if WHOLE in summary.shares:
            measurements.append(self._share(WHOLE, explained))
        group = self._region("evidence", quantity_of(explained.explanation.method), measurements)
        return _with_comments(group, [heat_sentences(explained)])

    def regions(self, explained: ScanExplanation) -> list[str]:
        """Parts of the lungs that have a code and a share of their own."""
        return [name for name in explained.summary.shares if name in REGIONS and name != WHOLE]

    def of_region(self, name: str, explained: ScanExplanation) -> Group:
        """The share of one part of the lungs, in a group of its own.

        Readers (dcmqi among them) take sides and zones from groups and not from measurements.
        """
        from highdicom.sr import MeasurementsAndQualitativeEvaluations

        return MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking(f"evidence in {name}"),
            finding_type=coded(quantity_of(explained.explanation.method)),
            finding_sites=[_site(*REGIONS[name])],
            measurements=[self._share(name, explained)],
        )

    def _share(self, name: str, explained: ScanExplanation) -> Measurement:
        percent = round(100.0 * explained.summary.shares[name], 2)
        return _measured(INVOLVED_SHARE, percent, PERCENT, self._map())

    def of_peak(self, name: str, peak: PeakSlice, explained: ScanExplanation) -> Group:
        """One slice in which the evidence peaks, with its image."""
        from highdicom.sr import (
            MeasurementsAndQualitativeEvaluations,
            SourceImageForMeasurementGroup,
        )

        header = header_at(self.subject, self.analysis.volume.grid, peak.index)
        return MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking(name),
            finding_type=coded(quantity_of(explained.explanation.method)),
            finding_sites=[_site(LUNG)],
            measurements=[_measured(EVIDENCE, round(peak.evidence, 4), NO_UNITS)],
            source_images=[
                SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)
            ],
        )

    def _region(self, key: str, kind: Concept, measurements: Sequence[Measurement]) -> Group:
        """A group about a segment, or about the same thing without one."""
        from highdicom.sr import (
            MeasurementsAndQualitativeEvaluations,
            ReferencedSegment,
            SourceSeriesForSegmentation,
            VolumetricROIMeasurementsAndQualitativeEvaluations,
        )

        number = self.companions.segments.get(key)
        if number is None:
            return MeasurementsAndQualitativeEvaluations(
                tracking_identifier=self._tracking(key),
                finding_type=coded(kind),
                finding_sites=[_site(LUNG)],
                measurements=measurements,
            )
        return VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking(key),
            finding_type=coded(kind),
            finding_sites=[_site(LUNG)],
            measurements=measurements,
            referenced_segment=ReferencedSegment(
                sop_class_uid=SEGMENTATION_STORAGE,
                sop_instance_uid=self.subject.instance_uid(dicom_seg.NAME),
                segment_number=number,
                source_series=SourceSeriesForSegmentation(self.subject.header.SeriesInstanceUID),
            ),
        )

    def _map(self) -> list[SourceImageForMeasurement] | None:
        """The heat-map as what a measurement was taken from."""
        from highdicom.sr import SourceImageForMeasurement

        if not self.companions.has_map:
            return None
        uid = self.subject.instance_uid(dicom_parametric_map.NAME)
        return [SourceImageForMeasurement(PARAMETRIC_MAP_STORAGE, uid)]

    def _tracking(self, key: str) -> TrackingIdentifier:
        """A segment and the group about it have one identifier (PS3.16 TID 1411)."""
        from highdicom.sr import TrackingIdentifier

        return TrackingIdentifier(uid=self.subject.other_uid(key), identifier=key)

    def _algorithm(self) -> AlgorithmIdentification:
        from highdicom.sr import AlgorithmIdentification

        provenance = self.analysis.result.provenance
        return AlgorithmIdentification(
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


def _peak_names(analysis: ScanAnalysis, explained: ScanExplanation) -> list[str]:
    """A name for each peak: its slice counted from the feet, where slices follow the body."""
    if not slices_follow_body(analysis.prepared.scan_grid):
        return [f"peak {rank}" for rank in range(1, len(explained.summary.peaks) + 1)]
    peaks = evidence_peaks(explained, analysis.prepared)
    return [f"peak in slice {peak.index + 1}" for peak in peaks]


def _site(location: Concept, laterality: Concept | None = None) -> FindingSite:
    from highdicom.sr import FindingSite

    return FindingSite(coded(location), None if laterality is None else coded(laterality))


def _measured(
    name: Concept,
    value: float,
    unit: Concept,
    images: Sequence[SourceImageForMeasurement] | None = None,
) -> Measurement:
    from highdicom.sr import Measurement

    return Measurement(
        name=coded(name),
        value=value,
        unit=coded(unit),
        referenced_images=images,
    )


def _with_comments(group: Group, comments: Sequence[str]) -> Group:
    from highdicom.sr import RelationshipTypeValues, TextContentItem

    group[0].ContentSequence.extend(
        TextContentItem(coded(COMMENT), printable(comment), RelationshipTypeValues.CONTAINS)
        for comment in comments
    )
    return group
