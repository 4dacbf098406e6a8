"""What the program says about one scan: plain values, ready to be written anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from chestct.labels import (
    FINDINGS_APART,
    NO_FINDING,
    NOT_FOR_CLINICAL_USE,
    UNSUITABLE,
    LabelSet,
)

UNLIKE: Final = "uncertain: unlike the scans this classifier learned from"
"""What is said of an answer whose scan is too far from those of training."""


@dataclass(frozen=True)
class Provenance:
    """What has to be known to make the same result again; no patient name or identifier.

    Attributes:
        pixel_sha256: Hash of the decoded voxels and their grid, whatever the file format was.
        series_uid: DICOM SeriesInstanceUID, or None for other formats.
        classifier: Name of the classifier.
        classifier_version: Its version.
        weights_sha256: Hash of its weights file.
        trained_on: The card's own words on its training data.
        recipe: Name of the recipe the scan was prepared with.
        engine: Engine and precision that ran the network, such as "openvino bf16".
        chestct_version: Version of this program.
        temperature: What the logits were divided by before they became probabilities; one where
            none was fitted, which leaves them uncalibrated.
        lungs_are_given: Whether a mask of the lungs was given and none was searched for.
        lungs_weights_sha256: Hash of the lungs network's weights; None where none was run.
        lungs_engine: Engine and precision that ran it; None likewise.
    """

    pixel_sha256: str
    series_uid: str | None
    classifier: str
    classifier_version: str
    weights_sha256: str
    trained_on: str
    recipe: str
    engine: str
    chestct_version: str
    temperature: float = 1.0
    lungs_are_given: bool = False
    lungs_weights_sha256: str | None = None
    lungs_engine: str | None = None


@dataclass(frozen=True)
class Timings:
    """Seconds spent per stage."""

    read: float
    prepare: float
    network: float
    total: float


@dataclass(frozen=True)
class FindingAnswer:
    """What is said of one finding.

    Attributes:
        probability: Of this finding by itself.
        threshold: From which probability on the classifier's card calls it present.
        is_present: Whether the probability reaches the threshold.
        is_uncertain: Whether the scan is unlike those the classifier learned from; nothing else
            makes a finding uncertain.
    """

    probability: float
    threshold: float
    is_present: bool
    is_uncertain: bool


_MOST_NAMED: Final = 3
"""Findings that a verdict names."""


@dataclass(frozen=True, repr=False)
class ScanResult:
    """The answer for one scan.

    Attributes:
        scan: Last part of the path the user gave.
        probabilities: Label to probability, in the classifier's fixed label order, adding up to
            one, or of findings each by itself; empty when the scan is unsuitable.
        decision: The most probable label, the findings that are present, "no finding", or
            "unsuitable".
        unsuitable_reasons: Why the scan should not be classified; empty otherwise.
        warnings: What was noticed on the way, each saying what, where and how much.
        lung_volume_l: Volume of both lungs in litres, airways left out.
        scan_facts: Geometry and acquisition facts, ready to be shown.
        timings_s: Seconds per stage.
        provenance: What has to be known to make the result again.
        notice: The notice that stands on every output.
        is_uncertain: Whether the largest probability is below the threshold of the classifier's
            card, or the scan is unlike those it learned from; a warning says so too. Never where
            the card holds neither threshold.
        is_unlike: Whether the scan lies further than the card's threshold from the scans that the
            classifier learned from; such an answer is never certain, however probable.
        distance: That distance; None where the classifier cannot tell, or the scan is unsuitable.
        distance_percentile: Percentage of the scans that the threshold was chosen on that lie
            nearer; None likewise.
        labels: The classifier's classes, with what is said of each; None: plain names.
        findings: Finding to what is said of it, in label order; empty of a classifier of classes.
    """

    scan: str
    probabilities: dict[str, float]
    decision: str
    unsuitable_reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    lung_volume_l: float
    scan_facts: dict[str, str]
    timings_s: Timings
    provenance: Provenance
    notice: str = field(default=NOT_FOR_CLINICAL_USE)
    is_uncertain: bool = False
    is_unlike: bool = False
    distance: float | None = None
    distance_percentile: float | None = None
    labels: LabelSet | None = None
    findings: dict[str, FindingAnswer] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Scan, decision, probabilities and doubt on one line."""
        shares = ", ".join(f"{label} {share:.3f}" for label, share in self.probabilities.items())
        said = "; ".join(part for part in (shares, self.doubt) if part)
        return f"<ScanResult {self.scan}: {self.decision}" + (f" ({said})>" if said else ">")

    @property
    def label_set(self) -> LabelSet:
        """The classes, with what is said of each."""
        return self.labels or LabelSet.of_names(self.probabilities)

    @property
    def verdict(self) -> str:
        """The decision in words; of many findings the first ones."""
        if self.findings:
            return _findings_words(self.called, self.label_set)
        return self.label_set.words(self.decision)

    @property
    def called(self) -> tuple[str, ...]:
        """The label that was decided on, or the findings that are present."""
        if self.findings:
            return tuple(name for name, each in self.findings.items() if each.is_present)
        return (self.decision,)

    @property
    def doubt(self) -> str:
        """Why the decision is not certain, in a few words; empty where it is."""
        if self.is_unlike:
            return UNLIKE
        return "uncertain" if self.is_uncertain else ""

    @property
    def is_suitable(self) -> bool:
        """Whether the scan was classified."""
        return self.decision != UNSUITABLE


@dataclass(frozen=True)
class SliceAnswer:
    """What a classifier of single slices says of one picture.

    Attributes:
        picture: Where it lies.
        patient: Whose slice it is; empty where that is not known.
        probabilities: Of every label, in label order; empty where there is no answer.
        warnings: What to beware of.
        failure: Why there is no answer; empty where there is one.
    """

    picture: str
    patient: str = ""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class PatientAnswer:
    """What the answers on a patient's slices say of the patient.

    Attributes:
        patient: Who it is.
        probabilities: Of every label, in label order.
        num_slices: Slices with an answer.
        num_failed: Slices without one.
    """

    patient: str
    probabilities: Mapping[str, float]
    num_slices: int
    num_failed: int = 0


def likeliest(probabilities: Mapping[str, float]) -> str:
    """The label with the highest probability, the first of several; empty where there is none."""
    return max(probabilities, key=lambda label: probabilities[label], default="")


def verdict_of(decision: str, labels: LabelSet) -> str:
    """As `ScanResult.verdict`, where nothing but the decision is known."""
    if not labels.are_findings or decision == UNSUITABLE:
        return labels.words(decision)
    return _findings_words(() if decision == NO_FINDING else decision.split(FINDINGS_APART), labels)


def _findings_words(called: Sequence[str], labels: LabelSet) -> str:
    """The findings that are present; of many the first ones."""
    named = [labels.words(name) for name in called[:_MOST_NAMED]]
    words = FINDINGS_APART.join(named) or NO_FINDING.capitalize()
    more = len(called) - len(named)
    return f"{words} and {more} more" if more > 0 else words
