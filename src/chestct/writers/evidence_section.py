"""The part of the report that shows where the network looked, and says what that means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from chestct.analysis import ScanAnalysis
from chestct.explain.evidence import share_outside
from chestct.explain.explanation import PeakSlice, ScanExplanation
from chestct.heat_pictures import heat_color
from chestct.labels import NORMAL
from chestct.writers.body_curves import EvidenceCurve, evidence_curve
from chestct.writers.evidence import (
    evidence_by_slice,
    evidence_peaks,
    strip_slices,
    telling_slices,
)
from chestct.writers.page_pictures import EmbeddedPicture, PictureMaker
from chestct.writers.wording import (
    CLASSLESS_METHODS,
    METHOD_NAMES,
    is_trained_on_simulation,
    percent,
    verdict_of,
)

NUM_STRIP: Final = 8
_LEGEND_STEPS: Final = 12
_ROWS: Final[dict[str, str]] = {
    "Upper third": "upper third",
    "Middle third": "middle third",
    "Lower third": "lower third",
    "Whole lung": "lung",
}
_HATCHED: Final = "Hatched parts were not given to the network: nothing is known about them."
_COLUMNS: Final[dict[str, str]] = {"Right": "right ", "Left": "left ", "Both": ""}


@dataclass(frozen=True)
class ShareCell:
    """One region of the table.

    Attributes:
        words: The share in words; empty where the region holds no lung.
        width: Length of its bar in per cent.
    """

    words: str
    width: str


@dataclass(frozen=True)
class EvidenceSection:
    """What the template needs to show an explanation.

    Attributes:
        label: The class the map speaks for, in words; empty where it speaks for none.
        method: The method, and the layer where there is one, in words.
        threshold: Heat from which lung counts as highlighted.
        is_disease: Whether the map speaks for a disease.
        axial: The slice through the hottest place in the lungs.
        plain: The same without the map.
        planes: Coronal and sagittal slices through it.
        strip: Slices along the body.
        curve: Evidence of each slice.
        gradient: CSS colour stops of the legend.
        columns: Headings of the table of shares.
        shares: Its rows: heading and cells.
        volume: Volume of the highlighted lung in words.
        says: What the map says, a sentence each.
        does_not_say: What it does not say.
    """

    label: str
    method: str
    threshold: float
    is_disease: bool
    axial: EmbeddedPicture
    plain: EmbeddedPicture
    planes: tuple[EmbeddedPicture, ...]
    strip: tuple[EmbeddedPicture, ...]
    curve: EvidenceCurve
    gradient: str
    columns: tuple[str, ...]
    shares: tuple[tuple[str, tuple[ShareCell, ...]], ...]
    volume: str
    says: tuple[str, ...]
    does_not_say: tuple[str, ...]


def evidence_section(
    analysis: ScanAnalysis, explained: ScanExplanation, maker: PictureMaker
) -> EvidenceSection:
    """Draw and describe the explanation of an analysis.

    Args:
        analysis: The scan and its answer.
        explained: Its explanation.
        maker: Draws the scan's pictures with the heat-map over them.
    """
    chosen = telling_slices(analysis, maker.scene)
    by_slice = evidence_by_slice(explained, analysis.prepared)
    peaks = evidence_peaks(explained, analysis.prepared)
    axial, coronal, sagittal = (
        maker.plane_picture(plane, chosen[plane], chosen)
        for plane in ("axial", "coronal", "sagittal")
    )
    strip = tuple(
        maker.slice_picture(index, _remark(by_slice[index], index, peaks))
        for index in strip_slices(maker.scene.shown_slices, peaks, NUM_STRIP)
    )
    is_hatched = any(picture.is_hatched for picture in (axial, coronal, sagittal, *strip))
    return EvidenceSection(
        label=label_words(explained),
        method=method_words(explained),
        threshold=explained.summary.threshold,
        is_disease=explained.speaks_for_disease,
        axial=axial,
        plain=maker.plain_picture("axial", chosen["axial"]),
        planes=(coronal, sagittal),
        strip=strip,
        curve=evidence_curve(by_slice, peaks),
        gradient=_gradient(is_disease=explained.speaks_for_disease),
        columns=tuple(_COLUMNS),
        shares=share_table(explained.summary.shares) if explained.speaks_for_disease else (),
        volume=f"{explained.summary.involved_ml:.0f} ml" if explained.speaks_for_disease else "",
        says=(*_says(analysis, explained), *((_HATCHED,) if is_hatched else ())),
        does_not_say=_does_not_say(analysis, explained),
    )


def method_words(explained: ScanExplanation) -> str:
    """How the map was made: "Grad-CAM at layer4"."""
    explanation = explained.explanation
    name = METHOD_NAMES.get(explanation.method, explanation.method)
    return f"{name} at {explanation.layer}" if explanation.layer else name


def label_words(explained: ScanExplanation) -> str:
    """The class the map speaks for, in words; empty where the method knows none."""
    is_classless = explained.explanation.method in CLASSLESS_METHODS
    return "" if is_classless else verdict_of(explained.explanation.label)


def share_table(shares: Mapping[str, float]) -> tuple[tuple[str, tuple[ShareCell, ...]], ...]:
    """Thirds and whole lungs as rows, sides as columns; regions that are missing stay empty."""

    def _cell(side: str, region: str) -> ShareCell:
        name = "lungs" if region == "lung" and not side else f"{side}{region}"
        if name not in shares:
            return ShareCell("", "0")
        return ShareCell(percent(shares[name]), f"{shares[name] * 100:.2f}")

    return tuple(
        (heading, tuple(_cell(side, region) for side in _COLUMNS.values()))
        for heading, region in _ROWS.items()
    )


def _remark(evidence: float, index: int, peaks: tuple[PeakSlice, ...]) -> str:
    if np.isnan(evidence):
        return ", not analysed or no lung"
    space = "\N{NO-BREAK SPACE}"
    ranks = [rank for rank, peak in enumerate(peaks, start=1) if peak.index == index]
    rank = f", peak{space}{ranks[0]}" if ranks else ""
    return f", evidence{space}{evidence:.2f}{rank}"


def _gradient(*, is_disease: bool) -> str:
    stops = []
    for step in range(_LEGEND_STEPS + 1):
        red, green, blue, opacity = heat_color(step / _LEGEND_STEPS, is_disease=is_disease)
        where = step / _LEGEND_STEPS * 100
        stops.append(f"rgba({red},{green},{blue},{opacity:.3f}) {where:.1f}%")
    return ", ".join(stops)


def _says(analysis: ScanAnalysis, explained: ScanExplanation) -> tuple[str, ...]:
    explanation = explained.explanation
    words, shown = verdict_of(explanation.label), CLASSLESS_METHODS.get(explanation.method)
    if not explanation.heat.any():
        return (f"No voxel spoke for “{words}”: the map is empty.",)
    meaning = f"which voxels raised the network’s score for “{words}”"
    if shown is not None:
        meaning = f"{shown}, whatever the class"
    return (
        f"Colour shows {meaning}. 1 is the hottest voxel of this very scan, so colours of two "
        "scans cannot be compared.",
        f"{_line_words(explained)}The evidence of a slice is the heat summed over its lungs, in "
        "parts of the largest lung section; the large pictures go through the hottest place in "
        "the lungs, wherever most of it lies.",
        f"{percent(share_outside(explanation, analysis.prepared))} of all heat lies outside the "
        "lungs, where it is drawn fainter.",
    )


def _line_words(explained: ScanExplanation) -> str:
    if not explained.speaks_for_disease:
        return ""
    return (
        f"The white line surrounds lung of {explained.summary.threshold:g} or more; the table "
        "gives its share of the analysed lung. "
    )


def _cell_mm(analysis: ScanAnalysis, explained: ScanExplanation) -> int:
    sizes = zip(explained.explanation.cell, analysis.prepared.grid.spacing_mm, strict=True)
    return round(max(cell * spacing for cell, spacing in sizes))


def _does_not_say(analysis: ScanAnalysis, explained: ScanExplanation) -> tuple[str, ...]:
    label = explained.explanation.label
    sentences = [
        "It is no outline of disease. No lesion was segmented or measured, and there can be "
        "disease where the map is cold.",
        f"It cannot tell places apart that lie closer than about {_cell_mm(analysis, explained)} "
        "mm: a hot spot can lie beside what caused it.",
    ]
    if explained.explanation.method in CLASSLESS_METHODS:
        sentences.append("It does not say which class it speaks for.")
    elif label != analysis.result.decision:
        sentences.append(
            f"It was asked for “{verdict_of(label)}”, which is not the most probable class."
        )
    if label == NORMAL:
        sentences.append(
            "It speaks for a normal scan: green lung is not diseased lung, so no line is drawn "
            "around it and no volume given."
        )
    if is_trained_on_simulation(analysis.result.provenance.trained_on):
        sentences.append(
            "The network learned from simulated disease: what it looks for need not be what real "
            "disease looks like."
        )
    return tuple(sentences)
