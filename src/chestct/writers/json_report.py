"""`result.json`: a result as one flat, versioned document, described in docs/result_schema.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_serializer,
    model_validator,
)

from chestct.analysis import ScanAnalysis
from chestct.explain.explanation import ScanExplanation
from chestct.labels import ClassLabel, LabelSet
from chestct.pictures import instance_numbers
from chestct.preprocess.prepare import PreparedScan
from chestct.result import FindingAnswer, Provenance, ScanResult, Timings
from chestct.storage import write_whole
from chestct.writers import WriteOptions
from chestct.writers.evidence import evidence_by_slice, evidence_peaks, hottest_slice

_FILE_NAME: Final = "result.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SliceRange(_Strict):
    """Slices of the scan, counted from 1 at the feet as in the report, both ends included."""

    first: int = Field(ge=1, description="First slice the network saw, counted from 1 at the feet.")
    last: int = Field(ge=1, description="Last slice the network saw.")
    total: int = Field(ge=1, description="Slices of the scan.")


class StageSeconds(_Strict):
    """Seconds per stage."""

    read: float = Field(ge=0, description="Reading and decoding the files.")
    prepare: float = Field(ge=0, description="Finding the lungs, resampling, scaling.")
    network: float = Field(ge=0, description="Running the network; 0 for an unsuitable scan.")
    total: float = Field(ge=0, description="From the path to the answer.")


class PeakRecord(_Strict):
    """A slice with more evidence than its neighbours."""

    slice: int = Field(ge=1, description="Slice, counted from 1 at the feet.")
    position_mm: float = Field(description="Where it lies along the body: patient z.")
    uid: str | None = Field(description="Its SOPInstanceUID; null where there is none.")
    instance_number: str | None = Field(description="Its InstanceNumber; null likewise.")
    evidence: float = Field(ge=0, le=1, description="The slice's heat in `by_slice`.")


class HottestRecord(_Strict):
    """The hottest place in the lungs."""

    position_mm: tuple[float, float, float] = Field(
        description="Patient position: x to the left, y to the back, z to the head."
    )
    slice: int = Field(ge=1, description="Slice it lies in, counted from 1 at the feet.")
    instance_number: str | None = Field(description="Its InstanceNumber; null where there is none.")


class ExplanationRecord(_Strict):
    """Where in the lungs the evidence for a class lies."""

    method: str = Field(description="How the heat-map was made.")
    layer: str | None = Field(description="Layer of the network it was taken from, if any.")
    label: str = Field(description="The class it speaks for.")
    scale: float = Field(ge=0, description="What a heat of 1 stands for, in the method's unit.")
    cell_mm: tuple[float, float, float] = Field(
        description="Places closer than this cannot be told apart: depth, height, width of the "
        "network's input."
    )
    threshold: float = Field(ge=0, le=1, description="Heat from which lung counts as involved.")
    shares: dict[str, float] = Field(
        description="Region to the share of its analysed lung that is involved, 0 to 1; empty for "
        "a map that speaks for the negative class."
    )
    involved_ml: float | None = Field(
        ge=0,
        description="Volume of the involved lung in millilitres; null for a map that speaks for "
        "the negative class.",
    )
    hottest: HottestRecord | None = Field(
        description="The hottest place in the lungs; null where there is no evidence in them."
    )
    by_slice: list[float | None] = Field(
        description="Heat summed over the lungs of each slice from the feet, in parts of the "
        "largest lung section; null: not analysed or without lung."
    )
    peaks: list[PeakRecord] = Field(description="Slices with the most evidence, strongest first.")


class ProvenanceRecord(_Strict):
    """What has to be known to make the same result again."""

    pixel_sha256: str = Field(description="SHA-256 of the decoded voxels and their grid.")
    series_uid: str | None = Field(description="DICOM SeriesInstanceUID; null for other formats.")
    classifier: str = Field(description="Name of the classifier.")
    classifier_version: str = Field(description="Version of the classifier.")
    weights_sha256: str = Field(description="SHA-256 of its weights file.")
    trained_on: str = Field(description="What it was trained on, in the words of its card.")
    recipe: str = Field(description="Recipe the scan was prepared with.")
    engine: str = Field(description="Engine and precision that ran the network.")
    chestct_version: str = Field(description="Version of this program.")
    temperature: float = Field(
        gt=0, description="What the logits were divided by; 1: not calibrated."
    )
    lungs_are_given: bool = Field(description="Whether a mask of the lungs was given.")
    lungs_weights_sha256: str | None = Field(
        description="SHA-256 of the lungs network's weights file; null where none was run."
    )
    lungs_engine: str | None = Field(
        description="Engine and precision that ran the lungs network; null likewise."
    )


class FindingRecord(_Strict):
    """What is said of one finding."""

    probability: float = Field(ge=0, le=1, description="Of this finding by itself.")
    threshold: float = Field(
        ge=0, le=1, description="From which probability on the classifier's card calls it present."
    )
    is_present: bool = Field(description="Whether the probability reaches the threshold.")
    is_uncertain: bool = Field(
        description="Whether the scan is unlike those the classifier learned from."
    )


class ClassRecord(_Strict):
    """What is said of one class or finding of the classifier."""

    wording: str = Field(description="What a report calls it.")
    color: str | None = Field(
        pattern="^#[0-9a-fA-F]{6}$",
        description='Colour of its bar, such as "#0072B2"; null: the report\'s own.',
    )
    is_negative: bool = Field(description="Whether it means that nothing was found.")


class ResultDocument(_Strict):
    """The whole of `result.json`; `ResultDocument.model_json_schema()` is its JSON schema."""

    schema_version: Literal["2.1", "2.2", "2.3"] = Field(
        default="2.3",
        description="Version of this layout; the first number changes when it breaks.",
    )
    scan: str = Field(description="Last part of the path that was given.")
    decision: str = Field(
        description='The most probable label, or "unsuitable"; of findings those that are present, '
        'with "; " between them, or "no finding".'
    )
    probabilities: dict[str, float] = Field(
        description="Label to probability, adding up to 1, of findings each by itself; empty for "
        "an unsuitable scan."
    )
    unsuitable_reasons: list[str] = Field(description="Why the scan was not classified.")
    warnings: list[str] = Field(description="What was noticed on the way.")
    lung_volume_l: float = Field(ge=0, description="Volume of both lungs in litres.")
    analysed_slices: SliceRange = Field(description="Which slices the network saw, or would have.")
    explanation: ExplanationRecord | None = Field(
        description="Where the evidence lies; null where it was not asked for."
    )
    scan_facts: dict[str, str] = Field(
        description="Geometry and acquisition, as text; only the facts listed below."
    )
    timings_s: StageSeconds = Field(description="Seconds spent on each stage.")
    provenance: ProvenanceRecord = Field(description="What it takes to make the result again.")
    notice: str = Field(description="The notice that stands on every output.")
    is_uncertain: bool = Field(
        description="Whether the largest probability is below the threshold of the classifier's "
        "card, or the scan is unlike those it learned from; false where the card holds neither."
    )
    is_unlike: bool = Field(
        description="Whether the scan is unlike those the classifier learned from: its distance is "
        "beyond the threshold of the card. Such an answer is never certain."
    )
    distance: float | None = Field(
        ge=0,
        description="Distance of the scan's pooled features from those of the training scans; "
        "null where the classifier's folder does not tell, or the scan was not classified.",
    )
    distance_percentile: float | None = Field(
        ge=0,
        le=100,
        description="Percentage of the scans that the threshold was chosen on that lie nearer; or "
        "null.",
    )
    not_written: dict[str, str] = Field(
        description="Output that was asked for and is missing beside this one to the reason."
    )
    findings: dict[str, FindingRecord] | None = Field(
        default=None,
        description="Finding to what is said of it, in the classifier's order; missing where it "
        "tells classes, or the scan was not classified.",
    )

    classes: dict[str, ClassRecord] | None = Field(
        default=None,
        description="Class or finding of the classifier to what is said of it, in its order; "
        "missing before version 2.3.",
    )

    @model_serializer(mode="wrap")
    def _of_its_kind(self, as_values: Callable[[BaseModel], dict[str, Any]]) -> dict[str, Any]:
        left_out = {name for name in ("findings", "classes") if getattr(self, name) is None}
        return {name: v for name, v in as_values(self).items() if name not in left_out}

    @model_validator(mode="after")
    def _has_possible_classes(self) -> ResultDocument:
        self._label_set()
        return self

    def _label_set(self) -> LabelSet:
        """The classes with what is said of each; of older documents what their names say."""
        are_findings = self.findings is not None
        if self.classes is None:
            return LabelSet.of_names(self.probabilities, are_findings=are_findings)
        classes = (
            ClassLabel(name, one.wording, negative=one.is_negative, color=one.color or "")
            for name, one in self.classes.items()
        )
        return LabelSet(tuple(classes), are_findings)

    def as_result(self) -> ScanResult:
        """The answer that was written, without the codes of its classes."""
        fields = self.model_dump(include={each.name for each in dataclass_fields(ScanResult)})
        findings = fields.pop("findings", {}).items()
        fields |= {
            "unsuitable_reasons": tuple(self.unsuitable_reasons),
            "warnings": tuple(self.warnings),
            "timings_s": Timings(**fields["timings_s"]),
            "provenance": Provenance(**fields["provenance"]),
            "findings": {name: FindingAnswer(**each) for name, each in findings},
        }
        return ScanResult(**fields, labels=self._label_set())


def result_document(analysis: ScanAnalysis) -> ResultDocument:
    """The document of one result, checked against its own schema."""
    first, last = analysis.analysed_slices
    fields = asdict(analysis.result)
    del fields["labels"]
    fields["findings"] = fields["findings"] or None
    fields["timings_s"] = {stage: round(s, 4) for stage, s in fields["timings_s"].items()}
    total = len(analysis.prepared.lung_area)
    explained = analysis.explanation
    return ResultDocument(
        **fields,
        not_written=dict(analysis.not_written),
        classes={
            one.name: ClassRecord(
                wording=one.words, color=one.color or None, is_negative=one.negative
            )
            for one in analysis.result.label_set.classes
        },
        analysed_slices=SliceRange(first=first + 1, last=last + 1, total=total),
        explanation=None if explained is None else _record(explained, analysis),
    )


def write_json(analysis: ScanAnalysis, folder: Path, _: WriteOptions | None = None) -> Path:
    """Write `result.json`.

    Raises:
        WriteError: It cannot be written.
    """
    text = result_document(analysis).model_dump_json(indent=2)
    return write_whole(folder / _FILE_NAME, f"{text}\n".encode())


def _record(explained: ScanExplanation, analysis: ScanAnalysis) -> ExplanationRecord:
    explanation, summary, prepared = explained.explanation, explained.summary, analysis.prepared
    is_disease = explained.speaks_for_disease
    depth, height, width = (
        round(cell * spacing, 2)
        for cell, spacing in zip(explanation.cell, prepared.grid.spacing_mm, strict=True)
    )
    return ExplanationRecord(
        method=explanation.method,
        layer=explanation.layer or None,
        label=explanation.label,
        scale=explanation.scale,
        cell_mm=(depth, height, width),
        threshold=summary.threshold,
        shares={region: round(share, 6) for region, share in summary.shares.items() if is_disease},
        involved_ml=round(summary.involved_ml, 3) if is_disease else None,
        hottest=_hottest(analysis),
        by_slice=[
            None if math.isnan(heat) else round(heat, 6)
            for heat in evidence_by_slice(explained, prepared).tolist()
        ],
        peaks=[
            PeakRecord(
                slice=peak.index + 1,
                position_mm=round(_height_mm(prepared, peak.index), 3),
                uid=peak.uid or None,
                instance_number=_instance_number(analysis, peak.index),
                evidence=round(peak.evidence, 6),
            )
            for peak in evidence_peaks(explained, prepared)
        ],
    )


def _hottest(analysis: ScanAnalysis) -> HottestRecord | None:
    explained, index = analysis.explanation, hottest_slice(analysis)
    if explained is None or explained.summary.hottest_mm is None or index is None:
        return None
    x, y, z = (round(each, 3) for each in explained.summary.hottest_mm)
    return HottestRecord(
        position_mm=(x, y, z),
        slice=index + 1,
        instance_number=_instance_number(analysis, index),
    )


def _height_mm(prepared: PreparedScan, index: int) -> float:
    """Patient z of the middle of a slice counted from the feet."""
    grid = prepared.body_grid
    middle = np.array([index, (grid.shape[1] - 1) / 2, (grid.shape[2] - 1) / 2])
    return float(grid.to_patient(middle)[2])


def _instance_number(analysis: ScanAnalysis, index: int) -> str | None:
    numbers = instance_numbers(analysis.volume)
    return (numbers[index] or None) if numbers else None
