"""`result.json`: a result as one flat, versioned document, described in docs/result_schema.md."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from chestct.analysis import ScanAnalysis
from chestct.explain.explanation import ScanExplanation
from chestct.preprocess.prepared import PreparedScan
from chestct.storage import write_whole
from chestct.writers.evidence import evidence_by_slice, evidence_peaks

FILE_NAME: Final = "result.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SliceRange(_Strict):
    """Slices of the scan, counted from 0 at the feet, both ends included."""

    first: int = Field(ge=0, description="First slice the network saw, counted from 0 at the feet.")
    last: int = Field(ge=0, description="Last slice the network saw.")
    total: int = Field(ge=1, description="Slices of the scan.")


class StageSeconds(_Strict):
    """Seconds per stage."""

    read: float = Field(ge=0, description="Reading and decoding the files.")
    prepare: float = Field(ge=0, description="Finding the lungs, resampling, scaling.")
    network: float = Field(ge=0, description="Running the network; 0 for an unsuitable scan.")
    total: float = Field(ge=0, description="From the path to the answer.")


class PeakRecord(_Strict):
    """A slice with more evidence than its neighbours."""

    index: int = Field(ge=0, description="Slice, counted from 0 at the feet.")
    uid: str | None = Field(description="Its SOPInstanceUID; null where there is none.")
    evidence: float = Field(ge=0, le=1, description="The slice's heat in `by_slice`.")


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
        description="Region to the share of its analysed lung that is involved, 0 to 1."
    )
    involved_ml: float = Field(ge=0, description="Volume of the involved lung in millilitres.")
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


class ResultDocument(_Strict):
    """The whole of `result.json`; `ResultDocument.model_json_schema()` is its JSON schema."""

    schema_version: Literal["1.2"] = Field(
        default="1.2",
        description="Version of this layout; the first number changes when it breaks.",
    )
    scan: str = Field(description="Last part of the path that was given.")
    decision: str = Field(description='The most probable label, or "unsuitable".')
    probabilities: dict[str, float] = Field(
        description="Label to probability, adding up to 1; empty for an unsuitable scan."
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
        "card; false where the card holds none."
    )
    not_written: dict[str, str] = Field(
        description="Output that was asked for and is missing beside this one to the reason."
    )


def result_document(analysis: ScanAnalysis) -> ResultDocument:
    """The document of one result, checked against its own schema."""
    first, last = analysis.analysed_slices
    fields = asdict(analysis.result)
    fields["timings_s"] = {stage: round(s, 4) for stage, s in fields["timings_s"].items()}
    total = len(analysis.prepared.lung_area)
    explained = analysis.explanation
    return ResultDocument(
        **fields,
        not_written=dict(analysis.not_written),
        analysed_slices=SliceRange(first=first, last=last, total=total),
        explanation=None if explained is None else _record(explained, analysis.prepared),
    )


def write_json(analysis: ScanAnalysis, folder: Path) -> Path:
    """Write `result.json`.

    Raises:
        WriteError: It cannot be written.
    """
    text = result_document(analysis).model_dump_json(indent=2)
    return write_whole(folder / FILE_NAME, f"{text}\n".encode())


def _record(explained: ScanExplanation, prepared: PreparedScan) -> ExplanationRecord:
    explanation, summary = explained.explanation, explained.summary
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
        shares={region: round(share, 6) for region, share in summary.shares.items()},
        involved_ml=round(summary.involved_ml, 3),
        by_slice=[
            None if math.isnan(heat) else round(heat, 6)
            for heat in evidence_by_slice(explained, prepared).tolist()
        ],
        peaks=[
            PeakRecord(index=peak.index, uid=peak.uid or None, evidence=round(peak.evidence, 6))
            for peak in evidence_peaks(explained, prepared)
        ],
    )
